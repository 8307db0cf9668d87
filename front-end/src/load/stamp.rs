//! What written blocks hold when they are to be verified: every 16 bytes say
//! where they belong and by which write.

use super::error::{LoadError, LoadResult};

/// Bytes of one mark: offset on the disk, then generation.
const MARK: usize = 16;

/// The last writes to the blocks of a range.
#[derive(Debug)]
pub(super) struct Stamps {
    /// Tells this run's writes from those of others.
    run: u64,
    /// By block: how often it was written; 0 if not by this run.
    generations: Box<[u32]>,
    /// By block: a request is in flight.
    busy: Box<[bool]>,
    /// One block, as it is written or was read.
    scratch: Box<[u8]>,
}

fn index(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

impl Stamps {
    /// For `blocks` blocks of `size` bytes, a multiple of 16.
    pub(super) fn new(run: u32, blocks: u64, size: u32) -> Self {
        Self {
            run: u64::from(run) << 32,
            generations: vec![0; index(blocks)].into(),
            busy: vec![false; index(blocks)].into(),
            scratch: vec![0; index(size.into())].into(),
        }
    }

    /// Takes `block`, or the next one that has no request in flight. There
    /// are more blocks than requests.
    pub(super) fn take(&mut self, block: u64) -> u64 {
        let mut at = index(block);
        while self.busy[at] {
            at = (at + 1) % self.busy.len();
        }
        self.busy[at] = true;
        at as u64
    }

    /// Gives `block` free.
    pub(super) fn release(&mut self, block: u64) {
        self.busy[index(block)] = false;
    }

    /// The next content of `block`, which lies at byte `offset`.
    pub(super) fn next(&mut self, block: u64, offset: u64) -> &[u8] {
        let generation = &mut self.generations[index(block)];
        *generation = generation.wrapping_add(1).max(1);
        let generation = self.run | u64::from(*generation);
        for (mark, at) in self.scratch.chunks_exact_mut(MARK).zip(0_u64..) {
            let (place, write) = mark.split_at_mut(MARK / 2);
            place.copy_from_slice(&(offset + at * MARK as u64).to_le_bytes());
            write.copy_from_slice(&generation.to_le_bytes());
        }
        &self.scratch
    }

    /// Room for a block that was read.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    /// This run has written `block`.
    pub(super) fn knows(&self, block: u64) -> bool {
        self.generations[index(block)] != 0
    }

    /// The number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.generations.len() as u64
    }

    /// The room holds what was written to `block` last, if this run has
    /// written it.
    pub(super) fn check(&self, block: u64, offset: u64) -> LoadResult<()> {
        if !self.knows(block) {
            return Ok(());
        }
        let generation = self.run | u64::from(self.generations[index(block)]);
        for (mark, at) in self.scratch.chunks_exact(MARK).zip(0_u64..) {
            let field = |range: std::ops::Range<usize>| {
                let bytes = mark.get(range).and_then(|b| b.try_into().ok());
                u64::from_le_bytes(bytes.unwrap_or_default())
            };
            let found = [field(0..8), field(8..16)];
            let expected = [offset + at * MARK as u64, generation];
            if found != expected {
                return Err(LoadError::Content {
                    offset,
                    at: index(at) * MARK,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(stamps: &mut Stamps, block: u64, offset: u64) -> Vec<u8> {
        stamps.next(block, offset).to_vec()
    }

    #[test]
    fn only_the_last_write_at_its_place_is_right() {
        let mut stamps = Stamps::new(9, 4, 512);
        let old = written(&mut stamps, 2, 1024);
        let new = written(&mut stamps, 2, 1024);
        let elsewhere = written(&mut stamps, 3, 1536);
        for (bytes, right) in [(&new, true), (&old, false), (&elsewhere, false)] {
            stamps.room().copy_from_slice(bytes);
            assert_eq!(stamps.check(2, 1024).is_ok(), right);
        }
        let mut torn = new;
        torn[496..].copy_from_slice(&old[496..]);
        stamps.room().copy_from_slice(&torn);
        let error = stamps.check(2, 1024).unwrap_err();
        assert!(
            matches!(error, LoadError::Content { at: 496, .. }),
            "{error}"
        );
    }

    #[test]
    fn other_runs_are_told_apart_and_unknown_blocks_pass() {
        let bytes = written(&mut Stamps::new(1, 1, 512), 0, 0);
        let mut stamps = Stamps::new(2, 1, 512);
        stamps.room().copy_from_slice(&bytes);
        stamps.check(0, 0).unwrap();
        stamps.next(0, 0);
        stamps.room().copy_from_slice(&bytes);
        stamps.check(0, 0).unwrap_err();
    }

    #[test]
    fn a_block_in_flight_is_passed_over() {
        let mut stamps = Stamps::new(1, 3, 512);
        assert_eq!([2, 2, 2].map(|block| stamps.take(block)), [2, 0, 1]);
        stamps.release(0);
        assert_eq!(stamps.take(1), 0);
    }
}
