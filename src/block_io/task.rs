//! One request on its way: how far it has come and what it holds.

use mapping::{Fence, Hold};
use vhost_backend::Op;

use super::bulk::Flight;
use super::pieces::Pieces;
use super::shared::Shared;
use crate::engine::Target;
use crate::engine::bounce::{Buffer, Pool};
use mapping::path::{Claim, Piece, Plan};

/// What a task's operation in the kernel, or its last one, is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    New,
    /// Guest memory and the image, with nothing between.
    Direct,
    /// Guest memory and the device under the image.
    Raw,
    /// Zeros to the device.
    Zeros,
    /// Reads into the buffer, for the guest.
    BufferRead,
    /// Reads into the buffer what a partial write leaves as it is.
    BufferFill,
    /// Writes the buffer.
    BufferWrite,
    /// fallocate(2) with this mode.
    Allocate(i32),
    Allocated,
    /// A sync of this, which covers so many changes of the file.
    Sync(Target, u64),
    Synced,
}

/// The way that was chosen for a task, with what it keeps until the task has
/// ended or leaves it.
#[derive(Debug)]
pub(super) enum Way {
    /// None yet.
    Open,
    /// By the file, which it does not change.
    File,
    /// By the file, which it may change.
    Change(Apart),
    /// As its plan says.
    Planned,
}

/// What keeps a change by the file apart from raw I/O.
#[derive(Debug)]
pub(super) enum Apart {
    /// Raw I/O will not begin before this is dropped, or no change matters to
    /// it.
    Claimed { _claim: Claim },
    /// Nobody finds the range in the map until this is dropped.
    Held {
        _hold: Hold,
        /// To be waited for before anything is done.
        fence: Option<Fence>,
        /// The worker will be told when the fence has passed.
        asked: bool,
    },
}

/// A slot of the task table.
#[derive(Debug)]
pub(super) struct Task {
    pub op: Op,
    pub step: Step,
    /// Guest memory; consumed from the front by direct operations.
    pub pieces: Pieces,
    /// Bytes of the request, and how many of them are done.
    pub len: u64,
    pub done: u64,
    /// The pieces and the offset suit direct I/O.
    pub direct: bool,
    pub buffer: Option<Buffer>,
    /// The chunk of the request that the buffer is for.
    pub chunk_start: u64,
    pub chunk_end: u64,
    /// The whole blocks around it.
    pub first: u64,
    pub last: u64,
    pub owns_blocks: bool,
    /// The rest of the buffer's operation.
    pub entry: libc::iovec,
    pub entry_offset: u64,
    /// What it is done to.
    pub target: Target,
    /// The part of a discard or write-zeroes that the file system can do.
    pub middle_start: u64,
    pub middle_end: u64,
    pub way: Way,
    /// Of a planned one; empty otherwise.
    pub plan: Plan,
    /// The file was synced for it, which may not have reached the disk.
    pub file_synced: bool,
    /// Some of it was written to the device.
    pub was_raw: bool,
    /// Its operation in the kernel is a large one.
    pub flight: Option<Flight>,
    /// How often the device did not take it at once.
    pub refusals: u8,
    /// The device does not take it: the file will.
    pub by_file: bool,
    /// The last clone of the image of which it has demanded its part.
    pub clone_asked: u64,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            op: Op::Flush,
            step: Step::New,
            pieces: Pieces::new(),
            len: 0,
            done: 0,
            direct: false,
            buffer: None,
            chunk_start: 0,
            chunk_end: 0,
            first: 0,
            last: 0,
            owns_blocks: false,
            entry: libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            },
            entry_offset: 0,
            target: Target::Image,
            middle_start: 0,
            middle_end: 0,
            way: Way::Open,
            plan: Plan::default(),
            file_synced: false,
            was_raw: false,
            flight: None,
            refusals: 0,
            by_file: false,
            clone_asked: 0,
        }
    }
}

