//! Gives the image blocks of its own while it is served, a piece at a time and
//! from its end to its beginning.
//!
//! What files share is read raw and never written raw, so that only reads can be
//! in flight where a piece moves. Each piece is held, which takes it out of the
//! map and keeps changes by the file away; once no raw read of it is in flight
//! its shared parts are copied, and it is let go: whoever wants it finds its new
//! places. Blocks that are given back by that are read by nobody any more.
//!
//! Backwards, because XFS looks after each part whether anything in the file is
//! shared still, extent by extent from the beginning to the first one that is.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mapping::{DiskPath, ExtentSource, Fiemap, Hold, Kind, sharing};
use rustix::fs::Advice;

use super::Disk;
use crate::host::{switches, sys};
use crate::options::size;

/// Bytes whose extents are asked for at a time.
const STRETCH: u64 = 4 << 20;
/// Bytes of a piece, at least where so much is shared, and at most. The least
/// is no less than a block of any file system.
const SMALLEST: u64 = 64 << 10;
const LARGEST: u64 = 1 << 20;
/// Shared extents of a piece.
const MOST_EXTENTS: usize = 32;
/// A piece that took longer is followed by smaller ones, one that took no longer
/// than half of it by larger ones: nobody uses the image by the file meanwhile.
const LONG: Duration = Duration::from_millis(3);
/// How long requests are waited for that are in flight where a piece is.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why sharing is not ended, or not to its end: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnshareError {
    /// A disk that is offered read-only is not changed.
    #[error("unshare: the disk is read-only: start extentd without --read-only")]
    ReadOnly,
    /// Only files share blocks.
    #[error("unshare: the image is a block device, which shares no blocks")]
    Device,
    /// Nothing is shared under its lease.
    #[error("unshare: the disk is swap-grade: what it shares ends whenever its lease is taken")]
    SwapGrade,
    /// Only XFS can.
    #[error(
        "unshare: the image's file system cannot end sharing in place, only XFS (made with reflink=1) can: copy the image whole while no guest uses it (cp --reflink=never --sparse=always)"
    )]
    NoUnshare,
    /// It would be full before the end.
    #[error(
        "unshare: {} are shared, and its file system has {} free: make room on it",
        size::display(*shared),
        size::display(*free)
    )]
    NoRoom {
        /// Bytes that are shared.
        shared: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The host refuses.
    #[error("unshare: {source}{}", remedy(source))]
    Host {
        /// What it says.
        #[from]
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            ": make room on the image's file system, and run it again: what is done stays done"
        }
        _ => "",
    }
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes of it are the image's own now.
    Unshared(u64),
    /// Requests are in flight there: it is tried again.
    Busy,
}

/// The way through an image, from its end to its beginning.
#[derive(Debug)]
pub(crate) struct Walk {
    source: Fiemap,
    /// What lies behind is done.
    at: u64,
    pace: Pace,
}

impl Walk {
    /// Through all of what the image of `disk` shares, and how many bytes that
    /// are.
    ///
    /// # Errors
    /// It cannot be, or the file system has too little room.
    pub(crate) fn begin(disk: &Disk) -> Result<(Self, u64), UnshareError> {
        if disk.block_device {
            return Err(UnshareError::Device);
        }
        if disk.options.read_only {
            return Err(UnshareError::ReadOnly);
        }
        if disk.options.swap.is_some() {
            return Err(UnshareError::SwapGrade);
        }
        if !sharing::can_share(&disk.image)? {
            return Err(UnshareError::NoUnshare);
        }
        let walk = Self {
            source: Fiemap::new(Arc::clone(&disk.image)),
            at: disk.image_bytes()?,
            pace: Pace(SMALLEST),
        };
        let shared = walk.left(disk)?;
        let free = sys::filesystem_free(&disk.image)?;
        if shared > free {
            return Err(UnshareError::NoRoom { shared, free });
        }
        Ok((walk, shared))
    }

    /// Bytes that the image shares now, wherever they are.
    ///
    /// # Errors
    /// The file system does not tell.
    pub(crate) fn left(&self, disk: &Disk) -> io::Result<u64> {
        let parts = self.shared(0..disk.image_bytes()?)?;
        Ok(parts.iter().map(|part| part.end - part.start).sum())
    }

