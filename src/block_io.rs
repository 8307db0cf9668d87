//! Requests as operations on the image: one worker's [`IoChannel`].
//!
//! A request is a task in a table indexed by its tag. It has at most one
//! operation in the kernel; each result moves it on, until it has ended. What
//! direct I/O takes goes straight between the disk and guest memory, by the
//! [disk path](mapping::path) where that is in use; the rest goes through a
//! fixed pool of aligned buffers.
#![allow(unsafe_code)]

mod approach;
mod bounced;
mod bulk;
pub(crate) mod clones;
mod pieces;
mod policy;
mod shared;
mod stats;
mod straight;
mod task;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vhost_backend::device::SECTOR;
use vhost_backend::{Completion, GivenBack, HostRegion, IoChannel, Op, Status, Tag, Unreachable};

use self::bulk::Bulk;
use self::clones::Gate;
use self::shared::BUFFERS;
pub(crate) use self::shared::Shared;
use self::stats::Counts;
pub(crate) use self::stats::{ByKind, Sums, Tally};
use self::task::{Step, Task};
use crate::engine::bounce::Pool;
use crate::engine::limits::Limits;
use crate::engine::pin::Pins;
use crate::engine::{self, Engine, Target, Work};
use crate::host::allocations::InRequests;
use crate::host::switches;
use mapping::path::{Permit, Worker};

/// Bytes of each of a worker's aligned buffers.
const BUFFER_BYTES: usize = 128 << 10;
/// Punches in the kernel at a time: they use the same threads as fdatasync,
/// and must not keep a FLUSH waiting behind all of them.
const ALLOCATIONS: usize = 3;
/// Raw operations that end well before one more is tried at a time, on a
/// device that has refused some: its queue was full.
const CALM: usize = 64;
/// Watched eventfds of our own: the disk path's, the pinned memory's, and that
/// of clones.
const OWN_EVENTS: usize = 3;
/// How often a task that waits for another worker's block looks again.
const RETRY: Duration = Duration::from_millis(1);

/// One worker's requests in flight.
#[derive(Debug)]
pub struct BlockIo<E> {
    engine: E,
    shared: Arc<Shared>,
    /// The disk path, if the image can have one.
    raw: Option<Worker>,
    /// Pinned guest memory, if that was asked for.
    pins: Option<Pins>,
    counts: Counts,
    /// Never longer than its first capacity, so that tasks stay where they are.
    tasks: Vec<Task>,
    ended: Vec<Completion>,
    /// Requests that the host has failed, and that are tried again later.
    held: Vec<GivenBack>,
    /// Tasks that wait for a buffer, a block or their turn to punch.
    stalled: VecDeque<u32>,
    results: Vec<(u32, i32)>,
    pool: Pool,
    /// One buffer that is only ever read.
    zeros: Pool,
    allocations: usize,
    /// Large operations, which leave room for small ones.
    bulk: Bulk,
    /// Raw operations that have not ended.
    raw_flying: usize,
    /// How many of them the device is known to take: its queue was full.
    raw_limit: usize,
    /// What the device refused was taken a moment later, the last time.
    waiting_helps: bool,
    /// Raw operations that have ended since that was last changed.
    raw_calm: usize,
    /// What the device takes in one piece.
    limits: Limits,
    /// A stalled task waits for another worker.
    waits_elsewhere: bool,
    /// Keeps changes from what is to be cloned first.
    gate: Gate,
    /// Nobody waits for longer requests than this, in bytes.
    abandoned_over: u64,
}

/// What became of a task when it was moved on.
enum Next {
    /// Its next operation.
    Work(Work),
    /// It cannot go on now.
    Stall,
    /// It has ended.
    End(Status),
}

