//! Requests that a disk cannot carry out now: counted, and tried again.
//!
//! Such a request was fetched and is not answered. Nothing is kept for it but
//! the descriptor that its chain begins with, in its queue and in the record of
//! requests in flight, if there is one. So it uses no guest memory, keeps no
//! ring from being paused or stopped, and is carried out from its beginning
//! when it is tried again. What is tried again is still counted as held, until
//! it has ended.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::device::Status;
use crate::sys;

/// How long one waits that was held just now.
const FIRST: u64 = 100_000_000;
/// When others are tried after one of them went well.
const SOON: u64 = 10_000_000;

/// The requests of a disk that are held. Shared by all its workers, without a
/// lock.
#[derive(Debug, Default)]
pub struct HeldRequests {
    now: AtomicU64,
    ever: AtomicU64,
    retries: AtomicU64,
    failed: AtomicU64,
    why: AtomicI32,
    /// How often it was asked that all are tried again.
    asked: AtomicU64,
    wakers: Mutex<Vec<Arc<EventFd>>>,
}

/// How many requests there are and were that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeldCounts {
    /// Requests that are held now.
    pub now: u64,
    /// Those that were, since the start; each counts once.
    pub ever: u64,
    /// How often one was tried again.
    pub retries: u64,
    /// Those that were answered with an error after all, as their ring was
    /// stopped or paused and nobody could find them later.
    pub failed: u64,
    /// The errno that the last one was held for; 0 if none ever was.
    pub why: i32,
}

impl HeldRequests {
    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> HeldCounts {
        HeldCounts {
            now: self.now.load(Ordering::Acquire),
            ever: self.ever.load(Ordering::Acquire),
            retries: self.retries.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            why: self.why.load(Ordering::Relaxed),
        }
    }

    /// Has all of them tried again soon.
    pub fn retry(&self) {
        self.asked.fetch_add(1, Ordering::AcqRel);
        for waker in self.wakers().iter() {
            // Fails only where it is signalled already.
            let _ = waker.write(1);
        }
    }

    /// Wakes a worker by this when all are to be tried again.
    pub(crate) fn wake_by(&self, waker: Arc<EventFd>) {
        self.wakers().push(waker);
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Arc<EventFd>>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker knows of the requests that its queues hold.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    shared: Arc<HeldRequests>,
    /// When some are tried again; `None` while nothing is held that may be.
    until: Option<u64>,
    /// How long they wait then, if that was in vain.
    pause: u64,
    longest: u64,
    /// One has gone well: the others may, too.
    all: bool,
    /// The last wish for all that was followed.
    followed: u64,
}

/// What is to be tried again in this turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// The one of each queue that has waited longest.
    One,
    All,
}

impl Holding {
    pub(crate) fn new(shared: Arc<HeldRequests>) -> Self {
        Self {
            shared,
            ..Self::default()
        }
    }

    /// There may be something to try again, now or later.
    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// How long to sleep at most.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let until = self.until?;
        Some(Duration::from_nanos(
            until.saturating_sub(sys::monotonic_ns()),
        ))
    }

    /// A request is held for this errno; `again` if it was before.
    pub(crate) fn hold(&mut self, again: bool, longest: Duration, why: i32) {
        if !again {
            self.shared.why.store(why, Ordering::Relaxed);
            self.shared.now.fetch_add(1, Ordering::AcqRel);
            self.shared.ever.fetch_add(1, Ordering::AcqRel);
        }
        self.longest = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        if self.until.is_none() {
            self.followed = self.shared.asked.load(Ordering::Acquire);
            self.pause = FIRST;
            self.until = Some(sys::monotonic_ns().saturating_add(FIRST));
        }
    }

    /// Requests that were held have ended so.
    pub(crate) fn end(&mut self, status: Status) {
        self.let_go(1);
        if status == Status::Ok && !self.all && self.is_on() {
            self.all = true;
            self.until = Some(sys::monotonic_ns().saturating_add(SOON));
        }
    }

    /// So many that were held are not any more: they were left to whoever
    /// comes next, or have ended.
    pub(crate) fn let_go(&self, count: usize) {
        self.shared.now.fetch_sub(count as u64, Ordering::AcqRel);
    }

    /// One was answered with an error, for it cannot be held any longer.
    pub(crate) fn fail(&self) {
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// One is being tried again.
    pub(crate) fn try_again(&self) {
        self.shared.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A queue that holds some may be asked again from now on.
    pub(crate) fn look_soon(&mut self) {
        self.until = Some(0);
    }

    /// What is to be tried again now.
    pub(crate) fn due(&mut self) -> Due {
        let Some(until) = self.until else {
            return Due::Nothing;
        };
        let asked = self.shared.asked.load(Ordering::Acquire);
        let wished = asked != self.followed;
        let now = sys::monotonic_ns();
        if now < until && !wished {
            return Due::Nothing;
        }
        self.followed = asked;
        if std::mem::take(&mut self.all) || wished {
            self.pause = FIRST;
            self.until = Some(now.saturating_add(FIRST));
            return Due::All;
        }
        self.pause = self.pause.saturating_mul(2).min(self.longest).max(FIRST);
        self.until = Some(now.saturating_add(self.pause));
        Due::One
    }

    /// There is nothing to try again until something is held.
    pub(crate) fn rest(&mut self) {
        self.until = None;
        self.all = false;
    }
}
