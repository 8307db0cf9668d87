//! A disk that is held still for a while: nothing is fetched from any queue,
//! and nothing is in flight. It goes on when it is told to, or by itself when
//! its time is over, so that whoever holds it may die.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sys;

/// Until when, and which workers have come to rest.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// In nanoseconds of the monotonic clock; 0: not held.
    until: AtomicU64,
    /// When it began, on the same clock; the last one, if there is none.
    since: AtomicU64,
    /// The holds so far; a worker says once for each that it rests.
    round: AtomicU64,
    resting: Mutex<Resting>,
    changed: Condvar,
}

/// Held for moments only.
#[derive(Debug, Default)]
struct Resting {
    round: u64,
    workers: usize,
}

/// Why a disk is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// It is held already, for so much longer.
    #[error("it is held already, for {} ms more", .0.as_millis())]
    Held(Duration),
    /// Requests that were in flight have not ended in time; it goes on.
    #[error("requests in flight have not ended within {} ms; it goes on", .0.as_millis())]
    Late(Duration),
    /// It was let go meanwhile.
    #[error("it was let go before its requests had ended")]
    LetGo,
}

impl Hold {
    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it ends, as of `now`; `None` if it has ended or there is none.
    pub(super) fn until(&self, now: u64) -> Option<u64> {
        let until = self.until.load(Ordering::SeqCst);
        (until > now).then_some(until)
    }

    /// Its number; a worker has said `last` so far.
    pub(super) fn is_new(&self, last: u64) -> Option<u64> {
        let round = self.round.load(Ordering::Acquire);
        (round != last).then_some(round)
    }

    /// A worker has nothing in flight, and shown all that has ended.
    #[cold]
    pub(super) fn rests(&self, round: u64) {
        let mut resting = self.resting();
        if resting.round == round {
            resting.workers += 1;
            self.changed.notify_all();
        }
    }

    /// Begins one of `time`; its number.
    ///
    /// # Errors
    /// There is one.
    pub(super) fn begin(&self, time: Duration) -> Result<u64, HoldError> {
        let mut resting = self.resting();
        if let Some(left) = self.left() {
            return Err(HoldError::Held(left));
        }
        let round = resting.round.wrapping_add(1);
        *resting = Resting { round, workers: 0 };
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let now = sys::monotonic_ns();
        // In this order: who sees the round sees until when, and since when.
        self.since.store(now, Ordering::SeqCst);
        self.until.store(now.saturating_add(time), Ordering::SeqCst);
        self.round.store(round, Ordering::Release);
        Ok(round)
    }

    /// Waits until so many workers rest in this one.
    ///
    /// # Errors
    /// They do not within `patience`, or it has ended.
    pub(super) fn wait(
        &self,
        round: u64,
        workers: usize,
        patience: Duration,
    ) -> Result<(), HoldError> {
        let start = Instant::now();
        let mut resting = self.resting();
        while resting.round == round && resting.workers < workers {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(HoldError::Late(patience));
            }
            let woken = self.changed.wait_timeout(resting, left);
            resting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let held = resting.round == round && self.left().is_some();
        held.then_some(()).ok_or(HoldError::LetGo)
    }

    /// Ends it, if it has this number where one is given; whether there was
    /// such a one.
    pub(super) fn end(&self, number: Option<u64>) -> bool {
        let mut resting = self.resting();
        if number.is_some_and(|number| number != resting.round) {
            return false;
        }
        let was = self.left().is_some();
        self.until.store(0, Ordering::SeqCst);
        resting.round = resting.round.wrapping_add(1);
        self.changed.notify_all();
        was
    }

    /// Waits until it has ended; whether by itself.
    pub(super) fn wait_for_end(&self) -> bool {
        let mut resting = self.resting();
        let round = resting.round;
        while resting.round == round {
            let Some(left) = self.left() else {
                return true;
            };
            let woken = self.changed.wait_timeout(resting, left);
            resting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// How long it has lasted; `None` if there is none.
    pub(super) fn lasts(&self) -> Option<Duration> {
        let now = sys::monotonic_ns();
        self.until(now)?;
        let since = self.since.load(Ordering::SeqCst);
        Some(Duration::from_nanos(now.saturating_sub(since)))
    }

    /// How much longer it lasts; `None` if there is none.
    pub(super) fn left(&self) -> Option<Duration> {
        let now = sys::monotonic_ns();
        let until = self.until(now)?;
        Some(Duration::from_nanos(until.saturating_sub(now)))
    }
}
