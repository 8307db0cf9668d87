//! Operations that need no buffer of ours: between guest memory and the disk or
//! the file, zeros, punches and syncs.
#![allow(unsafe_code)]

use vhost_backend::{Op, Status};

use super::task::Step;
use super::{ALLOCATIONS, BlockIo, Next};
use crate::engine::{Engine, Target, Work};
use mapping::path;

/// How often a raw operation is tried before the file gets it.
const MOST_REFUSALS: u8 = 16;
/// So many raw operations of a worker are tried at a time, however small the
/// device's queue is.
const LEAST_IN_FLIGHT: usize = 8;
/// The same where nothing of this worker's is in the way, so that it waits for
/// [`RETRY`](super::RETRY) each time.
const MOST_WAITS: u8 = 6;

impl<E: Engine> BlockIo<E> {
    /// The next operation between guest memory and the disk or the file.
    pub(super) fn direct(&mut self, tag: u32) -> Next {
        let task = &mut self.tasks[tag as usize];
        let start = task.start();
        let (target, vector) = loop {
            let at = start + task.done;
            if at == start + task.len {
                return Next::End(Status::Ok);
            }
            let Some(piece) = task.planned(at) else {
                if task.is_planned() {
                    // The plan is done, and more is left than it had room for.
                    self.let_go(tag);
                    return self.next(tag);
                }
                break (Target::Image, task.pieces.upto(at, self.bulk.longest()));
            };
            match piece.way {
                path::Way::Zeros => {
                    // SAFETY: zeros are only planned for reads, whose pieces
                    // are writable guest memory, mapped until the completion
                    // is reported.
                    if unsafe { task.pieces.fill_zeros(piece.end - at) }.is_err() {
                        return self.unreachable(tag);
                    }
                    task.done += piece.end - at;
                    self.counts.zeros += 1;
                }
                path::Way::Disk(disk) => {
                    if self.raw_flying >= self.raw_limit {
                        return Next::Stall;
                    }
                    let disk = disk + (at - piece.start);
                    let most = (piece.end - at).min(self.bulk.longest());
                    let vector = task.pieces.raw_vector(disk, most, self.limits);
                    break (Target::Device, vector);
                }
                path::Way::File => {
                    let most = (piece.end - at).min(self.bulk.longest());
                    break (Target::Image, task.pieces.upto(at, most));
                }
            }
        };
        if !self.bulk.may_begin(vector.bytes) {
            return Next::Stall;
        }
        task.flight = self.bulk.begin(vector.bytes);
        match target {
            Target::Device => {
                task.step = Step::Raw;
                task.was_raw = true;
                self.raw_flying += 1;
                self.counts.disk += 1;
            }
            Target::Image | Target::Tail => {
                task.step = Step::Direct;
                self.counts.file += 1;
            }
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

    /// The guest's memory cannot be reached by a copy of ours, as if the kernel
    /// had said so: the request fails.
    pub(super) fn unreachable(&mut self, tag: u32) -> Next {
        self.shared
            .report(self.tasks[tag as usize].op, libc::EFAULT);
        Next::End(Status::IoErr)
    }

    /// The same, where the task is not asked what is next.
    #[cold]
    pub(super) fn end_unreachable(&mut self, tag: u32) {
        if let Next::End(status) = self.unreachable(tag) {
            self.end(tag, status);
        }
    }

    /// Zeros over written extents, straight to the disk.
    pub(super) fn planned_zeroes(&mut self, tag: u32) -> Next {
        let task = &mut self.tasks[tag as usize];
        let at = task.start() + task.done;
        let Some(piece) = task.planned(at) else {
            // The plan is done, and more is left than it had room for.
            self.let_go(tag);
            return self.next(tag);
        };
        let path::Way::Disk(disk) = piece.way else {
            task.done += piece.end - at;
            return self.next(tag);
        };
        if self.raw_flying >= self.raw_limit {
            return Next::Stall;
        }
        task.step = Step::Zeros;
        self.raw_flying += 1;
        self.counts.disk += 1;
        let vector = task.pieces.zeros(
            self.zeros.first(),
            disk + (at - piece.start),
            piece.end - at,
            self.limits,
        );
        Next::Work(Work::Write {
            target: Target::Device,
            vector,
            stable: false,
        })
    }

    /// Takes a task off its plan: it finds the way for what is left anew.
    pub(super) fn let_go(&mut self, tag: u32) {
        let task = &mut self.tasks[tag as usize];
        task.leave_way();
        task.step = Step::New;
    }

    /// The kernel was not given a task's raw operation, as the lease was not
    /// seen held.
    pub(super) fn withdrawn(&mut self, tag: u32) {
        self.counts.disk -= 1;
        self.let_go(tag);
        self.advance(tag);
    }

    /// The device did not take a task's raw operation at once: its queue is
    /// full, pages of its own cache are in the way, or the operation is one
    /// that has to be split. It waits for others of this worker to end, and
    /// goes by the file if that does not help.
    pub(super) fn refused(&mut self, tag: u32) {
        self.counts.refused += 1;
        self.counts.disk -= 1;
        let task = &mut self.tasks[tag as usize];
        task.refusals = task.refusals.saturating_add(1);
        let (refusals, at) = (task.refusals, task.start() + task.done);
        let piece = task.planned(at);
        if let (Some(raw), Some(piece)) = (&self.raw, piece) {
            // Whoever read the device itself has left pages there.
            raw.forget_pages(&piece);
        }
        if refusals == 1 {
            self.advance(tag);
        } else if self.raw_flying > 0 && refusals < MOST_REFUSALS {
            // Most likely the queue is full.
            self.raw_limit = self.raw_flying.max(LEAST_IN_FLIGHT);
            self.raw_calm = 0;
            self.stalled.push_back(tag);
        } else if self.waiting_helps && refusals < MOST_WAITS {
            // Pages that are being written are gone a moment later.
            self.waits_elsewhere = true;
            self.stalled.push_back(tag);
        } else {
            self.waiting_helps = false;
            let task = &mut self.tasks[tag as usize];
            task.by_file = true;
            self.let_go(tag);
            self.advance(tag);
        }
    }

    /// A sync that covers what has ended before. One of the device will do
    /// where the file system's records have not changed.
    pub(super) fn sync(&mut self, tag: u32) -> Next {
        if self.shared.has_lost_writes() {
            return Next::End(Status::IoErr);
        }
        let (covers, device_will_do) = self.shared.begin_sync();
        let task = &mut self.tasks[tag as usize];
        let target = if task.file_synced || device_will_do && self.raw.is_some() {
            Target::Device
        } else {
            Target::Image
        };
        task.step = Step::Sync(target, covers);
        Next::Work(Work::Sync(target))
    }

    pub(super) fn discard(&mut self, tag: u32) -> Next {
        let task = &mut self.tasks[tag as usize];
        if task.step == Step::Allocated || task.middle_is_empty() || !self.shared.can_punch() {
            return Next::End(Status::Ok);
        }
        self.allocate(tag, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
    }

    /// Zeros by the file system where whole blocks are meant, else by writing.
    pub(super) fn write_zeroes(&mut self, tag: u32, offset: u64, unmap: bool) -> Next {
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

    pub(super) fn allocate(&mut self, tag: u32, mode: i32) -> Next {
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

    /// The image's file system cannot do what was tried: remember that, and
    /// whether there is another way.
    pub(super) fn unsupported(&mut self, tag: u32) -> bool {
        let task = &mut self.tasks[tag as usize];
        let Step::Allocate(mode) = task.step else {
            return false;
        };
        self.shared.cannot(mode);
        task.step = Step::New;
        true
    }
}
