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
use super::task::{Apart, Task, Way};
use mapping::path::{Reserved, Worker};

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
            raw.plan_read(range, &mut task.plan);
            task.way = Way::Planned;
            return Choice::Go;
        }
        // Reading by the file is always right.
        Op::Read { .. } => {}
        Op::Write { .. } => {
            let may = task.direct && !by_file;
            if may && raw.plan_write(range.clone(), &mut task.plan) {
                task.way = Way::Planned;
                return Choice::Go;
            }
            // A part of a block is read and written back with it: raw I/O of
            // the rest must not come between.
            let drains = shared.cuts_blocks(&range) || raw.may_relocate(range.clone());
            return reserve(raw, task, shared, range, drains);
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
            let may = !unmap && !by_file;
            if may && raw.plan_zeroes(range.clone(), &mut task.plan) {
                task.way = Way::Planned;
                return Choice::Go;
            }
            return reserve(raw, task, shared, range, true);
        }
    }
    task.way = Way::File;
    Choice::Go
}

fn reserve(
    raw: &mut Worker,
    task: &mut Task,
    shared: &Shared,
    range: Range<u64>,
    drains: bool,
) -> Choice {
    let apart = match raw.reserve(range, || shared.is_beyond(task.changes_until())) {
        Reserved::Held(hold) => Apart::Held {
            fence: drains.then(|| hold.fence()),
            _hold: hold,
            asked: false,
        },
        Reserved::Claimed(claim) => Apart::Claimed { _claim: claim },
        Reserved::Busy => return Choice::Busy,
        Reserved::Beyond => return Choice::Beyond,
    };
    task.way = Way::Change(apart);
    Choice::Go
}
