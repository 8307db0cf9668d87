//! Which block comes next, and in which direction.

use clap::ValueEnum;

/// What the load looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Random reads and writes, mixed by --read-percent
    Randrw,
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads and writes in queue 0, while queue 1 discards and refills pieces of 1 MiB
    /// elsewhere on the disk
    Churn,
}

impl Pattern {
    /// Blocks follow each other instead of being drawn.
    pub(super) fn sequential(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// The share of reads, in percent: what the pattern says, or what was
    /// asked for.
    pub(super) fn read_percent(self, asked: Option<u8>) -> u8 {
        match self {
            Self::Randread | Self::Read => 100,
            Self::Randwrite | Self::Write => 0,
            Self::Randrw => asked.unwrap_or(50),
            Self::Churn => asked.unwrap_or(100),
        }
    }

    /// The share of reads is for the user to choose.
    pub(super) fn mixed(self) -> bool {
        matches!(self, Self::Randrw | Self::Churn)
    }

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
            Self::Read => "read",
            Self::Write => "write",
            Self::Churn => "churn",
        }
    }
}

/// Draws blocks and directions.
#[derive(Debug)]
pub(super) struct Positions {
    sequential: bool,
    /// Below this a drawn 32-bit number makes a read.
    reads: u64,
    blocks: u64,
    next: u64,
    state: u64,
}

impl Positions {
    /// Over `blocks`, at least 1. Each `stream` draws other numbers, and the
    /// same ones in every run, so that candidates get equal loads.
    pub(super) fn new(sequential: bool, read_percent: u8, blocks: u64, stream: u64) -> Self {
        Self {
            sequential,
            reads: (u64::from(read_percent) << 32) / 100,
            blocks,
            next: 0,
            state: (stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// xorshift64*, whose upper bits are the good ones.
    fn draw(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Whether to read, and which block.
    #[inline]
    pub(super) fn draw_next(&mut self) -> (bool, u64) {
        let block = if self.sequential {
            let block = self.next;
            self.next = (block + 1) % self.blocks;
            block
        } else {
            // 32 drawn bits reach every block of a disk of 16 TiB.
            ((self.draw() >> 32) * self.blocks) >> 32
        };
        let read = match self.reads {
            0 => false,
            share if share >> 32 != 0 => true,
            share => self.draw() >> 32 < share,
        };
        (read, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_blocks_follow_and_begin_again() {
        let mut positions = Positions::new(true, 0, 3, 0);
        let drawn: Vec<_> = (0..5).map(|_| positions.draw_next()).collect();
        assert_eq!(drawn, [0, 1, 2, 0, 1].map(|block| (false, block)));
    }

    #[test]
    fn random_blocks_reach_all_of_the_range_evenly() {
        let mut positions = Positions::new(false, 100, 10, 7);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            let (read, block) = positions.draw_next();
            assert!(read);
            seen[usize::try_from(block).unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }

    #[test]
    fn the_share_of_reads_is_kept() {
        let mut positions = Positions::new(false, 70, 1000, 3);
        let reads = (0..10_000).filter(|_| positions.draw_next().0).count();
        assert!((6700..7300).contains(&reads), "{reads}");
    }

    #[test]
    fn streams_differ_and_runs_do_not() {
        let blocks = |stream| {
            let mut positions = Positions::new(false, 100, 1 << 20, stream);
            [(); 8].map(|()| positions.draw_next().1)
        };
        assert_ne!(blocks(0), blocks(1));
        assert_eq!(blocks(1), blocks(1));
    }
}
