//! Knowing when no reader uses what has been replaced: quiescent points, fences.
//!
//! Readers never lock: each announces, in a slot of its own, the newest *grace number* it has seen. Who
//! replaces something raises the number; once every reader that is online has announced it (or is
//! offline), nobody uses the old thing any more.
//!
//! Why the orderings suffice: an announcement is a release store that the writer reads with acquire, so
//! what the reader did before happens before the writer's freeing; the number is raised after the
//! replacement, so a reader that has seen the number sees the replacement too. Going online and looking
//! at the slots are store-then-load on both sides, hence the two sequentially consistent fences: either
//! the writer sees the reader online, or the reader sees the replacement.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sync::{Arc, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, fence, lock};
use crate::sys;

/// The most readers that can exist at one time.
#[cfg(not(loom))]
pub const MAX_READERS: usize = 256;
/// Loom's models stay small.
#[cfg(loom)]
pub const MAX_READERS: usize = 2;

const OFFLINE: u64 = 0;

/// What one reader writes and others only read; a cache line pair each, so that readers do not disturb
/// each other.
#[repr(align(128))]
pub(crate) struct Slot {
    seen: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) changing: AtomicU64,
}

pub(crate) struct Quiesce {
    grace: AtomicU64,
    slots: Box<[Slot]>,
    /// Slots from here on were never used.
    used: AtomicUsize,
    free: Mutex<Vec<usize>>,
    /// Fences somebody waits for; readers look at it after an announcement.
    waiting: AtomicUsize,
    waiters: Mutex<Vec<Waiter>>,
    progress: Condvar,
}

struct Waiter {
    target: u64,
    event: Option<Arc<OwnedFd>>,
}

impl Quiesce {
    pub(crate) fn new() -> Quiesce {
        let slot = |_| Slot {
            seen: AtomicU64::new(OFFLINE),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            changing: AtomicU64::new(0),
        };
        Quiesce {
            grace: AtomicU64::new(1),
            slots: (0..MAX_READERS).map(slot).collect(),
            used: AtomicUsize::new(0),
            free: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::new(Vec::new()),
            progress: Condvar::new(),
        }
    }

    /// A slot for a new reader, offline; `None` if [`MAX_READERS`] exist.
    pub(crate) fn register(&self) -> Option<usize> {
        let mut free = lock(&self.free);
        if let Some(index) = free.pop() {
            return Some(index);
        }
        let index = self.used.load(Ordering::Relaxed);
        if index >= self.slots.len() {
            return None;
        }
        self.used.store(index + 1, Ordering::Release);
        Some(index)
    }

    pub(crate) fn unregister(&self, index: usize) {
        self.offline(index);
        lock(&self.free).push(index);
    }

    #[inline]
    pub(crate) fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    pub(crate) fn used_slots(&self) -> &[Slot] {
        &self.slots[..self.used.load(Ordering::Acquire)]
    }

    /// The number that a reader may announce once it uses nothing it looked up before this call.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.grace.load(Ordering::Acquire)
    }

    /// The reader uses nothing it looked up before. Returns the number announced.
    pub(crate) fn announce(&self, index: usize, last: u64) -> u64 {
        self.announce_as_of(index, last, self.now())
    }

    /// The reader uses nothing it looked up before it was told this number by [`Quiesce::now`].
    /// Returns the number announced.
    pub(crate) fn announce_as_of(&self, index: usize, last: u64, number: u64) -> u64 {
        if number != last {
            self.slots[index].seen.store(number, Ordering::Release);
            fence(Ordering::SeqCst);
            self.progress();
        }
        number
    }

    pub(crate) fn offline(&self, index: usize) {
        self.slots[index].seen.store(OFFLINE, Ordering::Release);
        fence(Ordering::SeqCst);
        self.progress();
    }

    #[inline]
    fn progress(&self) {
        if self.waiting.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let mut waiters = lock(&self.waiters);
        waiters.retain(|waiter| {
            let passed = self.passed(waiter.target);
            if passed {
                if let Some(event) = &waiter.event {
                    signal(event);
                }
                self.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            !passed
        });
        self.progress.notify_all();
    }

    /// Something has been replaced: the number that readers must announce before it may be freed.
    pub(crate) fn raise(&self) -> u64 {
        let target = self.grace.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        target
    }

    /// The number to wait for if nothing was replaced just now: covers all earlier replacements.
    pub(crate) fn current(&self) -> u64 {
        let target = self.grace.load(Ordering::SeqCst);
        fence(Ordering::SeqCst);
        target
    }

    pub(crate) fn passed(&self, target: u64) -> bool {
        self.used_slots().iter().all(|slot| {
            let seen = slot.seen.load(Ordering::Acquire);
            seen == OFFLINE || seen >= target
        })
    }

    fn enlist(&self, target: u64, event: Option<Arc<OwnedFd>>) {
        lock(&self.waiters).push(Waiter { target, event });
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence after an announcement: either the reader sees us waiting, or we see
        // its announcement.
        fence(Ordering::SeqCst);
        self.wake();
    }
}

