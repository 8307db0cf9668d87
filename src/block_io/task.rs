//! One request on its way: how far it has come and what it holds.

#![allow(unsafe_code)]

use mapping::{Fence, Hold};
use vhost_backend::Op;

use super::shared::Shared;
use crate::engine::bounce::Buffer;
use crate::engine::limits::Limits;
use crate::engine::{Target, Vector};
use crate::path::planner::Plan;
use crate::path::raw::Claim;

/// Most entries of one vector (`UIO_MAXIOV`).
const VECTOR_ENTRIES: usize = 1024;
/// Pieces that a slot keeps room for; longer lists are freed when they end.
const PIECES: usize = 130;
/// Most entries of a vector of zeros.
const ZEROS: usize = 64;
/// Bytes of a page of memory.
const PAGE: usize = 4096;

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

/// The way that was chosen for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// None yet.
    Open,
    /// By the file.
    File,
    /// As its plan says.
    Planned,
}

/// A slot of the task table.
#[derive(Debug)]
pub(super) struct Task {
    pub op: Op,
    pub step: Step,
    /// Guest memory; consumed from the front by direct operations.
    pub pieces: Vec<libc::iovec>,
    first_piece: usize,
    /// The entry that was cut at the end of an operation, and the bytes that
    /// were cut off.
    cut: Option<(usize, usize)>,
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
    pub plan: Plan,
    /// Of the generation that it was planned in.
    pub claim: Option<Claim>,
    /// Its range, taken away from the map.
    pub hold: Option<Hold>,
    /// To be waited for before anything is done.
    pub fence: Option<Fence>,
    /// The worker will be told when the fence has passed.
    pub fence_asked: bool,
    /// The file system's records may change, so the next FLUSH is its to do.
    pub changes_file: bool,
    /// The file was synced for it, which may not have reached the disk.
    pub file_synced: bool,
    /// Some of it was written to the device.
    pub was_raw: bool,
    /// How often the device did not take it at once.
    pub refusals: u8,
    /// The device does not take it: the file will.
    pub by_file: bool,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            op: Op::Flush,
            step: Step::New,
            pieces: Vec::with_capacity(PIECES),
            first_piece: 0,
            cut: None,
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
            plan: Plan::by_file(0..0),
            claim: None,
            hold: None,
            fence: None,
            fence_asked: false,
            changes_file: false,
            file_synced: false,
            was_raw: false,
            refusals: 0,
            by_file: false,
        }
    }
}

impl Task {
    /// Takes a new request.
    pub(super) fn begin(&mut self, op: Op, data: &[libc::iovec], shared: &Shared) {
        self.op = op;
        self.step = Step::New;
        self.pieces.clear();
        self.pieces.extend_from_slice(data);
        self.first_piece = 0;
        self.done = 0;
        self.entry.iov_len = 0;
        self.direct = false;
        self.cut = None;
        self.way = Way::Open;
        self.fence_asked = false;
        self.changes_file = false;
        self.file_synced = false;
        self.was_raw = false;
        self.refusals = 0;
        self.by_file = false;
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

    /// The request has ended: room for a long list is given back.
    pub(super) fn forget(&mut self) {
        self.pieces.clear();
        if self.pieces.capacity() > PIECES {
            self.pieces.shrink_to(PIECES);
        }
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

    /// The pieces that are not done, as many as one operation takes, but no
    /// more than `limit` bytes.
    pub(super) fn direct_vector(&mut self, offset: u64, limit: u64) -> Vector {
        self.mend();
        let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut count = 0;
        let rest = self.pieces.get_mut(self.first_piece..).unwrap_or_default();
        for (index, piece) in rest.iter_mut().take(VECTOR_ENTRIES).enumerate() {
            if left == 0 {
                break;
            }
            count += 1;
            if piece.iov_len > left {
                self.cut = Some((self.first_piece + index, piece.iov_len - left));
                piece.iov_len = left;
            }
            left -= piece.iov_len;
        }
        self.vector(count, offset)
    }

    /// As [`direct_vector`](Self::direct_vector), in pieces that the device
    /// takes without splitting them; at least one page if that much is left.
    pub(super) fn raw_vector(&mut self, offset: u64, bytes: u64, limits: Limits) -> Vector {
        let mut room = usize::try_from(bytes.min(limits.bytes)).unwrap_or(usize::MAX);
        let least = room.min(PAGE);
        let mut pages = limits.segments;
        let mut taken = 0;
        self.mend();
        for piece in self.pieces.get(self.first_piece..).unwrap_or_default() {
            let skip = piece.iov_base.addr() % PAGE;
            let spans = (skip + piece.iov_len.min(room)).div_ceil(PAGE);
            if spans <= pages {
                taken += piece.iov_len.min(room);
                pages -= spans;
                room -= piece.iov_len.min(room);
            } else {
                // Whole pages' worth, so that what is left stays aligned.
                let fits = (pages * PAGE).saturating_sub(skip) / PAGE * PAGE;
                taken += fits.min(room);
                room = 0;
            }
            if room == 0 || pages == 0 {
                break;
            }
        }
        self.direct_vector(offset, taken.max(least) as u64)
    }

    fn vector(&self, count: u32, offset: u64) -> Vector {
        let rest = self.pieces.get(self.first_piece..).unwrap_or_default();
        Vector {
            iov: rest.as_ptr(),
            count,
            offset,
        }
    }

    /// Gives the entry that was cut its end back.
    fn mend(&mut self) {
        if let Some((index, bytes)) = self.cut.take()
            && let Some(piece) = self.pieces.get_mut(index)
        {
            piece.iov_len += bytes;
        }
    }

    /// Counts what a direct operation has moved; false if that was nothing.
    pub(super) fn direct_moved(&mut self, moved: u64) -> bool {
        self.mend();
        self.done += moved;
        let mut left = usize::try_from(moved).unwrap_or(usize::MAX);
        while let Some(piece) = self.pieces.get_mut(self.first_piece) {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            self.first_piece += 1;
        }
        moved > 0
    }

    /// Fills the next `bytes` bytes of guest memory with zeros: they are done.
    ///
    /// # Safety
    /// The pieces are mapped, writable guest memory.
    pub(super) unsafe fn read_zeros(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        for piece in self.pieces.get(self.first_piece..).unwrap_or_default() {
            let part = piece.iov_len.min(left);
            // SAFETY: not more than the piece has, which the caller vouches
            // for. The guest may use the memory meanwhile, as with any device.
            unsafe { piece.iov_base.cast::<u8>().write_bytes(0, part) };
            left -= part;
            if left == 0 {
                break;
            }
        }
        self.direct_moved(bytes);
    }

    /// A vector of zeros: `zeros` as often as it takes, for at most `bytes`,
    /// and no more than the device takes without splitting it.
    pub(super) fn zeros_vector(
        &mut self,
        zeros: libc::iovec,
        offset: u64,
        bytes: u64,
        limits: Limits,
    ) -> Vector {
        let most = limits.segments.saturating_mul(PAGE) as u64;
        let most = bytes.min(limits.bytes).min(most);
        let mut left = usize::try_from(most).unwrap_or(usize::MAX);
        self.pieces.clear();
        while left > 0 && self.pieces.len() < ZEROS {
            let mut entry = zeros;
            entry.iov_len = entry.iov_len.min(left);
            left -= entry.iov_len;
            self.pieces.push(entry);
        }
        self.first_piece = 0;
        self.vector(u32::try_from(self.pieces.len()).unwrap_or(1), offset)
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
