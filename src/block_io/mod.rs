//! Requests as operations on the image: one worker's [`IoChannel`].
//!
//! A request is a task in a table indexed by its tag. It has at most one
//! operation in the kernel; each result moves it on, until it has ended. What
//! direct I/O takes goes straight between the disk and guest memory, by the
//! [disk path](crate::disk_path) where that is in use; the rest goes through a
//! fixed pool of aligned buffers.
#![allow(unsafe_code)]

mod approach;
mod raw;
mod shared;
mod stats;
mod task;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vhost_backend::{Completion, HostRegion, IoChannel, Op, Status, Tag};

use self::approach::{Choice, choose};
pub use self::raw::Raw;
pub use self::shared::Shared;
use self::stats::Counts;
pub use self::stats::{Sums, Tally};
use self::task::{Step, Task, Way};
use crate::allocations::InRequests;
use crate::bounce::Pool;
use crate::engine::{Engine, Target, Vector, Work};
use crate::pin::Pins;
use crate::planner;

/// Most entries of one vector (`UIO_MAXIOV`).
const VECTOR_ENTRIES: usize = 1024;
/// Aligned buffers of a worker, and the bytes of each.
const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = 128 << 10;
/// Punches in the kernel at a time: they use the same threads as fdatasync,
/// and must not keep a FLUSH waiting behind all of them.
const ALLOCATIONS: usize = 3;
/// Watched eventfds of our own: the disk path's and the pinned memory's.
const OWN_EVENTS: usize = 2;
/// How often a task that waits for another worker's block looks again.
const RETRY: Duration = Duration::from_millis(1);

/// One worker's requests in flight.
#[derive(Debug)]
pub struct BlockIo<E> {
    engine: E,
    shared: Arc<Shared>,
    /// The disk path, if the image can have one.
    raw: Option<Raw>,
    /// Pinned guest memory, if that was asked for.
    pins: Option<Pins>,
    counts: Counts,
    tasks: Box<[Task]>,
    ended: Vec<Completion>,
    /// Tasks that wait for a buffer, a block or their turn to punch.
    stalled: VecDeque<u32>,
    results: Vec<(u32, i32)>,
    pool: Pool,
    /// One buffer that is only ever read.
    zeros: Pool,
    allocations: usize,
    /// A stalled task waits for another worker.
    waits_elsewhere: bool,
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
    /// The I/O of up to `slots` requests at a time.
    pub fn new(
        mut engine: E,
        shared: Arc<Shared>,
        raw: Option<Raw>,
        pins: Option<Pins>,
        slots: usize,
    ) -> Self {
        engine.watch(0, raw.as_ref().map(Raw::event));
        engine.watch(1, pins.as_ref().map(|pins| pins.event().as_raw_fd()));
        Self {
            engine,
            shared,
            raw,
            pins,
            counts: Counts::default(),
            tasks: (0..slots).map(|_| Task::default()).collect(),
            ended: Vec::with_capacity(slots),
            stalled: VecDeque::with_capacity(slots),
            results: Vec::with_capacity(slots),
            pool: Pool::new(BUFFERS, BUFFER_BYTES),
            zeros: Pool::new(1, BUFFER_BYTES),
            allocations: 0,
            waits_elsewhere: false,
        }
    }

    /// What this worker has done so far.
    pub fn tally(&self) -> Arc<Tally> {
        self.counts.tally()
    }

