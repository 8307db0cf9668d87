//! Limits on requests and bytes per second, of one disk or of several
//! processes together.
//!
//! A worker asks before it fetches a request: what is not fetched stays in the
//! driver's ring and is not in flight, so that a limit never keeps a ring from
//! being stopped, moved or handed over. What a request costs is known once it
//! was fetched, and may be more than there is: that is owed, and the next one
//! waits so much longer.

mod bucket;
pub(crate) mod gate;
mod group;
mod hold;
mod key;
mod turns;

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

pub use self::bucket::LEAST_BURST_MS;
use self::bucket::{Bucket, Owner};
use self::group::Group;
pub use self::group::GroupError;
use self::hold::Hold;
pub use self::hold::HoldError;
use self::key::KINDS;
pub use self::key::{LimitKey, LimitValues, Limited};
use self::turns::Turns;
use crate::sys;

/// How long another limit of the group may stay unseen, in nanoseconds.
const LOOK: u64 = 100_000_000;

/// The limits of a disk. Shared by all its workers, without a lock.
#[derive(Debug, Default)]
pub struct Limits {
    /// Workers have to ask: there are limits, or the disk is held.
    on: AtomicBool,
    limited: AtomicBool,
    hold: Hold,
    buckets: [Bucket; KINDS],
    /// Up to when the time of each was taken, where this disk is alone.
    until: [AtomicU64; KINDS],
    turns: Turns,
    group: Option<Group>,
    /// The changes of the group that were seen.
    seen: AtomicU64,
    /// When that was looked at last.
    looked: AtomicU64,
    told: AtomicBool,
    waits: AtomicU64,
    waited: AtomicU64,
    wakers: Mutex<Vec<Arc<EventFd>>>,
}

/// How often queues were held back by a limit, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Times that a queue with something to fetch had to wait.
    pub count: u64,
    /// The sum of these times.
    pub time: Duration,
}

impl Limits {
    /// Limits that are shared with all who use this file, which is readable
    /// and writable here. Whatever it holds is in force at once.
    ///
    /// # Errors
    /// It cannot be a group's.
    pub fn in_group(file: File) -> Result<Self, GroupError> {
        let limits = Self {
            group: Some(Group::join(file)?),
            on: AtomicBool::new(true),
            limited: AtomicBool::new(true),
            ..Self::default()
        };
        limits.look(sys::monotonic_ns(), true);
        Ok(limits)
    }

    /// The limits now.
    #[must_use]
    pub fn values(&self) -> LimitValues {
        self.look(sys::monotonic_ns(), true);
        let mut values = LimitValues::default();
        for key in LimitKey::all() {
            let value = self.buckets.get(key.limited().index());
            let value = value.map_or(0, |bucket| match key {
                LimitKey::Rate(_) => bucket.rate(),
                LimitKey::Burst(_) => bucket.burst(),
            });
            values.set(key, value);
        }
        values
    }

    /// Changes some: those of the group, if there is one.
    pub fn change(&self, changes: &[(LimitKey, u64)]) {
        let now = sys::monotonic_ns();
        let mut values = self.values();
        for (key, value) in changes {
            values.set(*key, *value);
        }
        match self.group() {
            Some(group) => {
                let page = group.page();
                for (key, value) in changes {
                    if let Some(entry) = page.entries.get(key.limited().index()) {
                        match key {
                            LimitKey::Rate(_) => entry.rate.store(*value, Ordering::Relaxed),
                            LimitKey::Burst(_) => entry.burst.store(*value, Ordering::Relaxed),
                        }
                        entry.until.fetch_min(now, Ordering::AcqRel);
                    }
                }
                page.changes.fetch_add(1, Ordering::AcqRel);
                self.look(now, true);
            }
            None => self.set(&values, now),
        }
        self.wake_all();
    }

    /// Holds the disk still for `time` from now on. Returns when nothing is in
    /// flight any more and all that has ended was shown to the guest; if that
    /// takes longer than `patience`, the disk goes on and is not held.
    ///
    /// Returns its number, by which it is let go without letting another one
    /// go ([`let_go_of`](Self::let_go_of)).
    ///
    /// # Errors
    /// It is held already, or not within that time.
    pub fn hold(&self, time: Duration, patience: Duration) -> Result<u64, HoldError> {
        let workers = self.wakers().len();
        let round = self.hold.begin(time)?;
        self.set_on();
        self.wake_all();
        self.hold
            .wait(round, workers, patience)
            .inspect_err(|error| {
                if let HoldError::Late(_) = error {
                    self.let_go_of(round);
                }
            })?;
        Ok(round)
    }

