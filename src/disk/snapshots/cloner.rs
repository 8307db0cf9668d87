//! Clones an image piece by piece as it was at one moment, while it goes on
//! being changed: first what somebody waits for, and else from its beginning to
//! its end.
//!
//! The file system lets nobody change the image by the file while it clones a
//! piece: it takes some 11 us for each extent, and where others write by the
//! file it waits for them besides. So pieces have few extents, and are as long
//! as that allows; after each that nobody has demanded is a rest as long.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mapping::{ExtentSource, Fiemap, Map, Pending};

use super::{Part, SnapshotError};
use crate::block_io::clones::{Clones, Cloning};
use crate::host::switches;

/// Extents of a piece that somebody waits for, and of others; one that goes
/// beyond has as few blocks as can be cloned.
const MOST_DEMANDED: u64 = 32;
const MOST_AHEAD: u64 = 64;
/// Bytes of the largest piece. Extents are counted in what may have been as
/// sparse as the piece before and is not, which should not take long.
const LARGEST: u64 = 8 << 20;

/// The pieces of a clone.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pieces {
    /// Cloned because somebody waited for them.
    pub demanded: u64,
    /// Cloned before anybody did.
    pub ahead: u64,
}

/// How much is cloned at a time: what has so many extents at most.
struct Pace {
    bytes: u64,
    extents: u64,
}

impl Pace {
    fn new(pending: &Pending, extents: u64) -> Self {
        Self {
            bytes: pending.unit(),
            extents,
        }
    }

    /// The piece with the first pending byte from `at` on; `None` if nothing
    /// is pending there. Pieces are aligned, so that those that are demanded
    /// here and there leave no scraps between them. `count` tells how many
    /// extents a range has.
    fn piece(
        &mut self,
        pending: &Pending,
        at: u64,
        mut count: impl FnMut(Range<u64>) -> u64,
    ) -> Option<Range<u64>> {
        loop {
            let first = pending.piece(&(at..pending.size()), 1)?;
            let aligned = first.start - first.start % self.bytes;
            let around = pending.piece(&(aligned..aligned + self.bytes), self.bytes);
            let piece = around
                .filter(|around| around.contains(&first.start))
                .or_else(|| pending.piece(&(first.start..aligned + self.bytes), self.bytes))?;
            let extents = count(piece.clone());
            let smallest = self.bytes <= pending.unit();
            if extents > self.extents && !smallest {
                self.bytes /= 2;
                continue;
            }
            let is_full = piece.end - piece.start >= self.bytes;
            if is_full && extents <= self.extents / 2 && self.bytes < LARGEST {
                // The next one.
                self.bytes *= 2;
            }
            return Some(piece);
        }
    }
}

/// What takes part in a clone.
#[derive(Clone, Copy)]
pub(crate) struct Cloner<'a> {
    pub part: &'a Part<'a>,
    pub image: &'a Arc<File>,
    /// Of the image's extents, where there is one.
    pub map: Option<&'a Map>,
    pub clones: &'a Clones,
    pub cloning: &'a Cloning,
}