/// A point in the life of a map which every reader has to pass; see [`Hold::fence`](crate::Hold::fence).
///
/// It has *passed* once every reader that was online when the fence was made has since been through
/// [`Reader::quiescent`](crate::Reader::quiescent) or gone offline: no reader still acts on an extent
/// it looked up before. Raw I/O already submitted is the caller's to wait for.
#[must_use = "until the fence has passed, readers act on what was taken away"]
#[derive(Clone)]
pub struct Fence {
    quiesce: Arc<Quiesce>,
    target: u64,
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fence")
            .field("target", &self.target)
            .field("passed", &self.passed())
            .finish()
    }
}

impl Fence {
    pub(crate) fn new(quiesce: &Arc<Quiesce>, target: u64) -> Fence {
        Fence {
            quiesce: Arc::clone(quiesce),
            target,
        }
    }

    /// Whether every reader has passed. Never blocks; a few loads per reader.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.quiesce.passed(self.target)
    }

    /// Writes 1 to `event` (an eventfd) once the fence has passed, at once if it has already.
    /// The descriptor is dropped after that.
    pub fn notify(&self, event: Arc<OwnedFd>) {
        self.quiesce.enlist(self.target, Some(event));
    }

    /// Waits until the fence has passed, at most `timeout`; whether it has.
    ///
    /// The calling thread's own [`Reader`](crate::Reader), if it has one, must be offline, or nobody
    /// will ever pass.
    #[must_use = "the fence may not have passed"]
    pub fn wait(&self, timeout: Duration) -> bool {
        if self.passed() {
            return true;
        }
        let until = Instant::now() + timeout;
        self.quiesce.enlist(self.target, None);
        let mut waiters = lock(&self.quiesce.waiters);
        loop {
            if self.passed() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiters = match self.quiesce.progress.wait_timeout(waiters, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

fn signal(event: &OwnedFd) {
    sys::eventfd_signal(event.as_raw_fd());
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_online_reader_holds_a_fence_back_and_an_offline_one_does_not() {
        let quiesce = Arc::new(Quiesce::new());
        let (a, b) = (quiesce.register().unwrap(), quiesce.register().unwrap());
        let seen = quiesce.announce(a, 0);
        let fence = Fence::new(&quiesce, quiesce.raise());
        assert!(!fence.passed(), "a has not been quiescent, b is offline");
        quiesce.announce(a, seen);
        assert!(fence.passed());
        quiesce.announce(b, 0);
        let fence = Fence::new(&quiesce, quiesce.raise());
        quiesce.announce(a, seen);
        assert!(!fence.passed());
        quiesce.offline(b);
        assert!(fence.passed());
    }

    #[test]
    fn a_fence_waits_for_a_reader_that_is_quiescent_only_since_an_older_moment() {
        let quiesce = Arc::new(Quiesce::new());
        let a = quiesce.register().unwrap();
        let seen = quiesce.announce(a, 0);
        let before = quiesce.now();
        let fence = Fence::new(&quiesce, quiesce.raise());
        let after = quiesce.now();
        let seen = quiesce.announce_as_of(a, seen, before);
        assert!(!fence.passed(), "what was looked up since may be in use");
        quiesce.announce_as_of(a, seen, after);
        assert!(fence.passed());
    }

    #[test]
    fn an_event_is_signalled_exactly_when_the_last_reader_has_passed() {
        let quiesce = Arc::new(Quiesce::new());
        let a = quiesce.register().unwrap();
        let seen = quiesce.announce(a, 0);
        let fence = Fence::new(&quiesce, quiesce.raise());
        let event = Arc::new(sys::eventfd().unwrap());
        fence.notify(Arc::clone(&event));
        assert!(!sys::eventfd_take(event.as_raw_fd()));
        quiesce.announce(a, seen);
        assert!(sys::eventfd_take(event.as_raw_fd()));
        fence.notify(Arc::clone(&event));
        assert!(
            sys::eventfd_take(event.as_raw_fd()),
            "already passed: at once"
        );
    }

    #[test]
    fn waiting_ends_with_the_quiescent_point_of_another_thread() {
        let quiesce = Arc::new(Quiesce::new());
        let a = quiesce.register().unwrap();
        let seen = quiesce.announce(a, 0);
        let fence = Fence::new(&quiesce, quiesce.raise());
        assert!(!fence.wait(Duration::from_millis(1)));
        let waiter = std::thread::spawn(move || fence.wait(Duration::from_secs(60)));
        quiesce.announce(a, seen);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn slots_are_used_again_and_bounded() {
        let quiesce = Quiesce::new();
        let all: Vec<_> = std::iter::from_fn(|| quiesce.register()).collect();
        assert_eq!(all.len(), MAX_READERS);
        quiesce.unregister(7);
        assert_eq!(quiesce.register(), Some(7));
        assert_eq!(quiesce.register(), None);
    }
}
