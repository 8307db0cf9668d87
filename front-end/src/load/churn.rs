//! What a guest's file system does when files come and go: a piece is
//! discarded, then written anew, then the next one.

use std::time::{Duration, Instant};

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
    /// Between the beginnings of two pieces; zero for one after the other.
    pace: Duration,
    /// When the next piece may begin.
    due: Option<Instant>,
    /// The first block of the piece.
    block: u64,
}

impl Churn {
    /// Over a lane whose blocks are parts of pieces; at most `rate` of them a
    /// second.
    pub(super) fn new(lane: Lane, rate: Option<u32>) -> Self {
        Self {
            lane,
            step: Step::Nothing,
            pace: rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1)),
            due: None,
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
        let step = self.step;
        match step {
            Step::Discard => self.all_parts(false, clock),
            Step::Refill if self.lane.verifies() => self.all_parts(true, clock),
            Step::Nothing if goes_on && self.is_due(clock) => self.discard(clock),
            Step::Nothing => Ok(Step::Nothing),
            Step::Refill | Step::Check => {
                self.lane.tally.pieces += 1;
                let next = self.block + u64::from(PARTS);
                self.block = if next + u64::from(PARTS) > self.lane.blocks() {
                    0
                } else {
                    next
                };
                if goes_on && self.is_due(clock) {
                    self.discard(clock)
                } else {
                    Ok(Step::Nothing)
                }
            }
        }
    }

    fn is_due(&mut self, clock: Clock) -> bool {
        let due = *self.due.get_or_insert(clock.0);
        let is_due = clock.0 >= due;
        if is_due {
            // What was missed is not made up for.
            self.due = Some((due + self.pace).max(clock.0));
        }
        is_due
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