impl Cloner<'_> {
    /// Clones the last unit, which makes the part as long as the image is; it
    /// may end within a block, behind which the image can grow from then on. To
    /// be called while nothing is in flight.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn clone_end(&self) -> Result<(), SnapshotError> {
        let size = self.cloning.pending.size();
        match self
            .cloning
            .pending
            .piece(&(size.saturating_sub(1)..size), 1)
        {
            Some(piece) => self.clone_piece(&piece).map(drop),
            None => Ok(()),
        }
    }

    /// Clones all that is pending.
    ///
    /// # Errors
    /// What the file system says, or it was given up.
    pub(crate) fn clone_rest(&self) -> Result<Pieces, SnapshotError> {
        let pending = &self.cloning.pending;
        let source = Fiemap::new(Arc::clone(self.image));
        // Where it cannot be told, as few as can be.
        let count = |range| source.count(range).unwrap_or(u64::MAX);
        let mut demanded = Pace::new(pending, MOST_DEMANDED);
        let mut ahead = Pace::new(pending, MOST_AHEAD);
        let mut pieces = Pieces::default();
        let mut at = 0;
        let least_rest = switches::clone_rest();
        let mut rests_until = Instant::now();
        while !pending.is_given_up() {
            if let Some(demand) = self.cloning.demanded() {
                // Nobody else lets anything pass.
                let Some(piece) = demanded.piece(pending, demand.range.start, count) else {
                    continue;
                };
                self.clone_piece(&piece)?;
                self.cloning.has_passed(demand, piece.end);
                pieces.demanded += 1;
            } else if Instant::now() < rests_until {
                self.cloning.rest(rests_until);
            } else if let Some(piece) = ahead.piece(pending, at, count) {
                let took = self.clone_piece(&piece)?;
                pieces.ahead += 1;
                at = piece.end;
                rests_until = Instant::now() + took.max(least_rest);
            } else if pending.is_whole() {
                return Ok(pieces);
            } else {
                at = 0;
            }
        }
        Err(SnapshotError::GivenUp {
            name: self.part.name().to_owned(),
            reason: self.cloning.reason(),
        })
    }

    /// How long it took.
    fn clone_piece(&self, piece: &Range<u64>) -> Result<Duration, SnapshotError> {
        let begun = Instant::now();
        let clone = || self.part.clone_range(self.image, piece);
        self.cloning.pending.pass(piece, self.map, clone)?;
        let took = begun.elapsed();
        self.clones.wake();
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_few_extents_and_grow_where_these_are_long() {
        let pending = Pending::new(64 << 20);
        let unit = pending.unit();
        let mut pace = Pace::new(&pending, 32);
        let mut lengths = Vec::new();
        let mut at = 0;
        // Extents of 1 MiB, and from 16 MiB on of 4 KiB.
        let count = |range: Range<u64>| {
            let fine =
                range.end.max(16 << 20) - range.start.max(16 << 20).min(range.end.max(16 << 20));
            (range.end - range.start - fine.min(range.end - range.start)).div_ceil(1 << 20)
                + fine / 4096
        };
        while at < 20 << 20 {
            let piece = pace.piece(&pending, at, count).unwrap();
            assert_eq!(piece.start, at);
            let passed: Result<(), ()> = pending.pass(&piece, None, || Ok(()));
            passed.unwrap();
            at = piece.end;
            lengths.push((piece.end - piece.start) / unit);
        }
        assert_eq!(lengths[..9], [1, 1, 2, 4, 8, 16, 32, 64, 128]);
        assert!(
            lengths[10..].iter().all(|length| *length <= 2),
            "{lengths:?}"
        );
        assert_eq!(pace.piece(&pending, 64 << 20, count), None);
    }

    #[test]
    fn pieces_that_are_demanded_leave_nothing_between_them() {
        let pending = Pending::new(4 << 20);
        let unit = pending.unit();
        let mut pace = Pace::new(&pending, 32);
        pace.bytes = 4 * unit;
        let mut take = |unit_number: u64| {
            let piece = pace
                .piece(&pending, unit_number * unit + 512, |_| 32)
                .unwrap();
            let passed: Result<(), ()> = pending.pass(&piece, None, || Ok(()));
            passed.unwrap();
            piece.start / unit..piece.end / unit
        };
        assert_eq!(take(6), 4..8);
        assert_eq!(take(11), 8..12);
        assert_eq!(take(3), 0..4);
        pace.bytes = unit;
        let _one = pace
            .piece(&pending, 13 * unit, |_| 32)
            .map(|piece| pending.pass(&piece, None, || Ok::<_, ()>(())));
        pace.bytes = 4 * unit;
        // One of the four has passed.
        let behind = pace.piece(&pending, 14 * unit, |_| 32);
        assert_eq!(behind, Some(14 * unit..16 * unit));
    }

    #[test]
    fn a_unit_is_cloned_however_many_extents_it_has() {
        let pending = Pending::new(1 << 20);
        let mut pace = Pace::new(&pending, 4);
        let piece = pace.piece(&pending, 0, |_| u64::MAX);
        assert_eq!(piece, Some(0..pending.unit()));
    }
}
