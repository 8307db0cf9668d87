//! How long a worker looks for work before it sleeps.
//!
//! Sleeping costs the driver a kick and the worker a wake-up, which is more
//! than a fast disk takes for a request; looking costs CPU time for nothing
//! where work is rare. So the worker learns how long it is idle: it looks
//! only while that is short, and finds out now and then whether it would be.

use std::time::{Duration, Instant};

use crate::options::PollTime;

/// The longest idle time, in nanoseconds, that is worth being looked through.
const WORTHWHILE: u64 = 60_000;
/// The longest look.
const LONGEST: Duration = Duration::from_micros(80);
/// Of so many sleeps, one is put off to see whether it was worth it.
const TRIAL: u32 = 64;
/// What one idle time counts for at most, so that a long sleep is soon
/// forgotten.
const LONG: u64 = 500_000;
/// Looks between two glances at the clock.
const STRIDE: u32 = 16;

/// The idle times of one worker.
#[derive(Debug)]
pub(crate) struct Spin {
    time: PollTime,
    /// A sliding mean of idle times in nanoseconds.
    usual: u64,
    idle_since: Option<Instant>,
    sleeps: u32,
}

impl Spin {
    pub(crate) fn new(time: PollTime) -> Self {
        Self {
            time,
            usual: LONG,
            idle_since: None,
            sleeps: 0,
        }
    }

    /// There was something to do.
    pub(crate) fn busy(&mut self) {
        let Some(since) = self.idle_since.take() else {
            return;
        };
        let idle = u64::try_from(since.elapsed().as_nanos())
            .unwrap_or(LONG)
            .min(LONG);
        self.usual = (self.usual * 7 + idle) / 8;
    }

    /// There is nothing to do: looks for a while; whether something came.
    pub(crate) fn look(&mut self, mut found: impl FnMut() -> bool) -> bool {
        let limit = self.limit();
        if self.time == PollTime::Never {
            return false;
        }
        let start = *self.idle_since.get_or_insert_with(Instant::now);
        if limit.is_zero() {
            return false;
        }
        loop {
            for _ in 0..STRIDE {
                if found() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= limit {
                return false;
            }
        }
    }

    fn limit(&mut self) -> Duration {
        match self.time {
            PollTime::Never => Duration::ZERO,
            PollTime::Fixed(time) => time,
            PollTime::Adaptive if self.usual <= WORTHWHILE => LONGEST,
            PollTime::Adaptive => {
                self.sleeps = self.sleeps.wrapping_add(1);
                if self.sleeps.is_multiple_of(TRIAL) {
                    LONGEST
                } else {
                    Duration::ZERO
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes through an idle time that `looks` looks end; how many there were.
    fn idle(spin: &mut Spin, looks: u32) -> u32 {
        let mut count = 0;
        spin.look(|| {
            count += 1;
            count > looks
        });
        spin.busy();
        count
    }

    #[test]
    fn never_is_never_and_a_fixed_time_is_kept() {
        let mut spin = Spin::new(PollTime::Never);
        assert!((0..1000).all(|_| idle(&mut spin, 0) == 0));
        let mut spin = Spin::new(PollTime::Fixed(Duration::from_millis(2)));
        let start = Instant::now();
        assert!(!spin.look(|| false));
        assert!(start.elapsed() >= Duration::from_millis(2));
    }

    #[test]
    fn short_idle_times_are_learned_and_long_ones_as_well() {
        let mut spin = Spin::new(PollTime::Adaptive);
        assert_eq!(idle(&mut spin, 1), 0, "nothing is known yet");
        spin.usual = WORTHWHILE;
        assert_eq!(idle(&mut spin, 1), 2, "short times are looked through");
        spin.usual = LONG;
        let looked = (0..10 * TRIAL).filter(|_| {
            // A disk so slow that no look ever finds anything.
            let mut looks = 0;
            spin.idle_since = Some(Instant::now() - LONGEST * 10);
            spin.look(|| {
                looks += 1;
                false
            });
            spin.busy();
            looks > 0
        });
        assert_eq!(looked.count(), 10, "one in {TRIAL} is tried");
    }

    #[test]
    fn trials_alone_find_out_that_looking_pays() {
        let mut spin = Spin::new(PollTime::Adaptive);
        // Without looking a wake-up takes as long as is just not worth it; with
        // it work is there at once.
        for _ in 0..64 * TRIAL {
            if !spin.look(|| true) {
                spin.idle_since = Some(Instant::now() - Duration::from_nanos(WORTHWHILE));
            }
            spin.busy();
            if spin.usual <= WORTHWHILE {
                return;
            }
        }
        panic!("still {} ns", spin.usual);
    }
}