impl<E: Engine> BlockIo<E> {
    /// The I/O of up to `slots` requests at a time, once there is
    /// [room](IoChannel::room) for them.
    ///
    /// # Errors
    /// There is no memory for its buffers.
    pub(crate) fn new(
        mut engine: E,
        shared: Arc<Shared>,
        raw: Option<(Worker, Limits)>,
        pins: Option<Pins>,
        slots: usize,
    ) -> io::Result<Self> {
        let (raw, limits) = match raw {
            Some((raw, limits)) => (Some(raw), limits),
            None => (None, Limits::NONE),
        };
        engine.watch(0, raw.as_ref().map(|raw| raw.event().as_raw_fd()));
        engine.watch(1, pins.as_ref().map(|pins| pins.event().as_raw_fd()));
        let gate = Gate::new(&shared.clones)?;
        engine.watch(2, Some(gate.event().as_raw_fd()));
        Ok(Self {
            limits,
            engine,
            shared,
            raw,
            pins,
            counts: Counts::default(),
            tasks: Vec::with_capacity(slots),
            ended: Vec::with_capacity(slots),
            held: Vec::with_capacity(slots),
            stalled: VecDeque::with_capacity(slots),
            results: Vec::with_capacity(slots),
            pool: Pool::new(BUFFERS, BUFFER_BYTES)?,
            zeros: Pool::new(1, BUFFER_BYTES)?,
            allocations: 0,
            bulk: Bulk::new(),
            raw_flying: 0,
            raw_limit: usize::MAX,
            waiting_helps: true,
            raw_calm: 0,
            waits_elsewhere: false,
            gate,
            abandoned_over: u64::MAX,
        })
    }

