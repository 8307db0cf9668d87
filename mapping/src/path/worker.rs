//! One worker's use of the disk path: looks extents up, and tells the map
//! which of what it looked up may still be in flight.
//!
//! The map's fences have to cover raw I/O, and file I/O that was begun without
//! holding its range. So each such request *claims* the generation it was
//! planned in, and the worker tells the map that it has passed a moment only
//! when nothing planned before that moment is in flight. There are two
//! generations: an older one that drains, and the current one.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::ablation;
use super::claim::{Claim, Generation};
use super::core::Core;
use super::permit::Permit;
use super::planner::{self, Piece, Plan, Way};
use crate::flush::SyncReach;
use crate::sys;
use crate::{Fence, Hold, Kind, Lookup, Reader};

/// How long a look at the lease is good for, in nanoseconds: raw I/O ends this
/// much after somebody has asked for the image, even if the guard is deaf, and
/// a worker that was stopped for longer looks before it goes on.
const LOOK: u64 = 1_000_000_000;

/// Bytes of the largest piece that a page cache holds as one.
const LARGEST_PAGE: u64 = 2 << 20;

/// What became of taking a range for a file write.
#[derive(Debug)]
pub enum Reserved {
    /// The map knows nothing of it until this is dropped.
    Held(Hold),
    /// The map is not in use, and will not be before the claim is released;
    /// or no write changes it.
    Claimed(Claim),
    /// Another request has part of the range.
    Busy,
    /// The file ends before the range does.
    Beyond,
}

/// Measures that are left out.
#[derive(Debug, Clone, Copy)]
struct Without {
    look: bool,
    clock: bool,
    straddle: bool,
    cow: bool,
}

/// The disk path as one thread has it, which makes it and keeps it.
///
/// A thread that waits for its I/O needs [`read_at`](Self::read_at), [`write_at`](Self::write_at) and
/// [`discard`](Self::discard) only. One that has many requests in flight, with a ring, goes round like this:
///
/// 1. [`turn`](Self::turn), before anything is planned.
/// 2. For each request [`plan_read`](Self::plan_read), [`plan_write`](Self::plan_write) or
///    [`plan_zeroes`](Self::plan_zeroes). What is to be changed and has no plan goes by the file: it is
///    [reserved](Self::reserve) first, and if blocks may be given away or moved by it
///    ([`may_relocate`](Self::may_relocate)) the fence of its hold [has to pass](Self::has_passed) before it is begun.
/// 3. [`may_submit`](Self::may_submit) right before raw I/O is given to the kernel, by the system call that the
///    [`Permit`] makes, with `RWF_NOWAIT` so that the kernel keeps none of it for later. If the answer is no, it is
///    planned anew. The *file* is registered in the ring as well as the device: after a kill the lease lasts until the
///    ring has ended.
/// 4. When a request has ended, its plan is [released](Plan::release) or dropped, and its hold is dropped.
/// 5. [`idle`](Self::idle) before the thread sleeps.
///
/// What is forgotten of 1 and 5 keeps others waiting for the file; 3 is where data are at stake.
#[derive(Debug)]
pub struct Worker {
    path: Arc<Core>,
    reader: Reader,
    old: Generation,
    current: Generation,
    /// Guest memory is memory, and not a file of some server: giving a request
    /// to the kernel would wait for its pages, for longer than a lease lasts.
    in_memory: bool,
    /// Which lease was found lost, as [`Core::leases`] counts them.
    distrusted: Option<u64>,
    /// When this turn began, in nanoseconds since the host was booted.
    now: u64,
    /// When the lease was last seen held; 0: not since it was found lost.
    looked: u64,
    /// For the negative controls of tests.
    without: Without,
    /// Set when a fence has passed that a request waits for.
    event: Arc<OwnedFd>,
    /// Whether a sync of the file reaches the disk.
    syncs: SyncReach,
}

