//! One worker's use of the disk path: looks extents up, and tells the map
//! which of what it looked up may still be in flight.
//!
//! The map's fences have to cover raw I/O, and file I/O that was begun without
//! holding its range. So each such request *claims* the generation it was
//! planned in, and the worker tells the map that it has passed a moment only
//! when nothing planned before that moment is in flight. There are two
//! generations: an older one that drains, and the current one.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use mapping::{Fence, Hold, Kind, Lookup, Mark, Reader};

use crate::disk_path::DiskPath;
use crate::planner::{self, Plan};
use crate::sys;

/// A thread that has not looked at the clock this long (nanoseconds) may have
/// been stopped for longer than a lease lasts.
const PAUSE: u64 = 1_000_000_000;

/// A request's part in a generation; to be given back by
/// [`release`](Raw::release).
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    odd: bool,
}

#[derive(Debug)]
struct Generation {
    /// Nothing of it was looked up before this.
    since: Mark,
    claims: usize,
}

/// What became of taking a range for a file write.
#[derive(Debug)]
pub enum Secured {
    /// The map knows nothing of it until this is dropped.
    Held(Hold),
    /// The map is not in use, and will not be before the claim is released;
    /// or no write changes it.
    Claimed(Claim),
    /// Another request has part of the range.
    Busy,
}

/// The disk path as one worker has it.
#[derive(Debug)]
pub struct Raw {
    path: Arc<DiskPath>,
    reader: Reader,
    old: Generation,
    current: Generation,
    /// The current generation's claims are odd ones.
    odd: bool,
    /// After how many entries of the path the lease was found lost.
    distrusted: Option<u64>,
    last_turn: u64,
    /// Set when a fence has passed that a request waits for.
    event: Arc<OwnedFd>,
}

impl Raw {
    /// # Errors
    /// Too many workers, or no descriptor.
    pub fn new(path: Arc<DiskPath>) -> std::io::Result<Raw> {
        let mut reader = path.map().reader().map_err(std::io::Error::other)?;
        let since = reader.mark();
        reader.offline();
        let none = || Generation { since, claims: 0 };
        Ok(Raw {
            old: none(),
            current: none(),
            odd: false,
            distrusted: None,
            last_turn: sys::boot_time_ns(),
            event: Arc::new(sys::event()?),
            reader,
            path,
        })
    }

    /// Readable when a request that waited for a fence can go on.
    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// To be called once in each turn, before anything is planned.
    pub fn turn(&mut self) {
        let now = sys::boot_time_ns();
        if now.saturating_sub(std::mem::replace(&mut self.last_turn, now)) > PAUSE
            && self.path.map().enabled()
            && !self.path.lease_is_held()
        {
            self.distrusted = Some(self.path.entries());
        }
        self.pass();
    }

    /// Tells the map what is not in flight any more.
    fn pass(&mut self) {
        if self.old.claims > 0 {
            return;
        }
        let now = self.reader.mark();
        if self.current.claims == 0 {
            self.current.since = now;
        } else if now != self.current.since {
            let newer = Generation {
                since: now,
                claims: 0,
            };
            self.old = std::mem::replace(&mut self.current, newer);
            self.odd = !self.odd;
            // Nothing older than what now drains.
            self.reader.quiescent_since(self.old.since);
            return;
        }
        self.reader.quiescent_since(self.current.since);
    }

    /// The worker is about to sleep.
    pub fn idle(&mut self) {
        if self.old.claims == 0 && self.current.claims == 0 {
            self.reader.offline();
        } else {
            self.pass();
        }
    }

    /// The lease has not been found lost since the path was last entered.
    pub fn trusts(&self) -> bool {
        self.distrusted
            .is_none_or(|entries| entries != self.path.entries())
    }

    /// How to read `range`, and the claim to be held until it was.
    pub fn read(&mut self, range: Range<u64>) -> (Plan, Option<Claim>) {
        if !self.trusts() {
            return (Plan::by_file(range), None);
        }
        let reader = &mut self.reader;
        let plan = planner::read(range, self.path.align(), |at| reader.lookup(at));
        let claim = plan.uses_disk().then(|| self.claim());
        (plan, claim)
    }

    /// How to write `range` raw, if that is possible.
    pub fn write(&mut self, range: Range<u64>) -> Option<(Plan, Claim)> {
        if !self.trusts() {
            return None;
        }
        let reader = &mut self.reader;
        let plan = planner::write(range, self.path.align(), |at| reader.lookup(at))?;
        Some((plan, self.claim()))
    }

    /// How to make `range` read as zeros without the file system, if that is
    /// possible.
    pub fn zeroes(&mut self, range: Range<u64>) -> Option<(Plan, Claim)> {
        if !self.trusts() {
            return None;
        }
        let reader = &mut self.reader;
        let plan = planner::zeroes(range, self.path.align(), |at| reader.lookup(at))?;
        Some((plan, self.claim()))
    }

    /// There is nothing to free in `range`.
    pub fn is_hole(&mut self, range: Range<u64>) -> bool {
        if !self.trusts() {
            return false;
        }
        let reader = &mut self.reader;
        planner::is_hole(range, |at| reader.lookup(at))
    }

    /// A file write to `range` may put data elsewhere than where they are now,
    /// as it does for extents that other files share.
    pub fn may_move(&mut self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while self.path.shares_extents() && at < range.end {
            match self.reader.lookup(at) {
                Lookup::Found(extent)
                    if matches!(extent.kind, Kind::Written | Kind::Unwritten | Kind::Hole)
                        && extent.end() > at =>
                {
                    at = extent.end();
                }
                _ => return true,
            }
        }
        false
    }

    /// Takes `range` away from the map, for a change by the file.
    pub fn secure(&mut self, range: Range<u64>) -> Secured {
        // Online, so that whoever turns the path live waits for our claim.
        self.reader.mark();
        if !self.path.is_live() || self.path.is_fixed() {
            return Secured::Claimed(self.claim());
        }
        match self.path.map().hold(range) {
            Ok(hold) => Secured::Held(hold),
            Err(mapping::Error::Overlap(_)) => Secured::Busy,
            // Beyond the end since a resize: the map knows nothing of it.
            Err(_) => Secured::Claimed(self.claim()),
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

    fn claim(&mut self) -> Claim {
        self.current.claims += 1;
        Claim { odd: self.odd }
    }

    /// What was claimed is not in flight any more.
    pub fn release(&mut self, claim: Claim) {
        let generation = if claim.odd == self.odd {
            &mut self.current
        } else {
            &mut self.old
        };
        generation.claims = generation.claims.saturating_sub(1);
    }
}
