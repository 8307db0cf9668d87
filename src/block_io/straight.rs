//! Operations that need no buffer of ours: between guest memory and the disk or
//! the file, zeros, punches and syncs.
#![allow(unsafe_code)]

use vhost_backend::{Op, Status};

use super::task::{Step, Way};
use super::{ALLOCATIONS, BlockIo, Next};
use crate::engine::{Engine, Target, Work};
use crate::planner;

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
    pub(super) fn planned_zeroes(&mut self, tag: u32) -> Next {
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
    pub(super) fn sync(&mut self, tag: u32) -> Next {
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
