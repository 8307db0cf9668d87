//! Clone before write: while the image is being cloned as it was at one moment,
//! a change of what is not cloned yet waits, and asks for that to be cloned
//! next.
//!
//! Workers ask one number whether a clone is being made at all. The rest is
//! behind locks that are held for moments: taken by each worker once for each
//! clone, and by requests that have to wait.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mapping::Pending;

use crate::host::{switches, sys};

/// Demands that are remembered; who finds no room asks again a moment later.
const DEMANDS: usize = 1024;

/// The clone of a disk that is being made, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Clones {
    /// Its number; 0: there is none.
    number: AtomicU64,
    current: Mutex<Current>,
    /// There is none any more.
    ended: Condvar,
    waiters: Mutex<Vec<Arc<Waiter>>>,
}

#[derive(Debug, Default)]
struct Current {
    last: u64,
    cloning: Option<Arc<Cloning>>,
}

/// A clone that is being made.
#[derive(Debug)]
pub(crate) struct Cloning {
    /// What of the image is not cloned yet.
    pub pending: Pending,
    demands: Mutex<VecDeque<Demand>>,
    asked: Condvar,
    /// Requests that had to wait.
    waited: AtomicU64,
    /// The longest that one did, in microseconds.
    longest: AtomicU64,
    /// Why it was given up.
    reason: OnceLock<&'static str>,
}

/// What somebody waits for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// From its first byte that was pending.
    pub range: Range<u64>,
    since: Instant,
}

/// A worker that may wait for something to be cloned.
#[derive(Debug)]
struct Waiter {
    waits: AtomicBool,
    event: OwnedFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clones {
    /// From now on an image of `bytes` bytes is being cloned: all of it is
    /// pending. Called while no request is in flight, and ended by
    /// [`end`](Self::end).
    pub(crate) fn begin(&self, bytes: u64) -> Arc<Cloning> {
        let cloning = Arc::new(Cloning {
            pending: Pending::new(bytes),
            demands: Mutex::new(VecDeque::with_capacity(DEMANDS)),
            asked: Condvar::new(),
            waited: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            reason: OnceLock::new(),
        });
        let mut current = lock(&self.current);
        current.last = current.last.wrapping_add(1).max(1);
        current.cloning = Some(Arc::clone(&cloning));
        self.number.store(current.last, Ordering::SeqCst);
        cloning
    }

    /// It is over: nothing is pending any more.
    pub(crate) fn end(&self) {
        let mut current = lock(&self.current);
        self.number.store(0, Ordering::SeqCst);
        let ended = current.cloning.take();
        self.ended.notify_all();
        drop(current);
        if let Some(cloning) = ended {
            cloning.pending.give_up();
        }
        self.wake();
    }

    /// What is being made, if there is something.
    pub(crate) fn current(&self) -> Option<Arc<Cloning>> {
        lock(&self.current).cloning.clone()
    }

    /// Gives up what is being made: changes wait for it no more, and it will
    /// not be whole. False if there is nothing, or it is whole already.
    pub(crate) fn give_up(&self, reason: &'static str) -> bool {
        let Some(cloning) = self.current() else {
            return false;
        };
        let _first = cloning.reason.set(reason);
        let given_up = cloning.pending.give_up();
        // Under the lock, so that whoever is about to wait is told.
        drop(lock(&cloning.demands));
        cloning.asked.notify_all();
        self.wake();
        given_up
    }

    /// Waits until nothing is being made, but no longer than this.
    pub(crate) fn wait_for_end(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut current = lock(&self.current);
        while current.cloning.is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.ended.wait_timeout(current, left);
            current = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has workers look again whose requests wait.
    pub(crate) fn wake(&self) {
        // Who says that it waits looks once more afterwards.
        fence(Ordering::SeqCst);
        for waiter in lock(&self.waiters).iter() {
            if waiter.waits.swap(false, Ordering::SeqCst) {
                sys::event_set(&waiter.event);
            }
        }
    }
}

impl Cloning {
    /// What somebody waits for longest; `None` if nobody does. What of it is
    /// to be cloned then is told by [`has_passed`](Self::has_passed).
    pub(crate) fn demanded(&self) -> Option<Demand> {
        let mut demands = lock(&self.demands);
        while let Some(Demand { range, since }) = demands.pop_front() {
            let Some(piece) = self.pending.piece(&range, 1) else {
                // It was cloned for somebody else.
                self.note_wait(since);
                continue;
            };
            let range = piece.start.max(range.start)..range.end;
            return Some(Demand { range, since });
        }
        None
    }

    /// What was demanded has been cloned until `end`: for the rest somebody
    /// waits on, behind others, so that a short demand does not wait for a long
    /// one.
    pub(crate) fn has_passed(&self, demand: Demand, end: u64) {
        self.note_wait(demand.since);
        if demand.range.end > end {
            let range = end..demand.range.end;
            let since = demand.since;
            lock(&self.demands).push_back(Demand { range, since });
        }
    }

    /// Somebody has waited since then.
    fn note_wait(&self, since: Instant) {
        let time = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest.fetch_max(time, Ordering::Relaxed);
    }

    /// The longest that a request has waited, or a little more.
    pub(crate) fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }

    /// Waits until something is demanded, it is given up, or `until`.
    pub(crate) fn rest(&self, until: Instant) {
        let mut demands = lock(&self.demands);
        while demands.is_empty() && !self.pending.is_given_up() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.asked.wait_timeout(demands, left);
            demands = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Requests that had to wait so far.
    pub(crate) fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// Why it was given up.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason.get().copied().unwrap_or("it was given up")
    }

    /// Asks for a range to be cloned soon; whether there was room for that.
    fn demand(&self, range: Range<u64>) -> bool {
        let mut demands = lock(&self.demands);
        if demands.len() >= DEMANDS {
            return false;
        }
        self.waited.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        demands.push_back(Demand { range, since });
        drop(demands);
        self.asked.notify_one();
        true
    }
}

/// One worker's look at the clone that is being made.
#[derive(Debug)]
pub(super) struct Gate {
    clones: Arc<Clones>,
    number: u64,
    cloning: Option<Arc<Cloning>>,
    waiter: Arc<Waiter>,
    without: bool,
}

/// What a change has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// It may be begun.
    Open,
    /// It waits, and its worker is woken.
    Closed,
    /// It waits, and looks again soon by itself.
    Full,
}