    /// The next piece, which nothing is done with yet; `None` if nothing more is
    /// shared, or it is not to `go_on`.
    ///
    /// # Errors
    /// The file system does not tell its extents.
    pub(crate) fn next(
        &mut self,
        go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<Option<Range<u64>>> {
        while self.at > 0 && go_on() {
            let start = (self.at - 1) / STRETCH * STRETCH;
            if let Some(piece) = self.pace.piece(&self.shared(start..self.at)?) {
                return Ok(Some(piece));
            }
            self.at = start;
        }
        Ok(None)
    }

    /// Gives a piece blocks of its own. To be called while nothing else changes
    /// the image's length or clones it.
    ///
    /// # Errors
    /// What the file system says. Each block is shared still, or the image's
    /// own, and has the same data.
    pub(crate) fn unshare(&mut self, disk: &Disk, piece: &Range<u64>) -> io::Result<Step> {
        let begun = Instant::now();
        let path = disk.disk_path().ok();
        let held = match path.filter(|_| !switches::left_out("unsharehold")) {
            Some(path) => match hold(path, piece) {
                Some(held) => Some(held),
                None => {
                    self.pace.took(Duration::MAX);
                    return Ok(Step::Busy);
                }
            },
            None => None,
        };
        let mut bytes = 0;
        // As it is now that nobody changes it: in a hole it would allocate.
        let mut parts = Vec::new();
        for part in self.shared(piece.clone())? {
            sharing::append(&mut parts, part);
        }
        for part in parts {
            let moved = sharing::unshare(&disk.image, &part);
            // Before anybody can write raw where it lies now, and whatever came of it.
            if !switches::left_out("unsharecount") {
                disk.shared.changed();
            }
            let length = part.end - part.start;
            let all = std::num::NonZero::new(length);
            // It was read into the page cache. What stays there keeps the part out of the map.
            if let Err(error) = rustix::fs::fadvise(&disk.image, part.start, all, Advice::DontNeed)
            {
                log::debug!("pages of the image stay in its cache: {error}");
            }
            moved?;
            bytes += length;
        }
        drop(held);
        self.pace.took(begun.elapsed());
        self.at = piece.start;
        Ok(Step::Unshared(bytes))
    }

    /// What of `range` is shared, extent by extent.
    fn shared(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut parts = Vec::new();
        self.source.fill(range.clone(), &mut |extent| {
            let extent_range = extent.range();
            let part = extent_range.start.max(range.start)..extent_range.end.min(range.end);
            if extent.kind == Kind::Shared && !part.is_empty() {
                parts.push(part);
            }
            ControlFlow::Continue(())
        })?;
        Ok(parts)
    }
}

/// Keeps a piece as it is once nobody changes it and no raw read of it is in
/// flight; `None` if that takes long.
fn hold(path: &DiskPath, piece: &Range<u64>) -> Option<Hold> {
    let until = Instant::now() + PATIENCE;
    // Somebody has it for long, or the image is shorter by now.
    let hold = path.map().hold_within(piece, PATIENCE).ok()?;
    let left = until.saturating_duration_since(Instant::now());
    hold.fence().wait(left).then_some(hold)
}

/// How long so many bytes take.
pub(crate) fn time_for(bytes: u64, rate: Option<u64>) -> Duration {
    let Some(rate) = rate else {
        return Duration::ZERO;
    };
    let ns = u128::from(bytes).saturating_mul(1_000_000_000);
    let ns = ns.checked_div(u128::from(rate)).unwrap_or(u128::MAX);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// How many shared bytes a piece may have.
#[derive(Debug)]
struct Pace(u64);

impl Pace {
    /// The last piece of these shared parts; `None` if there are none.
    fn piece(&self, parts: &[Range<u64>]) -> Option<Range<u64>> {
        let end = parts.last()?.end;
        let (mut start, mut left) = (end, self.0);
        for part in parts.iter().rev().take(MOST_EXTENTS) {
            let length = part.end - part.start;
            if length >= left {
                // Whole blocks.
                let cut = (part.end - left) / SMALLEST * SMALLEST;
                start = cut.max(part.start);
                break;
            }
            start = part.start;
            left -= length;
        }
        Some(start..end)
    }

    /// A piece has taken so long.
    fn took(&mut self, time: Duration) {
        if time > LONG {
            self.0 = (self.0 / 2).max(SMALLEST);
        } else if time <= LONG / 2 {
            self.0 = (self.0 * 2).min(LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = SMALLEST;

    #[test]
    fn pieces_are_taken_from_the_end_and_are_whole_blocks() {
        let mut pace = Pace(UNIT);
        assert_eq!(pace.piece(&[]), None);
        let of = |end| std::iter::once(0..end).collect::<Vec<_>>();
        let one = pace.piece(&of(10 * UNIT));
        assert_eq!(one, Some(9 * UNIT..10 * UNIT));
        // The end of a file, within a block.
        let end = 10 * UNIT + 512;
        assert_eq!(pace.piece(&of(end)), Some(9 * UNIT..end));
        pace.0 = 2 * UNIT;
        let parts = [0..4 * UNIT, 5 * UNIT..5 * UNIT + 4096, 9 * UNIT..10 * UNIT];
        assert_eq!(pace.piece(&parts), Some(3 * UNIT..10 * UNIT));
        assert_eq!(pace.piece(&parts[1..2]), Some(parts[1].clone()));
    }

    #[test]
    fn a_piece_has_few_extents() {
        let parts: Vec<_> = (0..100).map(|at| at * 8192..at * 8192 + 4096).collect();
        let piece = Pace(LARGEST).piece(&parts).unwrap();
        assert_eq!(piece, parts[100 - MOST_EXTENTS].start..parts[99].end);
    }

    #[test]
    fn pieces_shrink_where_they_take_long_and_grow_where_they_do_not() {
        let mut pace = Pace(UNIT);
        for _ in 0..20 {
            pace.took(LONG / 2);
        }
        assert_eq!(pace.0, LARGEST);
        pace.took(LONG);
        assert_eq!(pace.0, LARGEST);
        pace.took(Duration::MAX);
        assert_eq!(pace.0, LARGEST / 2);
        for _ in 0..20 {
            pace.took(Duration::MAX);
        }
        assert_eq!(pace.0, UNIT);
    }

    #[test]
    fn bytes_take_their_time() {
        assert_eq!(time_for(1 << 30, None), Duration::ZERO);
        assert_eq!(time_for(0, Some(10)), Duration::ZERO);
        assert_eq!(time_for(25, Some(10)), Duration::from_millis(2500));
        assert_eq!(time_for(u64::MAX, Some(1)), Duration::from_nanos(u64::MAX));
    }
}