impl Worker {
    /// # Errors
    /// Too many workers, or no descriptor.
    pub(super) fn new(path: Arc<Core>) -> io::Result<Worker> {
        let mut reader = path.map().reader().map_err(io::Error::other)?;
        let since = reader.mark();
        reader.offline();
        Ok(Worker {
            old: Generation::new(since),
            current: Generation::new(since),
            in_memory: true,
            distrusted: None,
            now: sys::boot_time_ns(),
            looked: 0,
            without: Without {
                look: ablation::left_out("look"),
                clock: ablation::left_out("clock"),
                straddle: ablation::left_out("straddle"),
                cow: ablation::left_out("cow"),
            },
            event: Arc::new(sys::eventfd()?),
            syncs: path.sync_reach()?,
            reader,
            path,
        })
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.path
    }

    /// Readable when a request that waited for a fence can go on.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// A sync of the file that has just ended has reached the disk. If that is
    /// not known, the device has to be synced as well.
    #[inline]
    pub fn syncs_reach_disk(&self) -> bool {
        self.syncs.reaches_disk()
    }

    /// Drops the clean pages that the device's own cache has of a piece: a
    /// write that must not wait is refused because of them.
    pub fn forget_pages(&self, piece: &Piece) {
        let Way::Disk(start) = piece.way else {
            return;
        };
        // A page is dropped with all that it was read together with.
        let end = (start + (piece.end - piece.start)).next_multiple_of(LARGEST_PAGE);
        let start = start - start % LARGEST_PAGE;
        let device = self.path.device().file();
        let all = std::num::NonZero::new(end - start);
        if let Err(error) = rustix::fs::fadvise(device, start, all, rustix::fs::Advice::DontNeed) {
            log::debug!("pages of the device stay in its cache: {error}");
        }
    }

    /// To be called once in each turn, before anything is planned.
    #[inline]
    pub fn turn(&mut self) {
        self.now = sys::boot_time_ns();
        self.pass();
    }

    /// Tells the map what is not in flight any more.
    #[inline]
    fn pass(&mut self) {
        if self.old.is_claimed() {
            return;
        }
        let now = self.reader.mark();
        if !self.current.is_claimed() {
            self.current.since = now;
        } else if now != self.current.since {
            std::mem::swap(&mut self.old, &mut self.current);
            self.current.since = now;
            // Nothing older than what now drains.
            self.reader.quiescent_since(self.old.since);
            return;
        }
        self.reader.quiescent_since(self.current.since);
    }

    /// The worker is about to sleep.
    #[inline]
    pub fn idle(&mut self) {
        if !self.old.is_claimed() && !self.current.is_claimed() {
            self.reader.offline();
        } else {
            self.pass();
        }
    }

    /// What the map says may be acted upon in this turn: the lease was seen
    /// held within the last second.
    #[inline]
    pub fn trusts(&mut self) -> bool {
        self.trusts_at(self.now)
    }

    /// Raw I/O may be given to the kernel at this very moment, by the system call that the permit makes.
    #[inline]
    pub fn may_submit(&mut self) -> Option<Permit> {
        if self.without.clock {
            return Some(Permit::unconditional());
        }
        // Before the clock is read: what interrupts in between is noticed.
        let permit = Permit::begin();
        self.trusts_at(sys::boot_time_ns()).then_some(permit)
    }

    /// Whether the buffers of requests from now on are memory, which they count as from the start, and not a file of
    /// some server: the I/O would wait for its pages, for longer than a lease lasts, so all of it goes by the file.
    pub fn buffers_are_memory(&mut self, they_are: bool) {
        self.in_memory = they_are;
    }

    #[inline]
    fn trusts_at(&mut self, now: u64) -> bool {
        if !self.in_memory {
            return false;
        }
        if self.distrusted.is_some() && self.distrusted == Some(self.path.leases()) {
            return false;
        }
        now.saturating_sub(self.looked) < LOOK || self.look(now)
    }

    /// Asks the kernel for the lease.
    #[cold]
    fn look(&mut self, now: u64) -> bool {
        if self.without.look {
            return true;
        }
        // In this order: a lease that is taken after it was counted is another.
        let lease = self.path.leases();
        let held = self.path.lease_is_held() && self.path.is_whole();
        self.looked = if held { now } else { 0 };
        self.distrusted = (!held).then_some(lease);
        held
    }

