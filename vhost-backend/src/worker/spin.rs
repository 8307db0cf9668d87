//! How a worker looks for work before it sleeps.
//!
//! Sleeping costs the driver a kick and the worker a wake-up: some microseconds
//! on bare metal, up to a hundred on a virtual machine. Looking costs CPU time,
//! for nothing where work is rare. Its [habit](Habit) says which pays.
//!
//! Whoever is to bring the work may need this very CPU: the client, or a thread
//! of the kernel that copies for a loop device or allocates for a file. So the
//! looking yields now and then, and ends where others took long.

mod habit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::habit::Habit;
use crate::meter::Meter;
use crate::options::PollTime;

/// Whoever has the CPU this long needs it.
const TAKEN: Duration = Duration::from_micros(15);
/// Looks between two glances at the clock, and two offers of the CPU.
const STRIDE: u32 = 16;

/// How a worker spends its idle times.
#[derive(Debug)]
pub(crate) struct Spin {
    time: PollTime,
    habit: Habit,
    /// When the last idle time began.
    began: Option<Instant>,
    /// That one was slept through.
    sleeping: bool,
    meter: Arc<Meter>,
}

impl Spin {
    pub(crate) fn new(time: PollTime, meter: Arc<Meter>) -> Self {
        Self {
            time,
            habit: Habit::new(),
            began: None,
            sleeping: false,
            meter,
        }
    }

    /// There was something to do after a sleep, or without one.
    pub(crate) fn busy(&mut self) {
        if std::mem::take(&mut self.sleeping)
            && let Some(began) = self.began
        {
            self.habit.slept(began.elapsed());
        }
    }

    /// There is nothing to do: looks for a while; whether something came.
    pub(crate) fn look(&mut self, found: impl FnMut() -> bool) -> bool {
        match self.time {
            PollTime::Never => false,
            PollTime::Fixed(limit) => {
                let start = Instant::now();
                let came = look(start, limit, Duration::MAX, found) == Look::Came;
                self.meter.looked(came, start.elapsed());
                came
            }
            PollTime::Adaptive => self.look_by_habit(found),
        }
    }

    fn look_by_habit(&mut self, mut found: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        let before = self.began.replace(start);
        let limit = self
            .habit
            .limit(before.map_or(Duration::ZERO, |before| start - before));
        self.sleeping = limit.is_zero();
        if self.sleeping {
            return false;
        }
        // Whoever had the CPU may have brought the work.
        let came = match look(start, limit, TAKEN, &mut found) {
            Look::Came => true,
            Look::Vain => false,
            Look::Disturbed => found(),
        };
        let took = start.elapsed();
        self.meter.looked(came, took);
        self.habit.looked(came, took);
        came
    }
}

/// What came of looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Came,
    Vain,
    /// Somebody else had the CPU too long.
    Disturbed,
}

/// Looks from `start` for `limit`, as long as nobody else has the CPU for
/// longer than `taken`.
fn look(start: Instant, limit: Duration, taken: Duration, mut found: impl FnMut() -> bool) -> Look {
    let mut last = start;
    loop {
        if (0..STRIDE).any(|_| {
            std::hint::spin_loop();
            found()
        }) {
            return Look::Came;
        }
        let now = Instant::now();
        if now - last > taken {
            return Look::Disturbed;
        }
        if now - start >= limit {
            return Look::Vain;
        }
        last = now;
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_is_never_and_a_fixed_time_is_kept() {
        let mut spin = Spin::new(PollTime::Never, Arc::default());
        assert!(!spin.look(|| true));
        let mut spin = Spin::new(PollTime::Fixed(Duration::from_millis(2)), Arc::default());
        let start = Instant::now();
        assert!(!spin.look(|| false));
        assert!(start.elapsed() >= Duration::from_millis(2));
        assert!(spin.look(|| true));
    }

    #[test]
    fn who_loses_the_cpu_looks_no_more() {
        let mut looks = 0;
        let outcome = look(Instant::now(), Duration::from_secs(9), TAKEN, || {
            looks += 1;
            let start = Instant::now();
            while looks == STRIDE && start.elapsed() <= TAKEN {}
            false
        });
        // Or sooner, on a busy machine.
        assert_eq!(outcome, Look::Disturbed);
        assert!(looks <= STRIDE, "{looks}");
    }

    #[test]
    fn it_learns_from_looks_and_from_sleeps() {
        let mut spin = Spin::new(PollTime::Adaptive, Arc::default());
        // A busy machine disturbs some looks.
        let learned = (0..100_000).any(|_| {
            let looked = spin.look(|| true);
            if !looked {
                // A sleep takes far longer than what is found at once.
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(50) {}
            }
            spin.busy();
            looked && (0..9).all(|_| spin.look(|| true))
        });
        assert!(learned, "{spin:?}");
    }
}