    /// The disk goes on, if it is held; whether it was.
    pub fn let_go(&self) -> bool {
        self.end(None)
    }

    /// The disk goes on, if it is held by the hold of this number; whether it
    /// was.
    pub fn let_go_of(&self, number: u64) -> bool {
        self.end(Some(number))
    }

    fn end(&self, number: Option<u64>) -> bool {
        let was = self.hold.end(number);
        self.set_on();
        self.wake_all();
        was
    }

    /// Waits until the disk goes on; whether by itself.
    pub fn wait_until_it_goes_on(&self) -> bool {
        self.hold.wait_for_end()
    }

    /// How much longer the disk is held; `None` if it is not.
    #[must_use]
    pub fn held(&self) -> Option<Duration> {
        self.hold.left()
    }

    /// How long the disk has been held by now; `None` if it is not.
    #[must_use]
    pub fn held_for(&self) -> Option<Duration> {
        self.hold.lasts()
    }

    /// How often and how long requests have waited since the start.
    #[must_use]
    pub fn waits(&self) -> Waits {
        Waits {
            count: self.waits.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.waited.load(Ordering::Relaxed)),
        }
    }

    /// Wakes a worker by this when limits have changed.
    pub(crate) fn wake_by(&self, waker: Arc<EventFd>) {
        self.wakers().push(waker);
    }

    /// The group, as long as it can be reached.
    fn group(&self) -> Option<&Group> {
        self.group.as_ref().filter(|group| !group.is_lost())
    }

    fn wakers(&self) -> std::sync::MutexGuard<'_, Vec<Arc<EventFd>>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts these in force for this disk.
    fn set(&self, values: &LimitValues, now: u64) {
        let mut any = self.group.is_some();
        for key in LimitKey::all() {
            let LimitKey::Rate(of) = key else { continue };
            let (rate, burst) = (values.get(key), values.get(LimitKey::Burst(of)));
            any |= rate > 0;
            let place = self.buckets.get(of.index()).zip(self.until.get(of.index()));
            if let Some((bucket, until)) = place
                && bucket.set(rate, burst, now)
            {
                until.fetch_min(now, Ordering::AcqRel);
            }
        }
        self.limited.store(any, Ordering::SeqCst);
        self.set_on();
    }

    /// Has workers ask, or not, as there is something to ask for.
    fn set_on(&self) {
        let wanted = || {
            let held = self.hold.until(sys::monotonic_ns()).is_some();
            self.limited.load(Ordering::SeqCst) || held
        };
        self.on.store(wanted(), Ordering::SeqCst);
        // It may have begun meanwhile, and somebody may have stored that before.
        if wanted() {
            self.on.store(true, Ordering::SeqCst);
        }
    }

    fn wake_all(&self) {
        for waker in self.wakers().iter() {
            // Fails only where it is signalled already.
            let _ = waker.write(1);
        }
    }

    /// Looks whether the group has other limits by now: once in a while, or
    /// at once.
    fn look(&self, now: u64, at_once: bool) {
        let Some(group) = &self.group else { return };
        let looked = self.looked.load(Ordering::Relaxed);
        if !at_once && now.saturating_sub(looked) < LOOK / 2 {
            return;
        }
        self.looked.store(now, Ordering::Relaxed);
        let page = group.page();
        let changes = page.changes.load(Ordering::Acquire);
        let mut values = LimitValues::default();
        for key in LimitKey::all() {
            if let Some(entry) = page.entries.get(key.limited().index()) {
                let number = match key {
                    LimitKey::Rate(_) => &entry.rate,
                    LimitKey::Burst(_) => &entry.burst,
                };
                values.set(key, number.load(Ordering::Relaxed));
            }
        }
        if group.is_lost() {
            if !self.told.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "the file of --limit-group cannot be reached any more: its limits go on for this disk alone; restart the disks with another file"
                );
            }
        } else if self.seen.swap(changes, Ordering::AcqRel) != changes {
            self.set(&values, now);
        }
    }

    fn owner(&self, of: usize) -> Option<Owner<'_>> {
        match self.group() {
            Some(group) => {
                let entry = group.page().entries.get(of)?;
                Some(Owner::Group(&entry.until))
            }
            None => self.until.get(of).map(Owner::Alone),
        }
    }
}

#[cfg(test)]
mod tests;
