//! Which way a task goes: raw, by a plan; or by the file, with its range taken
//! away from the map.
//!
//! - A write that is not wholly raw takes its range away before it is issued,
//!   so that nobody finds there what was, and lets it be loaded again after it
//!   has ended.
//! - What gives blocks away (a discard, zeros that may free or replace blocks,
//!   a write to shared extents) waits besides until no raw I/O is in flight
//!   that was planned before: reads too.
//! - While the image is being cloned, no change of what is not cloned yet has
//!   a way.

use std::ops::Range;

use vhost_backend::{Op, Status};

use super::clones::{Gate, Passage};
use super::shared::Shared;
use super::task::{Apart, Step, Task, Way};
use super::{BlockIo, Next};
use crate::engine::Engine;
use mapping::path::{Reserved, Worker};

/// What to do with a task.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// Go on.
    Go,
    /// Another task has part of the range: try again.
    Busy,
    /// There is nothing to do.
    Nothing,
    /// The image has become too short for it.
    Beyond,
}

impl<E: Engine> BlockIo<E> {
    /// Chooses the task's way where there is a choice; what to do instead of
    /// going on, if it cannot go on.
    pub(super) fn prepare(&mut self, tag: u32) -> Option<Next> {
        let Self {
            raw,
            tasks,
            gate,
            shared,
            waits_elsewhere,
            ..
        } = self;
        let task = &mut tasks[tag as usize];
        let Some(raw) = raw else {
            if shared.is_beyond(task.changes_until()) {
                return Some(Next::End(Status::IoErr));
            }
            return is_kept(gate, task, waits_elsewhere).then_some(Next::Stall);
        };
        if task.is_planned() && task.step != Step::Synced && !raw.trusts() {
            task.leave_way();
        }
        if let Way::Open = task.way {
            // Before the map is asked.
            if is_kept(gate, task, waits_elsewhere) {
                return Some(Next::Stall);
            }
            match choose(raw, task, shared) {
                Choice::Go => {}
                Choice::Nothing => return Some(Next::End(Status::Ok)),
                Choice::Beyond => return Some(Next::End(Status::IoErr)),
                Choice::Busy => {
                    *waits_elsewhere = true;
                    return Some(Next::Stall);
                }
            }
        }
        if let Way::Change(Apart::Held { fence, asked, .. }) = &mut task.way
            && let Some(waited) = fence
        {
            if !raw.has_passed(waited, asked) {
                return Some(Next::Stall);
            }
            *fence = None;
        }
        None
    }
}

/// The task would change what is to be cloned first.
#[inline(always)]
fn is_kept(gate: &mut Gate, task: &mut Task, waits_elsewhere: &mut bool) -> bool {
    let number = gate.number();
    if number == 0 {
        return false;
    }
    let Some(end) = task.changes_until() else {
        return false;
    };
    let left = task.start() + task.done..end;
    let passage = gate.pass(number, left, &mut task.clone_asked);
    *waits_elsewhere |= passage == Passage::Full;
    passage != Passage::Open
}

/// Chooses a way for what is left of a task.
fn choose(raw: &mut Worker, task: &mut Task, shared: &Shared) -> Choice {
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
