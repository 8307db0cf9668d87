//! Clones an image piece by piece as it was at one moment, while it goes on
//! being changed: first what somebody waits for, and else from its beginning to
//! its end.
//!
//! The file system lets nobody change the image by the file while it clones a
//! piece, and takes some 11 us for each extent. So pieces are short where
//! extents are, and after each that nobody has demanded is a rest as long.

use std::fs::File;
use std::time::{Duration, Instant};

use mapping::Map;

use super::{Part, SnapshotError};
use crate::block_io::clones::{Clones, Cloning};
use crate::host::switches;

/// After a piece that took less the next one is larger.
const SHORT: Duration = Duration::from_micros(250);
/// After one that took more it is smaller.
const LONG: Duration = Duration::from_millis(1);
/// The largest pieces, in bytes: where all extents are single blocks for once,
/// one takes 3 and 6 ms.
const MOST_DEMANDED: u64 = 1 << 20;
const MOST_AHEAD: u64 = 2 << 20;

/// The pieces of a clone.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pieces {
    /// Cloned because somebody waited for them.
    pub demanded: u64,
    /// Cloned before anybody did.
    pub ahead: u64,
}

/// How much is cloned at a time.
struct Pace {
    bytes: u64,
    least: u64,
    most: u64,
}

impl Pace {
    fn new(least: u64, most: u64) -> Self {
        Self {
            bytes: least,
            least,
            most: most.max(least),
        }
    }

    /// A piece of so many bytes took so long.
    fn note(&mut self, bytes: u64, took: Duration) {
        if took > LONG {
            self.bytes = (self.bytes / 2).max(self.least);
        } else if took < SHORT && bytes >= self.bytes {
            self.bytes = self.bytes.saturating_mul(2).min(self.most);
        }
    }
}

/// What takes part in a clone.
#[derive(Clone, Copy)]
pub(crate) struct Cloner<'a> {
    pub part: &'a Part<'a>,
    pub image: &'a File,
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
        let mut demanded = Pace::new(pending.unit(), MOST_DEMANDED);
        let mut ahead = Pace::new(pending.unit(), MOST_AHEAD);
        let mut pieces = Pieces::default();
        let mut at = 0;
        let least_rest = switches::clone_rest();
        let mut rests_until = Instant::now();
        while !pending.is_given_up() {
            if let Some((piece, since)) = self.cloning.demanded(demanded.bytes) {
                let took = self.clone_piece(&piece)?;
                self.cloning.note_wait(since);
                demanded.note(piece.end - piece.start, took);
                pieces.demanded += 1;
            } else if Instant::now() < rests_until {
                self.cloning.rest(rests_until);
            } else if let Some(piece) = pending.piece(&(at..pending.size()), ahead.bytes) {
                let took = self.clone_piece(&piece)?;
                ahead.note(piece.end - piece.start, took);
                pieces.ahead += 1;
                at = piece.end;
                rests_until = Instant::now() + took.max(least_rest);
            } else if pending.is_whole() {
                return Ok(pieces);
            }
        }
        Err(SnapshotError::GivenUp {
            name: self.part.name().to_owned(),
            reason: self.cloning.reason(),
        })
    }

    /// How long it took.
    fn clone_piece(&self, piece: &std::ops::Range<u64>) -> Result<Duration, SnapshotError> {
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
    fn pieces_grow_while_they_are_short_and_shrink_when_they_are_long() {
        let mut pace = Pace::new(64, 200);
        pace.note(32, Duration::ZERO);
        assert_eq!(pace.bytes, 64, "a short piece says nothing of longer ones");
        for bytes in [128, 200, 200] {
            pace.note(pace.bytes, Duration::ZERO);
            assert_eq!(pace.bytes, bytes);
        }
        pace.note(200, SHORT);
        assert_eq!(pace.bytes, 200);
        for bytes in [100, 64, 64] {
            pace.note(1, LONG * 2);
            assert_eq!(pace.bytes, bytes);
        }
    }
}
