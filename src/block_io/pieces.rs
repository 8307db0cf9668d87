//! The guest memory of a request, consumed from the front by operations that
//! have nothing between it and the disk.
#![allow(unsafe_code)]

use vhost_backend::{Unreachable, zero};

use crate::engine::Vector;
use crate::engine::limits::Limits;

/// Most entries of one vector (`UIO_MAXIOV`).
const VECTOR_ENTRIES: usize = 1024;
/// Pieces that room is kept for; longer lists are freed when they end.
const PIECES: usize = 130;
/// Most entries of a vector of zeros.
const ZEROS: usize = 64;
/// Bytes of a page of memory.
const PAGE: usize = 4096;

/// Pieces of memory in order. Vectors that are made of them point into the
/// list, which is left alone until their operation has ended.
#[derive(Debug)]
pub(super) struct Pieces {
    list: Vec<libc::iovec>,
    /// The first that is not done.
    first: usize,
    /// The entry that was cut at the end of an operation, and the bytes that
    /// were cut off.
    cut: Option<(usize, usize)>,
}

impl Pieces {
    /// None, and room for some.
    pub(super) fn new() -> Pieces {
        Pieces {
            list: Vec::with_capacity(PIECES),
            first: 0,
            cut: None,
        }
    }

    /// Takes those of a new request.
    pub(super) fn begin(&mut self, data: &[libc::iovec]) {
        self.list.clear();
        self.list.extend_from_slice(data);
        self.first = 0;
        self.cut = None;
    }

    /// The request has ended: room for a long list is given back.
    pub(super) fn forget(&mut self) {
        self.list.clear();
        if self.list.capacity() > PIECES {
            self.list.shrink_to(PIECES);
        }
    }

    /// All of them, done or not.
    pub(super) fn all(&self) -> &[libc::iovec] {
        &self.list
    }

    fn rest(&self) -> &[libc::iovec] {
        self.list.get(self.first..).unwrap_or_default()
    }

    /// The pieces that are not done, as many as one operation takes, but no
    /// more than `limit` bytes.
    pub(super) fn upto(&mut self, offset: u64, limit: u64) -> Vector {
        self.mend();
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut left = most;
        let mut count = 0;
        let rest = self.list.get_mut(self.first..).unwrap_or_default();
        for (index, piece) in rest.iter_mut().take(VECTOR_ENTRIES).enumerate() {
            if left == 0 {
                break;
            }
            count += 1;
            if piece.iov_len > left {
                self.cut = Some((self.first + index, piece.iov_len - left));
                piece.iov_len = left;
            }
            left -= piece.iov_len;
        }
        self.vector(count, offset, most - left)
    }

    /// As [`upto`](Self::upto), in pieces that the device
    /// takes without splitting them; at least one page if that much is left.
    pub(super) fn raw_vector(&mut self, offset: u64, bytes: u64, limits: Limits) -> Vector {
        let mut room = usize::try_from(bytes.min(limits.bytes)).unwrap_or(usize::MAX);
        let least = room.min(PAGE);
        let mut pages = limits.segments;
        let mut taken = 0;
        self.mend();
        for piece in self.rest() {
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
        self.upto(offset, taken.max(least) as u64)
    }

    fn vector(&self, count: u32, offset: u64, bytes: usize) -> Vector {
        Vector {
            iov: self.rest().as_ptr(),
            count,
            offset,
            bytes: bytes as u64,
        }
    }

    /// Gives the entry that was cut its end back.
    fn mend(&mut self) {
        if let Some((index, bytes)) = self.cut.take()
            && let Some(piece) = self.list.get_mut(index)
        {
            piece.iov_len += bytes;
        }
    }

    /// The next `bytes` of them are done.
    pub(super) fn moved(&mut self, bytes: u64) {
        self.mend();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        while let Some(piece) = self.list.get_mut(self.first) {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            self.first += 1;
        }
    }

    /// Fills the next `bytes` bytes of the memory with zeros: they are done.
    ///
    /// # Errors
    /// Some of it cannot be reached.
    ///
    /// # Safety
    /// The pieces are mapped, writable guest memory.
    pub(super) unsafe fn fill_zeros(&mut self, bytes: u64) -> Result<(), Unreachable> {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        for piece in self.rest() {
            let part = piece.iov_len.min(left);
            // SAFETY: not more than the piece has, which the caller vouches
            // for. The guest may use the memory meanwhile, as with any device.
            unsafe { zero(piece.iov_base.cast(), part) }?;
            left -= part;
            if left == 0 {
                break;
            }
        }
        self.moved(bytes);
        Ok(())
    }

    /// A vector of zeros: `zeros` as often as it takes, for at most `bytes`,
    /// and no more than the device takes without splitting it.
    pub(super) fn zeros(
        &mut self,
        zeros: libc::iovec,
        offset: u64,
        bytes: u64,
        limits: Limits,
    ) -> Vector {
        let most = limits.segments.saturating_mul(PAGE) as u64;
        let most = bytes.min(limits.bytes).min(most);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut left = most;
        self.list.clear();
        while left > 0 && self.list.len() < ZEROS {
            let mut entry = zeros;
            entry.iov_len = entry.iov_len.min(left);
            left -= entry.iov_len;
            self.list.push(entry);
        }
        self.first = 0;
        let entries = u32::try_from(self.list.len()).unwrap_or(1);
        self.vector(entries, offset, most - left)
    }
}