impl Gate {
    /// # Errors
    /// The host refuses a descriptor.
    pub(super) fn new(clones: &Arc<Clones>) -> io::Result<Self> {
        let waiter = Arc::new(Waiter {
            waits: AtomicBool::new(false),
            event: sys::event()?,
        });
        lock(&clones.waiters).push(Arc::clone(&waiter));
        Ok(Self {
            clones: Arc::clone(clones),
            number: 0,
            cloning: None,
            waiter,
            without: switches::left_out("clonefirst"),
        })
    }

    /// Signalled when a change that waits may be begun.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.waiter.event.as_fd()
    }

    /// The number of the clone that is being made; 0: there is none.
    #[inline(always)]
    pub(super) fn number(&self) -> u64 {
        self.clones.number.load(Ordering::Acquire)
    }

    /// Whether a change of `range` may be begun while the clone of this number
    /// is made; `asked` is the last one of which the request has demanded
    /// something.
    #[cold]
    pub(super) fn pass(&mut self, number: u64, range: Range<u64>, asked: &mut u64) -> Passage {
        if self.number != number {
            self.cloning = self.clones.current();
            self.number = number;
        }
        let Some(cloning) = &self.cloning else {
            return Passage::Open;
        };
        if self.without || !cloning.pending.touches(&range) {
            return Passage::Open;
        }
        let has_room = *asked == number || cloning.demand(range.clone());
        if has_room {
            *asked = number;
        }
        self.waiter.waits.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        match cloning.pending.touches(&range) {
            false => Passage::Open,
            true if has_room => Passage::Closed,
            true => Passage::Full,
        }
    }

    /// Forgets a clone that is over.
    pub(super) fn rest(&mut self) {
        if self.cloning.is_some() && self.number() != self.number {
            self.cloning = None;
            self.number = 0;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        lock(&self.clones.waiters).retain(|one| !Arc::ptr_eq(one, &self.waiter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 64 << 10;

    #[test]
    fn a_change_waits_until_its_range_is_cloned_and_its_worker_is_woken() {
        let clones = Arc::new(Clones::default());
        let mut gate = Gate::new(&clones).unwrap();
        assert_eq!(gate.number(), 0);
        let cloning = clones.begin(8 * UNIT);
        let number = gate.number();
        let mut asked = 0;
        let range = UNIT..UNIT + 512;
        for _ in 0..2 {
            let passage = gate.pass(number, range.clone(), &mut asked);
            assert_eq!(passage, Passage::Closed);
        }
        assert!(!sys::event_take(&gate.event()));
        assert_eq!(cloning.waited(), 1, "it asks once");
        let demand = cloning.demanded().unwrap();
        assert_eq!(demand.range, range);
        let piece = UNIT..2 * UNIT;
        cloning
            .pending
            .pass(&piece, None, || Ok::<_, ()>(()))
            .unwrap();
        clones.wake();
        assert!(sys::event_take(&gate.event()));
        assert_eq!(gate.pass(number, range, &mut asked), Passage::Open);
        cloning.has_passed(demand, piece.end);
        assert_eq!(cloning.demanded(), None);
    }

    #[test]
    fn demands_get_their_pieces_in_turn_and_nobody_asks_beyond_the_room() {
        let clones = Arc::new(Clones::default());
        let mut gate = Gate::new(&clones).unwrap();
        let cloning = clones.begin(8 * UNIT);
        let number = gate.number();
        for range in [0..4 * UNIT, 6 * UNIT..7 * UNIT] {
            assert_eq!(gate.pass(number, range, &mut 0), Passage::Closed);
        }
        let mut pieces = Vec::new();
        while let Some(demand) = cloning.demanded() {
            let end = demand.range.end.min(demand.range.start + 2 * UNIT);
            pieces.push(demand.range.start / UNIT..end / UNIT);
            cloning.has_passed(demand, end);
        }
        assert_eq!(pieces, [0..2, 6..7, 2..4]);
        for _ in 0..DEMANDS {
            assert_eq!(gate.pass(number, 0..1, &mut 0), Passage::Closed);
        }
        assert_eq!(gate.pass(number, 0..1, &mut 0), Passage::Full);
    }

    #[test]
    fn what_is_given_up_or_over_keeps_nobody_waiting() {
        let clones = Arc::new(Clones::default());
        let mut gate = Gate::new(&clones).unwrap();
        for ends in [false, true] {
            let cloning = clones.begin(UNIT);
            let number = gate.number();
            assert_eq!(gate.pass(number, 0..1, &mut 0), Passage::Closed);
            if ends {
                clones.end();
                assert!(!clones.give_up("too late"));
            } else {
                assert!(clones.give_up("why"));
                assert_eq!(cloning.reason(), "why");
                cloning.rest(Instant::now() + Duration::from_secs(600));
            }
            assert!(sys::event_take(&gate.event()));
            assert_eq!(gate.pass(number, 0..1, &mut 0), Passage::Open);
            clones.end();
            clones.wait_for_end(Duration::from_secs(600));
            assert_eq!(gate.number(), 0);
            gate.rest();
            assert!(gate.cloning.is_none());
        }
    }
}
