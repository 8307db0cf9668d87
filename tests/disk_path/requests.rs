//! Random requests, and those that have ended.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use front_end::Op;
use rig::model::Value;
use rig::random::Random;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Habits {
    /// What its random numbers begin with.
    pub seed: u64,
    /// Of so many requests, the writes, reads, discards and zeroings; the
    /// others are flushes.
    pub all: usize,
    pub writes: usize,
    pub reads: usize,
    pub discards: usize,
    pub zeroings: usize,
    /// One of so many begins or ends within a block of the file system.
    pub ragged: usize,
    /// One of so many may be long.
    pub long: usize,
    /// The first sectors, so many, hold the same for ever: they are written
    /// again and again.
    pub still: usize,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            seed: 0x9e37_79b9,
            all: 20,
            writes: 8,
            reads: 7,
            discards: 2,
            zeroings: 2,
            ragged: 3,
            long: 1,
            still: 0,
        }
    }
}

impl Habits {
    /// What is asked for next.
    pub fn op(&self, random: &mut Random) -> Op {
        let mut number = random.below(self.all);
        for (op, share) in [
            (Op::Write, self.writes),
            (Op::Read, self.reads),
            (Op::Discard, self.discards),
            (Op::WriteZeroes, self.zeroings),
        ] {
            if number < share {
                return op;
            }
            number -= share;
        }
        Op::Flush
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    pub op: Op,
    pub sectors: Range<usize>,
    pub value: Value,
    /// Write-zeroes may free what it zeroes.
    pub unmap: bool,
    pub at: u64,
    /// The file system was full when it began.
    pub pardoned: bool,
    /// All of its sectors were there when it began.
    pub there: bool,
    pub began: Instant,
}

/// Requests that are remembered, to tell what came before a wrong one.
const REMEMBERED: usize = 20_000;

/// The requests that have ended last.
pub struct Past {
    ended: VecDeque<(Request, u8, Instant)>,
    start: Instant,
}

impl Past {
    pub fn new() -> Past {
        Past {
            ended: VecDeque::new(),
            start: Instant::now(),
        }
    }

    /// One has ended with this status.
    pub fn remember(&mut self, request: Request, status: u8) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((request, status, Instant::now()));
    }

    /// The latest that had to do with these sectors.
    pub fn tell(&self, sectors: &Range<usize>) -> Vec<String> {
        let touches = |(request, ..): &&(Request, u8, Instant)| {
            request.sectors.start < sectors.end && sectors.start < request.sectors.end
        };
        let tell = |(request, status, ended): &(Request, u8, Instant)| {
            let (began, ended) = (request.began - self.start, *ended - self.start);
            let Request {
                op,
                sectors,
                value,
                at,
                ..
            } = request;
            format!(
                "  {op:?} {value} of {sectors:?}, data at {at:#x}, {began:.3?} to {ended:.3?}: {status}"
            )
        };
        let mut told: Vec<_> = self
            .ended
            .iter()
            .rev()
            .filter(touches)
            .take(6)
            .map(tell)
            .collect();
        told.reverse();
        told
    }
}

/// Whether it changes what sectors hold.
pub fn changes(op: Op) -> bool {
    matches!(op, Op::Write | Op::WriteZeroes | Op::Discard)
}
