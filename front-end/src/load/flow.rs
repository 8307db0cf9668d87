//! Reads and writes at a constant depth.

use super::error::LoadResult;
use super::lane::{Clock, Lane};
use super::pattern::Positions;

/// A queue that is kept full.
#[derive(Debug)]
pub(super) struct Flow {
    pub lane: Lane,
    positions: Positions,
    /// Requests still to begin in this run.
    left: u64,
}

impl Flow {
    pub(super) fn new(lane: Lane, positions: Positions) -> Self {
        Self {
            lane,
            positions,
            left: 0,
        }
    }

    /// A new run begins, of so many requests.
    pub(super) fn prepare(&mut self, requests: u64) {
        self.left = requests;
    }

    /// It has done all that it was told.
    pub(super) fn exhausted(&self) -> bool {
        self.left == 0 && self.lane.quiet()
    }

    /// Takes what has ended and, if the load `goes_on`, begins as many.
    /// Whether anything had ended.
    #[inline]
    pub(super) fn turn(&mut self, clock: &mut Clock, goes_on: bool) -> LoadResult<bool> {
        let mut ended = false;
        while let Some(done) = self.lane.finish(clock)? {
            ended = true;
            self.lane.tally.record(done.read, done.latency);
        }
        while goes_on && self.left > 0 && self.lane.has_room() {
            let (read, block) = self.positions.draw_next();
            self.lane.begin(read, block, *clock)?;
            self.left -= 1;
        }
        self.lane.publish()?;
        Ok(ended)
    }
}
