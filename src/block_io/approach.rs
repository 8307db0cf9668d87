//! Which way a task goes: raw, by a plan; or by the file, with its range taken
//! away from the map.
//!
//! - A write that is not wholly raw takes its range away before it is issued,
//!   so that nobody finds there what was, and lets it be loaded again after it
//!   has ended.
//! - What gives blocks away (a discard, zeros that may free or replace blocks,
//!   a write to shared extents) waits besides until no raw I/O is in flight
//!   that was planned before: reads too.

use std::ops::Range;

use vhost_backend::Op;

use super::shared::Shared;
use super::task::{Task, Way};
use mapping::path::{Claim, Plan, Reserved, Worker};

/// What to do with a task.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Go on.
    Go,
    /// Another task has part of the range: try again.
    Busy,
    /// There is nothing to do.
    Nothing,
    /// The image has become too short for it.
    Beyond,
}

/// Chooses a way for what is left of a task.
pub(super) fn choose(raw: &mut Worker, task: &mut Task, shared: &Shared) -> Choice {
    let (start, end) = (task.start() + task.done, task.start() + task.len);
    let range = start..end;
    let by_file = task.by_file;
    match task.op {
        Op::Flush => {}
        _ if range.is_empty() => {}
        Op::Read { .. } if task.direct && !by_file => {
            let (plan, claim) = raw.plan_read(range);
            return follow(task, &plan, claim);
        }
        // Reading by the file is always right.
        Op::Read { .. } => {}
        Op::Write { .. } => {
            let planned = if task.direct && !by_file {
                raw.plan_write(range.clone())
            } else {
                None
            };
            let Some((plan, claim)) = planned else {
                // A part of a block is read and written back with it: raw
                // I/O of the rest must not come between.
                let drains = shared.cuts_blocks(&range) || raw.may_relocate(range.clone());
                return reserve(raw, task, shared, range, drains);
            };
            return follow(task, &plan, Some(claim));
        }
        Op::Discard { .. } => {
            let middle = task.middle_start..task.middle_end;
            if !middle.is_empty() {
                if raw.is_hole(middle.clone()) {
                    return Choice::Nothing;
                }
                return reserve(raw, task, shared, middle, true);
            }
        }
        Op::WriteZeroes { unmap, .. } => {
            let planned = if unmap || by_file {
                None
            } else {
                raw.plan_zeroes(range.clone())
            };
            let Some((plan, claim)) = planned else {
                return reserve(raw, task, shared, range, true);
            };
            return follow(task, &plan, Some(claim));
        }
    }
    task.way = Way::File;
    Choice::Go
}

fn follow(task: &mut Task, plan: &Plan, claim: Option<Claim>) -> Choice {
    task.plan = *plan;
    task.claim = claim;
    task.way = Way::Planned;
    Choice::Go
}

fn reserve(
    raw: &mut Worker,
    task: &mut Task,
    shared: &Shared,
    range: Range<u64>,
    drains: bool,
) -> Choice {
    match raw.reserve(range, || shared.is_beyond(task.changes_until())) {
        Reserved::Held(hold) => {
            task.fence = drains.then(|| hold.fence());
            task.hold = Some(hold);
        }
        Reserved::Claimed(claim) => task.claim = Some(claim),
        Reserved::Busy => return Choice::Busy,
        Reserved::Beyond => return Choice::Beyond,
    }
    task.changes_file = true;
    task.way = Way::File;
    Choice::Go
}
