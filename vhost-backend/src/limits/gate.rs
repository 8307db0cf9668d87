//! Limits as one worker meets them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::bucket::grant;
use super::key::{KINDS, Limited};
use super::turns::COURTESY;
use super::{LOOK, Limits};
use crate::device::Op;
use crate::sys;

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Direction {
    #[default]
    Read,
    /// Whatever is no read.
    Write,
}

impl Direction {
    /// Of an operation.
    pub(crate) fn of(op: &Op) -> Self {
        match op {
            Op::Read { .. } => Self::Read,
            Op::Write { .. } | Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => {
                Self::Write
            }
        }
    }

    /// Its limits on requests, and on bytes.
    fn limits(self) -> [[usize; 2]; 2] {
        let (iops, bytes) = match self {
            Self::Read => (Limited::ReadIops, Limited::ReadBytes),
            Self::Write => (Limited::WriteIops, Limited::WriteBytes),
        };
        [
            [Limited::Iops.index(), iops.index()],
            [Limited::Bytes.index(), bytes.index()],
        ]
    }
}

/// What a queue waits for, and what it will probably ask next.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    /// Since when it is held back.
    since: Option<u64>,
    /// As its last request, for nobody knows the next one before it was
    /// fetched. One that was not expected is paid for all the same.
    next: Direction,
}

impl Waiter {
    /// It is held back.
    #[inline(always)]
    pub(crate) fn waits(&self) -> bool {
        self.since.is_some()
    }

    /// It does not wait any more, and was not served either.
    pub(crate) fn leave(&mut self) {
        self.since = None;
    }
}

/// A worker's look at the limits of its disk, anew in each turn.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    limits: Arc<Limits>,
    on: bool,
    now: u64,
    /// Until when the disk is held still, and the last hold in which this
    /// worker has said that it rests.
    held: Option<u64>,
    rested: u64,
    /// When the first limit may be open that somebody was held back by.
    until: Option<u64>,
    worker: usize,
    /// The limits that queues were held back by: in this turn, and in the last.
    blocked: [bool; KINDS],
    waiting: [bool; KINDS],
    /// Since when there is something that is left to others.
    courteous: Option<u64>,
    /// It was left to them long enough, for one turn.
    patient: bool,
}

/// Requests by which a worker may be ahead of others, where only bytes are
/// limited.
const AHEAD: u64 = 4;

impl Gate {
    /// For a worker of a disk with these limits.
    pub(crate) fn new(limits: Arc<Limits>, worker: usize) -> Self {
        Self {
            limits,
            worker,
            ..Self::default()
        }
    }

    /// A new turn begins; whether queues that were held back have nothing to
    /// wait for any more.
    #[inline(always)]
    pub(crate) fn begin_turn(&mut self) -> bool {
        let on = self.limits.on.load(Ordering::Relaxed);
        if !on && !self.on {
            return false;
        }
        self.look(on)
    }

    #[cold]
    fn look(&mut self, on: bool) -> bool {
        let lifted = self.on && !on;
        self.on = on;
        self.until = None;
        let was_held = self.held.is_some();
        if std::mem::take(&mut self.patient) {
            self.courteous = None;
        }
        if lifted {
            self.end_turn();
        }
        self.now = sys::monotonic_ns();
        self.limits.look(self.now, false);
        self.held = self.limits.hold.until(self.now);
        // What a predecessor had in flight has no kick that would wake anybody.
        self.until = self.held;
        let ended = was_held && self.held.is_none();
        if ended {
            self.limits.set_on();
        }
        lifted || ended
    }

    /// The disk is held still: nothing is fetched.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// This worker has nothing in flight, and has shown all that has ended.
    #[cold]
    pub(crate) fn rest(&mut self) {
        if self.is_held()
            && let Some(round) = self.limits.hold.is_new(self.rested)
        {
            self.rested = round;
            self.limits.hold.rests(round);
        }
    }

