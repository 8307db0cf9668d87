//! From a request and the extents under it to an ordered list of pieces, each
//! with a way to go: pure arithmetic, no I/O.
//!
//! | extent | read | write | zeros without freeing |
//! |---|---|---|---|
//! | written | disk | disk | disk |
//! | shared | disk | file | file |
//! | unwritten, hole | zeros, no I/O | file | nothing to do |
//! | opaque, not aligned, not loaded | file | file | file |
//!
//! A write goes by the disk as a whole or not at all: one that reaches beyond
//! written extents changes the map, and the caller has to hold its range.

use std::ops::Range;

use super::claim::Claim;
use crate::{Kind, Lookup};

/// Most pieces of a plan.
pub const MAX_PIECES: usize = 8;

/// What becomes of a request over more extents than a plan has pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// It goes by the file, which puts all of them in flight at once.
    Whole,
    /// Its first pieces are planned, and the rest when those are done: slower,
    /// but without the file system.
    Part,
}

/// How a piece goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the block device, at this byte offset.
    Disk(u64),
    /// To the image, at its own offset.
    File,
    /// Nowhere: it reads as zeros.
    Zeros,
}

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// How it goes.
    pub way: Way,
    /// Where it begins in the image, in bytes.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

/// The pieces of a request, in order, and its claim: nobody gets the file, and no block of it is given away, before
/// this is released, dropped or planned anew. That is done when the I/O has ended. Reused from request to request.
#[derive(Debug)]
pub struct Plan {
    pieces: [Piece; MAX_PIECES],
    count: usize,
    /// Of the generation that it was planned in, if any of it goes to the device.
    pub(super) claim: Option<Claim>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            pieces: [Piece {
                way: Way::File,
                start: 0,
                end: 0,
            }; MAX_PIECES],
            count: 0,
            claim: None,
        }
    }
}

/// What raw I/O on the device takes, in bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawAlign {
    /// Of offsets and lengths of reads.
    pub read: u64,
    /// Of offsets and lengths of writes.
    pub write: u64,
}

impl Plan {
    /// All of a request goes by the file.
    #[inline]
    pub(super) fn by_file(&mut self, range: Range<u64>) {
        self.release();
        self.add(range.start, Way::File, range.end);
    }

    /// Nothing is planned any more, nor in flight by this plan.
    #[inline]
    pub fn release(&mut self) {
        self.count = 0;
        self.claim = None;
    }

    /// The pieces.
    #[inline]
    pub fn pieces(&self) -> &[Piece] {
        self.pieces.get(..self.count).unwrap_or_default()
    }

    /// The piece that the byte at `offset` of the image is in; none behind
    /// the last.
    #[inline]
    pub fn piece_at(&self, offset: u64) -> Option<Piece> {
        self.pieces()
            .iter()
            .copied()
            .find(|piece| offset < piece.end)
    }

    /// Some piece goes where the map says, or nowhere because it says so.
    #[inline]
    pub(crate) fn uses_map(&self) -> bool {
        self.pieces().iter().any(|piece| piece.way != Way::File)
    }

    /// Some piece goes to the device.
    #[inline]
    pub(crate) fn uses_disk(&self) -> bool {
        self.pieces()
            .iter()
            .any(|piece| matches!(piece.way, Way::Disk(_)))
    }

    /// Appends a piece, or makes the last one longer; false if there is no
    /// room.
    #[inline]
    fn add(&mut self, start: u64, way: Way, end: u64) -> bool {
        if let Some(last) = self.count.checked_sub(1).map(|at| &mut self.pieces[at]) {
            let goes_on = match (last.way, way) {
                (Way::File, Way::File) | (Way::Zeros, Way::Zeros) => true,
                (Way::Disk(first), Way::Disk(next)) => {
                    first.checked_add(last.end - last.start) == Some(next)
                }
                _ => false,
            };
            if goes_on {
                last.end = end;
                return true;
            }
        }
        let Some(free) = self.pieces.get_mut(self.count) else {
            return false;
        };
        *free = Piece { way, start, end };
        self.count += 1;
        true
    }
}

/// Plans how to read the bytes `range` of the image.
#[inline]
pub(crate) fn read(
    range: Range<u64>,
    align: RawAlign,
    room: Room,
    lookup: impl FnMut(u64) -> Lookup,
    plan: &mut Plan,
) {
    let way = |kind, disk| match kind {
        Kind::Written | Kind::Shared => Way::Disk(disk),
        Kind::Unwritten | Kind::Hole => Way::Zeros,
        Kind::Opaque(_) => Way::File,
    };
    if !fill(plan, &range, align.read, room, way, lookup) {
        plan.by_file(range);
    }
}

/// Plans how to change the bytes `range` of the image straight on the device; false if that is the file system's to do.
/// Where nothing was written yet, a write goes by the file ([`Way::File`]), and zeros need nothing ([`Way::Zeros`]):
/// `empty`.
#[inline]
pub(crate) fn change(
    range: Range<u64>,
    align: RawAlign,
    room: Room,
    empty: Way,
    lookup: impl FnMut(u64) -> Lookup,
    plan: &mut Plan,
) -> bool {
    let way = |kind, disk| match kind {
        Kind::Written => Way::Disk(disk),
        Kind::Unwritten | Kind::Hole => empty,
        Kind::Shared | Kind::Opaque(_) => Way::File,
    };
    fill(plan, &range, align.write, room, way, lookup) && all_but_file(plan)
}

#[inline]
fn all_but_file(plan: &Plan) -> bool {
    plan.pieces().iter().all(|piece| piece.way != Way::File)
}

/// Nothing in `range` has a place on the disk: there is nothing to free.
pub(crate) fn is_hole(range: Range<u64>, mut lookup: impl FnMut(u64) -> Lookup) -> bool {
    let mut at = range.start;
    while at < range.end {
        match lookup(at) {
            Lookup::Found(extent) if extent.kind == Kind::Hole && extent.end() > at => {
                at = extent.end();
            }
            _ => return false,
        }
    }
    true
}

/// False if there are too many pieces for all of the range.
#[inline]
fn fill(
    plan: &mut Plan,
    range: &Range<u64>,
    align: u64,
    room: Room,
    way: impl Fn(Kind, u64) -> Way,
    mut lookup: impl FnMut(u64) -> Lookup,
) -> bool {
    plan.release();
    let mut at = range.start;
    while at < range.end {
        let (chosen, end) = match lookup(at) {
            // An extent that does not contain what was looked up says nothing.
            Lookup::Found(extent) if extent.start <= at && extent.end() > at => {
                let end = extent.end().min(range.end);
                let disk = extent.disk.checked_add(at - extent.start);
                let chosen = disk.map_or(Way::File, |disk| way(extent.kind, disk));
                match chosen {
                    Way::Disk(disk) if !(disk | at | end).is_multiple_of(align) => (Way::File, end),
                    chosen => (chosen, end),
                }
            }
            // All of a window that is not loaded is looked up but once.
            _ => (Way::File, range.end),
        };
        if !plan.add(at, chosen, end) {
            return room == Room::Part;
        }
        at = end;
    }
    true
}

#[cfg(test)]
mod tests;
