//! How long a worker looks for work before it sleeps.
//!
//! Sleeping costs the driver a kick and the worker a wake-up, which is more
//! than a fast disk takes for a request; looking costs CPU time for nothing
//! where work is rare. So the worker keeps a score of how often looking would
//! have found something, and looks only while that is often. How long it
//! slept says little: a busy machine lets a woken thread wait for its CPU.
//! Only an idle time that was looked through counts as one that was too long,
//! and one in a while is looked through just to know.
//!
//! Whoever is to bring the work may need this very CPU: the client, or a thread
//! of the kernel that copies for a loop device or allocates for a file. So the
//! looking yields now and then, and ends where others took long.

use std::time::{Duration, Instant};

use crate::options::PollTime;

/// The longest look.
const LONGEST: Duration = Duration::from_micros(50);
/// What is found within this time was worth being looked for: what takes longer costs
/// more than a wake-up, or is slow because whoever does it needs the CPU.
const SOON: Duration = Duration::from_micros(15);
/// Of so many sleeps, one is put off to see whether looking would pay.
const TRIAL: u32 = 32;
/// The score of a worker whose looks always find something.
const FULL: u32 = 1024;
/// The least score at which looking pays.
const PAYS: u32 = FULL / 2;
/// Looks between two glances at the clock, and two offers of the CPU.
const STRIDE: u32 = 16;

/// What a worker knows of its idle times.
#[derive(Debug)]
pub(crate) struct Spin {
    time: PollTime,
    score: u32,
    idle_since: Option<Instant>,
    sleeps: u32,
}

impl Spin {
    pub(crate) fn new(time: PollTime) -> Self {
        Self {
            time,
            score: 0,
            idle_since: None,
            sleeps: 0,
        }
    }

    /// There was something to do after a sleep, or without one.
    pub(crate) fn busy(&mut self) {
        if let Some(since) = self.idle_since.take()
            && since.elapsed() <= SOON
        {
            self.count(true);
        }
    }

    /// There is nothing to do: looks for a while; whether something came.
    pub(crate) fn look(&mut self, mut found: impl FnMut() -> bool) -> bool {
        let limit = self.limit();
        if limit.is_zero() {
            if self.time != PollTime::Never {
                self.idle_since = Some(Instant::now());
            }
            return false;
        }
        let start = Instant::now();
        let mut last = start;
        let came = loop {
            if (0..STRIDE).any(|_| {
                std::hint::spin_loop();
                found()
            }) {
                break true;
            }
            let now = Instant::now();
            if self.time == PollTime::Adaptive && now - last > SOON {
                // Others need the CPU: a sleeper would have had it back sooner.
                self.score = 0;
                return found();
            }
            if now - start >= limit {
                break false;
            }
            last = now;
            std::thread::yield_now();
        };
        self.count(came && start.elapsed() <= SOON);
        came
    }

    fn count(&mut self, found: bool) {
        let sample = if found { FULL } else { 0 };
        self.score = (self.score * 7 + sample).div_ceil(8).min(FULL);
        if !found {
            self.score = self.score.saturating_sub(1);
        }
    }

    fn limit(&mut self) -> Duration {
        match self.time {
            PollTime::Never => Duration::ZERO,
            PollTime::Fixed(time) => time,
            PollTime::Adaptive if self.score >= PAYS => LONGEST,
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

    /// Goes through an idle time in which looking finds something or not, and
    /// which else ends with a sleep that lasts long; whether it looked.
    fn idle(spin: &mut Spin, finds: bool) -> bool {
        let mut looked = false;
        spin.look(|| {
            looked = true;
            finds
        });
        if let Some(since) = &mut spin.idle_since {
            *since = Instant::now()
                .checked_sub(Duration::from_millis(5))
                .unwrap();
        }
        spin.busy();
        looked
    }

    #[test]
    fn never_is_never_and_a_fixed_time_is_kept() {
        let mut spin = Spin::new(PollTime::Never);
        assert!(!(0..1000).any(|_| idle(&mut spin, true)));
        let mut spin = Spin::new(PollTime::Fixed(Duration::from_millis(2)));
        let start = Instant::now();
        assert!(!spin.look(|| false));
        assert!(start.elapsed() >= Duration::from_millis(2));
    }

    #[test]
    fn an_idle_guest_and_a_slow_disk_cost_a_trial_now_and_then() {
        let mut spin = Spin::new(PollTime::Adaptive);
        let looked = (0..10 * TRIAL).filter(|_| idle(&mut spin, false)).count();
        assert_eq!(looked, 10);
        assert_eq!(spin.score, 0);
    }

    #[test]
    fn trials_find_out_that_looking_pays_though_sleeps_are_long() {
        let mut spin = Spin::new(PollTime::Adaptive);
        let until = (0..20 * TRIAL).find(|_| {
            idle(&mut spin, true);
            spin.score >= PAYS
        });
        assert!(until.is_some(), "the score is {}", spin.score);
        assert!((0..100).all(|_| idle(&mut spin, true)));
        // The disk has become slow.
        let looked = (0..32).filter(|_| idle(&mut spin, false)).count();
        assert!(looked <= 8, "{looked}");
    }

    #[test]
    fn who_loses_the_cpu_looks_no_more() {
        let mut spin = Spin::new(PollTime::Adaptive);
        spin.score = FULL;
        let mut looks = 0;
        assert!(!spin.look(|| {
            looks += 1;
            let start = Instant::now();
            while looks == STRIDE && start.elapsed() <= SOON {}
            false
        }));
        // Once more before it gave up.
        assert_eq!((looks, spin.score), (STRIDE + 1, 0));
        assert!(!idle(&mut spin, true));
    }

    #[test]
    fn short_sleeps_tell_as_well() {
        let mut spin = Spin::new(PollTime::Adaptive);
        // A busy machine makes some of them long.
        let told = (0..100_000).any(|_| {
            spin.look(|| false);
            spin.idle_since = Some(Instant::now());
            spin.busy();
            spin.score >= PAYS
        });
        assert!(told, "the score is {}", spin.score);
    }
}