    /// All queues had their turn: others see what this worker waits for until
    /// its next one.
    pub(crate) fn end_turn(&mut self) {
        let blocked = std::mem::take(&mut self.blocked);
        let mut first = !self.waiting.contains(&true);
        for (limit, (now, before)) in blocked.into_iter().zip(self.waiting).enumerate() {
            match (now, before) {
                (true, false) => {
                    self.limits.turns.wait(self.worker, limit, first);
                    first = false;
                }
                (false, true) => self.limits.turns.leave(self.worker, limit),
                _ => {}
            }
        }
        self.waiting = blocked;
    }

    /// Whether what there is belongs to other workers first, and until when.
    fn is_anothers(&mut self, limits: [[usize; 2]; 2]) -> Option<u64> {
        let all = limits.into_iter().flatten();
        let rate = |limit: usize| self.limits.buckets.get(limit).map_or(0, |one| one.rate());
        let iops = limits.into_iter().take(1).flatten().map(rate);
        let least = iops.filter(|rate| *rate > 0).min();
        let ahead = least.map_or(AHEAD, |rate| (grant(rate) / 4).max(1));
        let turns = &self.limits.turns;
        let anothers = all
            .into_iter()
            .any(|limit| turns.is_anothers(self.worker, limit, ahead));
        if !anothers {
            self.courteous = None;
            return None;
        }
        let since = *self.courteous.get_or_insert(self.now);
        let until = since.saturating_add(COURTESY);
        self.patient = until <= self.now;
        (!self.patient).then_some(until)
    }

    /// There are limits.
    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Some queue was held back in this turn.
    #[inline(always)]
    pub(crate) fn has_waiters(&self) -> bool {
        self.until.is_some()
    }

    /// Whether a queue that has something may fetch it.
    #[cold]
    pub(crate) fn admits(&mut self, waiter: &mut Waiter) -> bool {
        if self.is_held() {
            waiter.since.get_or_insert(self.now);
            return false;
        }
        let limits = &*self.limits;
        let mut blocked = self.blocked;
        let mut until = None;
        for index in waiter.next.limits().into_iter().flatten() {
            let (Some(bucket), Some(owner)) = (limits.buckets.get(index), limits.owner(index))
            else {
                continue;
            };
            if let Err(due) = bucket.open(owner, self.now) {
                until = until.max(Some(due));
                if let Some(blocked) = blocked.get_mut(index) {
                    *blocked = true;
                }
            }
        }
        if until.is_none() {
            until = self.is_anothers(waiter.next.limits());
            if until.is_some() {
                // It waits as before.
                for (blocked, waiting) in blocked.iter_mut().zip(self.waiting) {
                    *blocked |= waiting;
                }
            }
        }
        self.blocked = blocked;
        match until {
            None => {
                if let Some(since) = waiter.since.take() {
                    let time = self.now.saturating_sub(since);
                    self.limits.waits.fetch_add(1, Ordering::Relaxed);
                    self.limits.waited.fetch_add(time, Ordering::Relaxed);
                }
            }
            Some(due) => {
                waiter.since.get_or_insert(self.now);
                // Nobody wakes a member when another one changes the limits.
                let look = self.now.saturating_add(LOOK);
                let due = if self.limits.group.is_some() {
                    due.min(look)
                } else {
                    due
                };
                self.until = Some(self.until.map_or(due, |until| until.min(due)));
            }
        }
        until.is_none()
    }

    /// A request was fetched that moves so many bytes.
    #[cold]
    pub(crate) fn charge(&self, waiter: &mut Waiter, op: &Op, bytes: u64) {
        waiter.next = Direction::of(op);
        self.limits.turns.serve(self.worker);
        for (indices, tokens) in waiter.next.limits().into_iter().zip([1, bytes]) {
            for bucket in indices.iter().filter_map(|at| self.limits.buckets.get(*at)) {
                bucket.charge(tokens);
            }
        }
    }

    /// How long to sleep at most.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let until = self.until?;
        Some(Duration::from_nanos(
            until.saturating_sub(sys::monotonic_ns()),
        ))
    }
}