    /// Plans how to read `range`.
    #[inline]
    pub fn plan_read(&mut self, range: Range<u64>, plan: &mut Plan) {
        let reader = &mut self.reader;
        let (align, room) = (self.path.align(), self.path.room());
        planner::read(range.clone(), align, room, |at| reader.lookup(at), plan);
        if plan.uses_map() && !self.trusts() {
            plan.by_file(range);
        } else if plan.uses_disk() {
            plan.claim = Some(self.current.claim());
        }
    }

    /// Plans how to write `range` raw; whether that is possible. If not, the plan is empty.
    #[inline]
    pub fn plan_write(&mut self, range: Range<u64>, plan: &mut Plan) -> bool {
        self.plan_change(range, Way::File, plan)
    }

    /// Plans how to make `range` read as zeros without the file system; whether that is possible. If not, the plan is
    /// empty.
    #[inline]
    pub fn plan_zeroes(&mut self, range: Range<u64>, plan: &mut Plan) -> bool {
        self.plan_change(range, Way::Zeros, plan)
    }

    #[inline]
    fn plan_change(&mut self, range: Range<u64>, empty: Way, plan: &mut Plan) -> bool {
        let reader = &mut self.reader;
        let (align, room) = (self.path.align(), self.path.room());
        let find = |at| reader.lookup(at);
        let planned = self.path.writable
            && planner::change(range, align, room, empty, find, plan)
            && self.trusts();
        if planned {
            plan.claim = Some(self.current.claim());
        } else {
            plan.release();
        }
        planned
    }

    /// There is nothing to free in `range`.
    pub fn is_hole(&mut self, range: Range<u64>) -> bool {
        let reader = &mut self.reader;
        planner::is_hole(range, |at| reader.lookup(at)) && self.trusts()
    }

    /// A file write to `range` may put data elsewhere than where they are now,
    /// although raw I/O may be in flight there. What other files share is
    /// moved, and on XFS what the copy-on-write fork has blocks for: leftovers
    /// of sharing that FIEMAP does not show. Where nothing was written there
    /// is no raw I/O.
    #[inline]
    pub fn may_relocate(&mut self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while self.path.shares_extents() && at < range.end {
            match self.reader.lookup(at) {
                Lookup::Found(extent) if extent.end() > at => match extent.kind {
                    Kind::Unwritten | Kind::Hole => at = extent.end(),
                    Kind::Written if self.without.cow => at = extent.end(),
                    _ => return true,
                },
                _ => return true,
            }
        }
        false
    }

    /// Takes `range` away from the map, for a change by the file, unless that
    /// `is_beyond` the end of the disk.
    #[inline]
    pub fn reserve(&mut self, range: Range<u64>, is_beyond: impl FnOnce() -> bool) -> Reserved {
        // Online, so that whoever turns the path live or shortens the image
        // waits for our claim.
        self.reader.mark();
        if !self.without.straddle && is_beyond() {
            return Reserved::Beyond;
        }
        if !self.path.is_live() || self.path.needs_no_holds() {
            return Reserved::Claimed(self.current.claim());
        }
        match self.path.map().hold(range) {
            Ok(hold) => Reserved::Held(hold),
            Err(crate::Error::Overlap(_)) => Reserved::Busy,
            Err(_) if self.without.straddle => Reserved::Claimed(self.current.claim()),
            // The map is shorter since the disk was asked.
            Err(_) => Reserved::Beyond,
        }
    }

    /// Whether a fence has passed; if not, [`event`](Self::event) tells when,
    /// which it is asked for once (`asked`).
    pub fn has_passed(&mut self, fence: &Fence, asked: &mut bool) -> bool {
        self.pass();
        if fence.passed() {
            return true;
        }
        if !std::mem::replace(asked, true) {
            fence.notify(Arc::clone(&self.event));
        }
        fence.passed()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.old.is_claimed() || self.current.is_claimed() {
            // Fences would not wait for that I/O any more.
            self.path.abandon();
            self.reader.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Config, Map};

    #[test]
    fn fences_wait_for_a_reader_that_was_abandoned() {
        let map = Map::new(1 << 20, Config::default()).unwrap();
        for abandons in [false, true] {
            let mut reader = map.reader().unwrap();
            reader.mark();
            if abandons {
                reader.abandon();
            }
            drop(reader);
            assert_eq!(map.barrier().wait(Duration::ZERO), !abandons);
        }
    }
}
