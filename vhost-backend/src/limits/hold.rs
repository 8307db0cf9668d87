//! A disk that is held still for a while: nothing is fetched from any queue,
//! and nothing is in flight. It goes on when it is told to, or by itself when
//! its time is over, so that whoever holds it may die.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Limits;
use crate::sys;

/// Until when, and which workers have come to rest.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// In nanoseconds of the monotonic clock; 0: not held.
    until: AtomicU64,
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
}

impl Limits {
    /// Holds the disk still for `time` from now on. Returns when nothing is in
    /// flight any more and all that has ended was shown to the guest; if that
    /// takes longer than `patience`, the disk goes on and is not held.
    ///
    /// # Errors
    /// It is held already, or not within that time.
    pub fn hold(&self, time: Duration, patience: Duration) -> Result<(), HoldError> {
        let workers = self.wakers().len();
        let round = {
            let mut resting = self.hold.resting();
            let now = sys::monotonic_ns();
            if let Some(until) = self.hold.until(now) {
                return Err(HoldError::Held(Duration::from_nanos(
                    until.saturating_sub(now),
                )));
            }
            let round = resting.round.wrapping_add(1);
            *resting = Resting { round, workers: 0 };
            let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            // In this order: who sees the round sees until when.
            self.hold
                .until
                .store(now.saturating_add(time), Ordering::SeqCst);
            self.hold.round.store(round, Ordering::Release);
            round
        };
        self.set_on();
        self.wake_all();
        let start = Instant::now();
        let mut resting = self.hold.resting();
        while resting.round == round && resting.workers < workers {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                drop(resting);
                self.let_go();
                return Err(HoldError::Late(patience));
            }
            let woken = self.hold.changed.wait_timeout(resting, left);
            resting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let held = resting.round == round && self.held().is_some();
        held.then_some(()).ok_or(HoldError::LetGo)
    }

    /// The disk goes on, if it is held; whether it was.
    pub fn let_go(&self) -> bool {
        let mut resting = self.hold.resting();
        let was = self.held().is_some();
        self.hold.until.store(0, Ordering::SeqCst);
        resting.round = resting.round.wrapping_add(1);
        self.hold.changed.notify_all();
        drop(resting);
        self.set_on();
        self.wake_all();
        was
    }

    /// Waits until the disk goes on; whether by itself.
    pub fn wait_until_it_goes_on(&self) -> bool {
        let mut resting = self.hold.resting();
        let round = resting.round;
        while resting.round == round {
            let Some(left) = self.held() else {
                return true;
            };
            let woken = self.hold.changed.wait_timeout(resting, left);
            resting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// How much longer the disk is held; `None` if it is not.
    #[must_use]
    pub fn held(&self) -> Option<Duration> {
        let now = sys::monotonic_ns();
        let until = self.hold.until(now)?;
        Some(Duration::from_nanos(until.saturating_sub(now)))
    }
}