    /// Issues the next operation of a task, or ends it.
    fn advance(&mut self, tag: u32) {
        match self.next(tag) {
            Next::Work(work) => {
                // SAFETY: a vector is of the task's own pieces or entry, which
                // stay where they are while it is in flight: the table is
                // never resized, and the pieces only change between
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
        if let Some(buffer) = task.buffer.take() {
            self.pool.give_back(buffer);
        }
        if std::mem::take(&mut task.owns_blocks) {
            self.shared.release_blocks(task.chunk_start, task.chunk_end);
        }
        if task.changes_file {
            self.shared.changed();
        }
        task.hold = None;
        task.fence = None;
        if let (Some(claim), Some(raw)) = (task.claim.take(), &mut self.raw) {
            raw.release(claim);
        }
        match task.op {
            Op::Read { .. } if status == Status::Ok => self.counts.read_bytes += task.len,
            Op::Write { .. } if status == Status::Ok => self.counts.written_bytes += task.len,
            _ => {}
        }
        task.forget();
        self.ended.push(Completion {
            tag: Tag(tag),
            status,
        });
    }

    /// Decides what a task needs next; it has no operation in the kernel.
    fn next(&mut self, tag: u32) -> Next {
        if let Some(instead) = self.prepare(tag) {
            return instead;
        }
        let task = &mut self.tasks[tag as usize];
        match task.op {
            Op::Flush if task.step == Step::Synced => Next::End(Status::Ok),
            Op::Flush => self.sync(tag),
            Op::Read { .. } if task.done == task.len => Next::End(Status::Ok),
            Op::Write { stable, .. } if task.done == task.len => {
                // By the file each operation was stable for itself.
                let lacks_sync = stable && task.way == Way::Planned && task.step != Step::Synced;
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
            Op::WriteZeroes { .. } if task.way == Way::Planned => self.planned_zeroes(tag),
            Op::WriteZeroes { offset, unmap, .. } => self.write_zeroes(tag, offset, unmap),
        }
    }

    /// Chooses the task's way where there is a choice; what to do instead of
    /// going on, if it cannot go on.
    fn prepare(&mut self, tag: u32) -> Option<Next> {
        let raw = self.raw.as_mut()?;
        let task = &mut self.tasks[tag as usize];
        if task.way == Way::Planned && !raw.trusts() && task.step != Step::Synced {
            if let Some(claim) = task.claim.take() {
                raw.release(claim);
            }
            task.way = Way::Open;
        }
        if task.way == Way::Open {
            match choose(raw, task) {
                Choice::Go => {}
                Choice::Nothing => return Some(Next::End(Status::Ok)),
                Choice::Busy => {
                    self.waits_elsewhere = true;
                    return Some(Next::Stall);
                }
            }
        }
        if let Some(fence) = &task.fence {
            if !raw.has_passed(fence, &mut task.fence_asked) {
                return Some(Next::Stall);
            }
            task.fence = None;
        }
        None
    }

    /// The next operation between guest memory and the disk or the file.
    fn direct(&mut self, tag: u32) -> Next {
        let task = &mut self.tasks[tag as usize];
        let start = task.start();
        let (target, vector) = loop {
            let at = start + task.done;
            if at == start + task.len {
                return Next::End(Status::Ok);
            }
            let piece = match task.way {
                Way::Planned => task.plan.piece_at(at),
                Way::Open | Way::File => None,
            };
            let Some(piece) = piece else {
                break (Target::Image, task.direct_vector(at, u64::MAX));
            };
            match piece.way {
                planner::Way::Zeros => {
                    // SAFETY: zeros are only planned for reads, whose pieces
                    // are writable guest memory, mapped until the completion
                    // is reported.
                    unsafe { task.read_zeros(piece.end - at) };
                    self.counts.zeros += 1;
                }
                planner::Way::Disk(disk) => {
                    let disk = disk + (at - piece.start);
                    break (Target::Device, task.direct_vector(disk, piece.end - at));
                }
                planner::Way::File => {
                    break (Target::Image, task.direct_vector(at, piece.end - at));
                }
            }
        };
        task.step = Step::Direct;
        match target {
            Target::Device => self.counts.disk += 1,
            Target::Image => self.counts.file += 1,
        }
        Next::Work(match task.op {
            Op::Write { stable, .. } => Work::Write {
                target,
                vector,
                stable: stable && target == Target::Image,
            },
            _ => Work::Read(target, vector),
        })
    }

    /// Zeros over written extents, straight to the disk.
    fn planned_zeroes(&mut self, tag: u32) -> Next {
        let task = &mut self.tasks[tag as usize];
        let at = task.start() + task.done;
        let Some(piece) = task.plan.piece_at(at) else {
            return Next::End(Status::IoErr);
        };
        let planner::Way::Disk(disk) = piece.way else {
            task.done += piece.end - at;
            return self.next(tag);
        };
        task.step = Step::Zeros;
        self.counts.disk += 1;
        let vector = task.zeros_vector(
            self.zeros.first(),
            disk + (at - piece.start),
            piece.end - at,
        );
        Next::Work(Work::Write {
            target: Target::Device,
            vector,
            stable: false,
        })
    }

    /// A sync that covers what has ended before. One of the device will do
    /// where the file system's records have not changed.
    fn sync(&mut self, tag: u32) -> Next {
        if self.shared.has_lost_writes() {
            return Next::End(Status::IoErr);
        }
        let (covers, device_will_do) = self.shared.begin_sync();
        let target = if device_will_do && self.raw.is_some() {
            Target::Device
        } else {
            Target::Image
        };
        self.tasks[tag as usize].step = Step::Sync(target, covers);
        Next::Work(Work::Sync(target))
    }

    fn discard(&mut self, tag: u32) -> Next {
        let task = &mut self.tasks[tag as usize];
        if task.step == Step::Allocated || task.middle_is_empty() || !self.shared.can_punch() {
            return Next::End(Status::Ok);
        }
        self.allocate(tag, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
    }

    /// Zeros by the file system where whole blocks are meant, else by writing.
    fn write_zeroes(&mut self, tag: u32, offset: u64, unmap: bool) -> Next {
        let task = &mut self.tasks[tag as usize];
        if !task.middle_is_empty() && offset + task.done == task.middle_start {
            if unmap && self.shared.can_punch() {
                return self.allocate(tag, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
            }
            if self.shared.can_zero_range() {
                return self.allocate(tag, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);
            }
        }
        self.bounce(tag, offset, true, Some(false))
    }

    fn allocate(&mut self, tag: u32, mode: i32) -> Next {
        if self.allocations == ALLOCATIONS {
            return Next::Stall;
        }
        self.allocations += 1;
        let task = &mut self.tasks[tag as usize];
        task.step = Step::Allocate(mode);
        Next::Work(Work::Allocate {
            mode,
            offset: task.middle_start,
            len: task.middle_end - task.middle_start,
        })
    }

    /// The next operation of a task that goes through a buffer. `stable` is
    /// given for writes.
    fn bounce(&mut self, tag: u32, offset: u64, write: bool, stable: Option<bool>) -> Next {
        let task = &mut self.tasks[tag as usize];
        if task.buffer.is_none() {
            task.buffer = self.pool.take();
        }
        let Some(buffer) = task.buffer else {
            return Next::Stall;
        };
        if task.left() == 0 {
            // A new chunk: its whole blocks, as many as the buffer holds.
            let align = u64::from(self.shared.align.offset);
            let start = offset + task.done;
            let limit = (start - start % align) + self.pool.size() as u64;
            let mut end = (offset + task.len).min(limit);
            if !task.middle_is_empty() && start < task.middle_start {
                end = end.min(task.middle_start);
            }
            task.chunk_start = start;
            task.chunk_end = end;
            let (first, last) = (start - start % align, end.next_multiple_of(align));
            let partial = write && (first != start || last != end);
            if partial && !self.shared.claim_blocks(start, end) {
                self.waits_elsewhere = true;
                task.chunk_end = task.chunk_start;
                return Next::Stall;
            }
            task.owns_blocks = partial;
            task.aim(self.pool.entry(buffer), first, last);
            task.step = if !write {
                Step::BufferRead
            } else if partial {
                Step::BufferFill
            } else {
                Step::BufferWrite
            };
            if task.step == Step::BufferWrite {
                self.fill(tag);
            }
        }
        let task = &self.tasks[tag as usize];
        let vector = Vector {
            iov: &raw const task.entry,
            count: 1,
            offset: task.entry_offset,
        };
        Next::Work(match task.step {
            Step::BufferWrite => Work::Write {
                target: Target::Image,
                vector,
                stable: stable.unwrap_or(false),
            },
            _ => Work::Read(Target::Image, vector),
        })
    }

    /// Puts what a chunk writes into its buffer.
    fn fill(&mut self, tag: u32) {
        let task = &self.tasks[tag as usize];
        let Some(buffer) = task.buffer else { return };
        let (at, len) = task.chunk_in_buffer();
        if matches!(task.op, Op::WriteZeroes { .. }) {
            self.pool.zero(buffer, at, len);
        } else {
            // SAFETY: the pieces are guest memory, mapped until the
            // completion is reported.
            unsafe {
                self.pool
                    .gather(buffer, at, &task.pieces, task.chunk_from(), len)
            };
        }
    }

    /// Takes the result of a task's operation and moves the task on.
    fn result(&mut self, tag: u32, result: i32) {
        let task = &mut self.tasks[tag as usize];
        if let Step::Allocate(_) = task.step {
            self.allocations -= 1;
        }
        if result < 0 {
            match -result {
                // Not begun: the same again.
                libc::EINTR | libc::EAGAIN => return self.advance(tag),
                libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV if self.unsupported(tag) => {
                    return self.advance(tag);
                }
                _ => {}
            }
            if matches!(self.tasks[tag as usize].step, Step::Sync(..)) {
                self.shared.lose_writes();
            }
            self.shared.report(self.tasks[tag as usize].op, -result);
            return self.end(tag, Status::IoErr);
        }
        let moved = u64::from(result.unsigned_abs());
        let ok = match task.step {
            Step::Direct => task.direct_moved(moved),
            Step::BufferRead | Step::BufferFill | Step::BufferWrite => task.buffer_moved(moved),
            Step::Zeros => {
                task.done += moved;
                moved > 0
            }
            Step::Sync(target, covers) => {
                if target == Target::Image {
                    self.shared.end_sync(covers);
                }
                task.step = Step::Synced;
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
        if self.tasks[tag as usize].left() == 0 {
            self.chunk_done(tag);
        }
        self.advance(tag);
    }

    /// A buffer's operation is complete: what was read is handed out, what
    /// was written counts as done.
    fn chunk_done(&mut self, tag: u32) {
        let task = &mut self.tasks[tag as usize];
        let Some(buffer) = task.buffer else { return };
        match task.step {
            Step::BufferRead => {
                let (at, len) = task.chunk_in_buffer();
                // SAFETY: the pieces of a read are writable guest memory,
                // mapped until the completion is reported.
                unsafe {
                    self.pool
                        .scatter(buffer, at, &task.pieces, task.chunk_from(), len)
                };
                task.chunk_ends();
            }
            Step::BufferFill => {
                task.aim(self.pool.entry(buffer), task.first, task.last);
                task.step = Step::BufferWrite;
                self.fill(tag);
            }
            Step::BufferWrite => {
                if std::mem::take(&mut task.owns_blocks) {
                    self.shared.release_blocks(task.chunk_start, task.chunk_end);
                }
                task.chunk_ends();
            }
            _ => {}
        }
    }

    /// The image's file system cannot do what was tried: remember that, and
    /// whether there is another way.
    fn unsupported(&mut self, tag: u32) -> bool {
        let task = &mut self.tasks[tag as usize];
        let Step::Allocate(mode) = task.step else {
            return false;
        };
        self.shared.cannot(mode);
        task.step = Step::New;
        true
    }
}

impl<E: Engine> IoChannel for BlockIo<E> {
    fn memory(&mut self, regions: &[HostRegion]) {
        if let Some(pins) = &mut self.pins {
            pins.want(regions, &mut self.engine);
        }
    }

    fn submit(&mut self, tag: Tag, op: Op, data: &[libc::iovec]) {
        let _counted = InRequests::begin();
        self.tasks[tag.0 as usize].begin(op, data, &self.shared);
        self.advance(tag.0);
    }

    fn flush_submissions(&mut self) {
        let _counted = InRequests::begin();
        self.engine.submit();
    }

    fn reap(&mut self, done: &mut impl FnMut(Completion)) {
        let _counted = InRequests::begin();
        if let Some(raw) = &mut self.raw {
            raw.turn();
        }
        if let Some(pins) = self.pins.as_mut().filter(|pins| !pins.is_settled()) {
            pins.take(&mut self.engine);
        }
        let mut results = std::mem::take(&mut self.results);
        self.engine
            .completions(|tag, result| results.push((tag, result)));
        for (tag, result) in results.drain(..) {
            self.result(tag, result);
        }
        self.results = results;
        self.waits_elsewhere = false;
        for _ in 0..self.stalled.len() {
            if let Some(tag) = self.stalled.pop_front() {
                self.advance(tag);
            }
        }
        self.counts.ended += self.ended.len() as u64;
        self.counts.publish();
        for completion in self.ended.drain(..) {
            done(completion);
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
        self.engine.wait(timeout);
    }
}
