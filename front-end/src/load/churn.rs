//! What a guest's file system does when files come and go: a piece is
//! discarded, then written anew, then the next one.

use super::error::LoadResult;
use super::lane::{Clock, Lane};
use super::plan::{PART, PARTS, PIECE};

/// What is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Discard,
    Refill,
    Check,
}

/// A queue that discards and refills one piece after the other.
#[derive(Debug)]
pub(super) struct Churn {
    pub lane: Lane,
    step: Step,
    /// The first block of the piece.
    block: u64,
}

impl Churn {
    /// Over a lane whose blocks are parts of pieces.
    pub(super) fn new(lane: Lane) -> Self {
        Self {
            lane,
            step: Step::Nothing,
            block: 0,
        }
    }

    /// Every piece holds data.
    pub(super) fn rests(&self) -> bool {
        self.step == Step::Nothing
    }

    /// Takes what has ended, and goes on to the next step when all of one
    /// has; a piece is finished even if the load does not go on. Whether
    /// anything had ended.
    pub(super) fn turn(&mut self, clock: &mut Clock, goes_on: bool) -> LoadResult<bool> {
        let mut ended = false;
        while self.lane.finish(clock)?.is_some() {
            ended = true;
        }
        if self.lane.quiet() {
            self.step = self.next_step(goes_on, *clock)?;
            self.lane.publish()?;
        }
        Ok(ended)
    }

    fn next_step(&mut self, goes_on: bool, clock: Clock) -> LoadResult<Step> {
        match self.step {
            Step::Discard => self.all_parts(false, clock),
            Step::Refill if self.lane.verifies() => self.all_parts(true, clock),
            Step::Nothing if goes_on => self.discard(clock),
            Step::Nothing => Ok(Step::Nothing),
            Step::Refill | Step::Check => {
                self.lane.tally.pieces += 1;
                let next = self.block + u64::from(PARTS);
                self.block = if next + u64::from(PARTS) > self.lane.blocks() {
                    0
                } else {
                    next
                };
                if goes_on {
                    self.discard(clock)
                } else {
                    Ok(Step::Nothing)
                }
            }
        }
    }

    fn discard(&mut self, clock: Clock) -> LoadResult<Step> {
        self.lane.discard(self.block, PIECE, clock)?;
        Ok(Step::Discard)
    }

    fn all_parts(&mut self, read: bool, clock: Clock) -> LoadResult<Step> {
        for part in 0..u64::from(PARTS) {
            self.lane.begin(read, self.block + part, clock)?;
        }
        Ok(if read { Step::Check } else { Step::Refill })
    }
}

const _: () = assert!(PART as u64 * PARTS as u64 == PIECE);