    /// What this worker has done so far.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        self.counts.tally()
    }

    /// Issues the next operation of a task, or ends it.
    fn advance(&mut self, tag: u32) {
        match self.next(tag) {
            Next::Work(work) => {
                // SAFETY: a vector is of the task's own pieces or entry, which
                // stay where they are while it is in flight: the table never
                // outgrows its capacity, and the pieces only change between
                // operations. The memory they name is the guest's, which
                // stays mapped until the completion is reported, or a buffer
                // that the task holds.
                unsafe { self.engine.push(tag, work) };
            }
            Next::Stall => self.stalled.push_back(tag),
            Next::End(status) => self.end(tag, status),
        }
    }

    fn end(&mut self, tag: u32, status: Status) {
        let task = &mut self.tasks[tag as usize];
        match task.op {
            Op::Read { .. } => {
                self.counts.reads += 1;
                if status == Status::Ok {
                    self.counts.read_bytes += task.len;
                }
            }
            Op::Write { .. } => {
                self.counts.writes += 1;
                if status == Status::Ok {
                    self.counts.written_bytes += task.len;
                }
            }
            other => self.counts.end_of_other(other.kind()),
        }
        task.let_all_go(&mut self.pool, &self.shared);
        self.ended.push(Completion {
            tag: Tag(tag),
            status,
        });
    }

    /// The host cannot carry a task out now: it is tried again from its
    /// beginning.
    #[cold]
    fn hold(&mut self, tag: u32, longest: Duration, errno: i32) {
        self.tasks[tag as usize].let_all_go(&mut self.pool, &self.shared);
        self.held.push(GivenBack {
            tag: Tag(tag),
            longest,
            why: errno,
        });
    }

    /// Decides what a task needs next; it has no operation in the kernel.
    fn next(&mut self, tag: u32) -> Next {
        if let Some(instead) = self.prepare(tag) {
            return instead;
        }
        let task = &mut self.tasks[tag as usize];
        if task.len > self.abandoned_over && task.done < task.len {
            return Next::End(Status::IoErr);
        }
        match task.op {
            Op::Flush if task.step == Step::Synced => Next::End(Status::Ok),
            Op::Flush => self.sync(tag),
            Op::Read { .. } if task.done == task.len => Next::End(Status::Ok),
            Op::Write { stable, .. } if task.done == task.len => {
                // By the file each operation was stable for itself, if that
                // reaches the disk.
                let lacks_sync = stable
                    && task.step != Step::Synced
                    && (task.was_raw || !self.raw.as_ref().is_none_or(Worker::syncs_reach_disk));
                if lacks_sync {
                    self.sync(tag)
                } else {
                    Next::End(Status::Ok)
                }
            }
            Op::Read { .. } | Op::Write { .. } if task.direct => self.direct(tag),
            Op::Read { offset } => self.bounce(tag, offset, false, None),
            Op::Write { offset, stable } => self.bounce(tag, offset, true, Some(stable)),
            Op::Discard { .. } => self.discard(tag),
            Op::WriteZeroes { stable, .. } if task.done == task.len => {
                if stable && task.step != Step::Synced {
                    self.sync(tag)
                } else {
                    Next::End(Status::Ok)
                }
            }
            Op::WriteZeroes { .. } if task.is_planned() => self.planned_zeroes(tag),
            Op::WriteZeroes { offset, unmap, .. } => self.write_zeroes(tag, offset, unmap),
        }
    }

    /// Takes the result of a task's operation and moves the task on.
    fn result(&mut self, tag: u32, result: i32) {
        let task = &mut self.tasks[tag as usize];
        let is_raw = matches!(task.step, Step::Raw | Step::Zeros);
        if is_raw {
            self.raw_flying -= 1;
        }
        if let Step::Allocate(_) = task.step {
            self.allocations -= 1;
        }
        if let Some(flight) = task.flight.take() {
            self.bulk.end(flight, result >= 0, self.shared.take_small());
        }
        if result < 0 {
            match -result {
                _ if is_raw && result == engine::WITHDRAWN => return self.withdrawn(tag),
                libc::EAGAIN if is_raw => return self.refused(tag),
                // A device whose tables were changed may not know any more how
                // not to wait.
                libc::EOPNOTSUPP if is_raw => {
                    self.tasks[tag as usize].refusals = u8::MAX;
                    return self.refused(tag);
                }
                // Not begun: the same again.
                libc::EINTR | libc::EAGAIN | libc::ECANCELED => return self.advance(tag),
                libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV if self.unsupported(tag) => {
                    return self.advance(tag);
                }
                _ => {}
            }
            // A sync that is made again proves nothing: the kernel has told
            // once what it lost.
            if matches!(self.tasks[tag as usize].step, Step::Sync(..)) {
                self.shared.lose_writes();
            } else if let Some(longest) = self.shared.policy.holds(-result) {
                return self.hold(tag, longest, -result);
            }
            self.shared.report(self.tasks[tag as usize].op, -result);
            return self.end(tag, Status::IoErr);
        }
        let moved = u64::from(result.unsigned_abs());
        let ok = match task.step {
            Step::Direct | Step::Raw => task.direct_moved(moved),
            Step::BufferRead | Step::BufferFill | Step::BufferWrite => task.buffer_moved(moved),
            Step::Zeros => {
                task.done += moved;
                moved > 0
            }
            // Another one has failed meanwhile, and may have been told of what
            // this one was to make stable.
            Step::Sync(..) if self.shared.has_lost_writes() => false,
            Step::Sync(target, covers) => {
                task.step = Step::Synced;
                if target == Target::Image {
                    self.shared.end_sync(covers);
                    if !self.raw.as_ref().is_none_or(Worker::syncs_reach_disk) {
                        // The device is synced as well.
                        task.file_synced = true;
                        task.step = Step::New;
                    }
                }
                true
            }
            Step::Allocate(_) => {
                task.step = Step::Allocated;
                task.done = (task.middle_end - task.start()).max(task.done);
                true
            }
            Step::New | Step::Synced | Step::Allocated => true,
        };
        if !ok {
            // The image ends where it should not, or a device takes nothing.
            self.shared.report(self.tasks[tag as usize].op, libc::EIO);
            return self.end(tag, Status::IoErr);
        }
        if is_raw {
            self.waiting_helps |= self.tasks[tag as usize].refusals > 1;
            self.raw_calm += 1;
            if self.raw_calm >= CALM {
                self.raw_calm = 0;
                self.raw_limit = self.raw_limit.saturating_add(1);
            }
        }
        // Nothing else ends within a sector.
        if !moved.is_multiple_of(SECTOR)
            && let Op::Read { .. } = self.tasks[tag as usize].op
            && let Err(Unreachable) = self.pad(tag)
        {
            return self.end_unreachable(tag);
        }
        let task = &self.tasks[tag as usize];
        if task.buffer.is_some()
            && task.left() == 0
            && let Err(Unreachable) = self.chunk_done(tag)
        {
            return self.end_unreachable(tag);
        }
        self.advance(tag);
    }
}