impl Task {
    /// Takes a new request.
    pub(super) fn begin(&mut self, op: Op, data: &[libc::iovec], shared: &Shared) {
        self.op = op;
        self.step = Step::New;
        self.pieces.begin(data);
        self.done = 0;
        self.entry.iov_len = 0;
        self.direct = false;
        self.file_synced = false;
        self.was_raw = false;
        self.refusals = 0;
        self.by_file = false;
        self.clone_asked = 0;
        self.middle_start = 0;
        self.middle_end = 0;
        match op {
            Op::Read { offset } | Op::Write { offset, .. } => {
                self.len = data.iter().map(|piece| piece.iov_len as u64).sum();
                let align = &shared.align;
                let block = match op {
                    Op::Read { .. } => align.read_offset,
                    _ => align.offset,
                };
                let (memory, block) = (align.memory as usize, block as usize);
                self.direct = offset.is_multiple_of(block as u64)
                    && data.iter().all(|piece| {
                        piece.iov_base.addr().is_multiple_of(memory)
                            && piece.iov_len.is_multiple_of(block)
                    });
            }
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                self.len = len;
                let unit = u64::from(shared.unit);
                self.middle_start = offset.next_multiple_of(unit);
                self.middle_end = (offset + len) - (offset + len) % unit;
            }
            Op::Flush => self.len = 0,
        }
    }

    /// It is over: nothing is kept for it. What it has changed by the file
    /// counts, whether or not that was all.
    #[inline(always)]
    pub(super) fn let_all_go(&mut self, pool: &mut Pool, shared: &Shared) {
        if let Some(buffer) = self.buffer.take() {
            pool.give_back(buffer);
        }
        if std::mem::take(&mut self.owns_blocks) {
            shared.release_blocks(self.chunk_start, self.chunk_end);
        }
        if let Way::Change(_) = self.way {
            shared.changed();
        }
        self.leave_way();
        self.pieces.forget();
    }

    /// Where the request begins in the image.
    pub(super) fn start(&self) -> u64 {
        match self.op {
            Op::Read { offset }
            | Op::Write { offset, .. }
            | Op::Discard { offset, .. }
            | Op::WriteZeroes { offset, .. } => offset,
            Op::Flush => 0,
        }
    }

    /// Where it ends, if it changes the image.
    pub(super) fn changes_until(&self) -> Option<u64> {
        match self.op {
            Op::Write { offset, .. }
            | Op::Discard { offset, .. }
            | Op::WriteZeroes { offset, .. } => Some(offset.saturating_add(self.len)),
            Op::Read { .. } | Op::Flush => None,
        }
    }

    /// There is no whole unit in the range of a discard or write-zeroes.
    pub(super) fn middle_is_empty(&self) -> bool {
        self.middle_start >= self.middle_end
    }

    /// Counts what a direct operation has moved; false if that was nothing.
    pub(super) fn direct_moved(&mut self, moved: u64) -> bool {
        self.done += moved;
        self.pieces.moved(moved);
        moved > 0
    }

    /// Where it goes from byte `at` of the image on; `None` behind the end of
    /// its plan, and if it has none.
    pub(super) fn planned(&self, at: u64) -> Option<Piece> {
        match self.way {
            Way::Planned => self.plan.piece_at(at),
            _ => None,
        }
    }

    /// It finds a way anew: what it kept for this one is let go.
    pub(super) fn leave_way(&mut self) {
        self.plan.release();
        self.way = Way::Open;
    }

    /// It goes as its plan says.
    pub(super) fn is_planned(&self) -> bool {
        matches!(self.way, Way::Planned)
    }

    /// Bytes of the buffer's operation that are still to move.
    pub(super) fn left(&self) -> usize {
        self.entry.iov_len
    }

    /// Aims the buffer at the blocks `first..last` (byte offsets).
    pub(super) fn aim(&mut self, whole: libc::iovec, first: u64, last: u64) {
        self.first = first;
        self.last = last;
        self.entry = whole;
        self.entry.iov_len = usize::try_from(last - first)
            .unwrap_or(0)
            .min(whole.iov_len);
        self.entry_offset = first;
    }

    /// Counts what the buffer's operation has moved; false if nothing.
    pub(super) fn buffer_moved(&mut self, moved: u64) -> bool {
        let bytes = usize::try_from(moved)
            .unwrap_or(usize::MAX)
            .min(self.entry.iov_len);
        self.entry.iov_base = self.entry.iov_base.wrapping_byte_add(bytes);
        self.entry.iov_len -= bytes;
        self.entry_offset += moved;
        moved > 0
    }

    /// Where the chunk lies in the buffer, and how long it is.
    pub(super) fn chunk_in_buffer(&self) -> (usize, usize) {
        let at = usize::try_from(self.chunk_start - self.first).unwrap_or(0);
        (
            at,
            usize::try_from(self.chunk_end - self.chunk_start).unwrap_or(0),
        )
    }

    /// Where the chunk lies in the request's data.
    pub(super) fn chunk_from(&self) -> usize {
        usize::try_from(self.chunk_start - self.start()).unwrap_or(0)
    }

    /// The chunk is done.
    pub(super) fn chunk_ends(&mut self) {
        self.done = self.chunk_end - self.start();
    }
}
