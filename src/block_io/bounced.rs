//! Requests whose buffers, offset or length direct I/O does not take, through
//! aligned buffers of a fixed pool: chunk by chunk, and block by block where a
//! part of a block is written.
#![allow(unsafe_code)]

use vhost_backend::{Op, Unreachable};

use super::task::Step;
use super::{BlockIo, Next};
use crate::engine::{Engine, Target, Vector, Work};

impl<E: Engine> BlockIo<E> {
    /// The next operation of a task that goes through a buffer. `stable` is
    /// given for writes.
    pub(super) fn bounce(
        &mut self,
        tag: u32,
        offset: u64,
        write: bool,
        stable: Option<bool>,
    ) -> Next {
        let task = &mut self.tasks[tag as usize];
        if task.buffer.is_none() {
            task.buffer = self.pool.take();
        }
        let Some(buffer) = task.buffer else {
            return Next::Stall;
        };
        if task.left() == 0 {
            // A new chunk: its whole blocks, as many as the buffer holds.
            let start = offset + task.done;
            let tail = self.shared.tail();
            let (target, align, barrier) = if start >= tail {
                (Target::Tail, 1, u64::MAX)
            } else {
                (Target::Image, u64::from(self.shared.align.offset), tail)
            };
            task.target = target;
            let limit = (start - start % align) + self.pool.size() as u64;
            let mut end = (offset + task.len).min(limit).min(barrier);
            if !task.middle_is_empty() && start < task.middle_start {
                end = end.min(task.middle_start);
            }
            task.chunk_start = start;
            task.chunk_end = end;
            let (first, last) = (start - start % align, self.shared.last(end, align));
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
            if task.step == Step::BufferWrite && self.fill(tag).is_err() {
                return self.unreachable(tag);
            }
        }
        self.counts.bounced += 1;
        let task = &self.tasks[tag as usize];
        let vector = Vector {
            iov: &raw const task.entry,
            count: 1,
            offset: task.entry_offset,
            bytes: task.entry.iov_len as u64,
        };
        Next::Work(match task.step {
            Step::BufferWrite => Work::Write {
                target: task.target,
                vector,
                stable: stable.unwrap_or(false),
            },
            _ => Work::Read(task.target, vector),
        })
    }

    /// A read has come to the end of an image that ends within a sector: the
    /// rest of that reads as zeros.
    pub(super) fn pad(&mut self, tag: u32) -> Result<(), Unreachable> {
        let task = &mut self.tasks[tag as usize];
        match (task.step, task.buffer) {
            (Step::Direct, _) if self.shared.ends_within_sector(task.start() + task.done) => {
                let rest = task.len - task.done;
                // SAFETY: the pieces of a read are writable guest memory,
                // mapped until the completion is reported.
                unsafe { task.pieces.fill_zeros(rest) }?;
                task.done = task.len;
            }
            (Step::BufferRead, Some(buffer))
                if self.shared.ends_within_sector(task.entry_offset) =>
            {
                let at = usize::try_from(task.entry_offset - task.first).unwrap_or(0);
                self.pool.zero(buffer, at, task.left());
                task.entry.iov_len = 0;
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts what a chunk writes into its buffer.
    fn fill(&mut self, tag: u32) -> Result<(), Unreachable> {
        let task = &self.tasks[tag as usize];
        let Some(buffer) = task.buffer else {
            return Ok(());
        };
        let (at, len) = task.chunk_in_buffer();
        if matches!(task.op, Op::WriteZeroes { .. }) {
            self.pool.zero(buffer, at, len);
            Ok(())
        } else {
            // SAFETY: the pieces are guest memory, mapped until the
            // completion is reported.
            unsafe {
                self.pool
                    .gather(buffer, at, task.pieces.all(), task.chunk_from(), len)
            }
        }
    }

    /// A buffer's operation is complete: what was read is handed out, what
    /// was written counts as done.
    pub(super) fn chunk_done(&mut self, tag: u32) -> Result<(), Unreachable> {
        let task = &mut self.tasks[tag as usize];
        let Some(buffer) = task.buffer else {
            return Ok(());
        };
        match task.step {
            Step::BufferRead => {
                let (at, len) = task.chunk_in_buffer();
                // SAFETY: the pieces of a read are writable guest memory,
                // mapped until the completion is reported.
                unsafe {
                    self.pool
                        .scatter(buffer, at, task.pieces.all(), task.chunk_from(), len)
                }?;
                task.chunk_ends();
            }
            Step::BufferFill => {
                task.aim(self.pool.entry(buffer), task.first, task.last);
                task.step = Step::BufferWrite;
                self.fill(tag)?;
            }
            Step::BufferWrite => {
                if std::mem::take(&mut task.owns_blocks) {
                    self.shared.release_blocks(task.chunk_start, task.chunk_end);
                }
                task.chunk_ends();
            }
            _ => {}
        }
        Ok(())
    }
}