/// Whether raw I/O may be given to the kernel at the moment that it is asked.
fn may_submit(raw: &mut Option<Worker>) -> impl FnMut() -> Option<Permit> {
    move || match raw {
        Some(raw) => raw.may_submit(),
        None => Some(Permit::unconditional()),
    }
}

impl<E: Engine> IoChannel for BlockIo<E> {
    fn room(&mut self, requests: usize) {
        let requests = requests.min(self.tasks.capacity());
        while self.tasks.len() < requests {
            self.tasks.push(Task::default());
        }
    }

    fn memory(&mut self, regions: &[HostRegion]) {
        if let Some(raw) = &mut self.raw {
            raw.buffers_are_memory(regions.iter().all(|region| region.in_memory));
        }
        if let Some(pins) = &mut self.pins {
            pins.want(regions, &mut self.engine);
        }
    }

    unsafe fn submit(&mut self, tag: Tag, op: Op, data: &[libc::iovec]) {
        let _counted = InRequests::begin();
        switches::count_request();
        let task = &mut self.tasks[tag.0 as usize];
        task.begin(op, data, &self.shared);
        if task.len <= bulk::SMALL && matches!(op, Op::Read { .. } | Op::Write { .. }) {
            self.shared.note_small();
        }
        self.advance(tag.0);
    }

    fn abandon(&mut self, over: u64) {
        self.abandoned_over = over;
    }

    fn flush_submissions(&mut self) {
        let _counted = InRequests::begin();
        let Self { engine, raw, .. } = self;
        engine.submit(&mut may_submit(raw));
    }

    fn reap(&mut self, done: &mut impl FnMut(Completion)) {
        let _counted = InRequests::begin();
        if let Some(raw) = &mut self.raw {
            raw.turn();
        }
        if let Some(pins) = self.pins.as_mut().filter(|pins| !pins.is_settled()) {
            pins.take(&mut self.engine);
        }
        self.waits_elsewhere = false;
        let mut results = std::mem::take(&mut self.results);
        self.engine
            .completions(|tag, result| results.push((tag, result)));
        for (tag, result) in results.drain(..) {
            self.result(tag, result);
        }
        self.results = results;
        for _ in 0..self.stalled.len() {
            if let Some(tag) = self.stalled.pop_front() {
                self.advance(tag);
            }
        }
        if self.ended.is_empty() && self.engine.has_queued() {
            // Whoever looks for what has ended may look in vain for a while.
            let Self { engine, raw, .. } = self;
            engine.submit(&mut may_submit(raw));
        }
        self.counts.polled = self.engine.polled();
        self.counts.publish();
        for completion in self.ended.drain(..) {
            done(completion);
        }
    }

    #[inline(always)]
    fn give_back(&mut self, back: &mut impl FnMut(GivenBack)) {
        while let Some(one) = self.held.pop() {
            back(one);
        }
    }

    fn has_ended(&mut self) -> bool {
        !self.ended.is_empty() || self.engine.has_ended()
    }

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        self.engine.watch(OWN_EVENTS + index, fd);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let _counted = InRequests::begin();
        if !self.ended.is_empty() {
            return;
        }
        let timeout = if self.waits_elsewhere {
            Some(timeout.map_or(RETRY, |time| time.min(RETRY)))
        } else {
            timeout
        };
        if let Some(raw) = &mut self.raw {
            raw.idle();
        }
        self.gate.rest();
        let Self { engine, raw, .. } = self;
        engine.wait(timeout, &mut may_submit(raw));
    }
}
