//! Aligned buffers for requests whose buffers, offset or length direct I/O
//! does not take, and the copying between them and the guest's pieces.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use vhost_backend::{Unreachable, copy};

use crate::host::sys;

/// A buffer taken from a [`Pool`]; to be given back to the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer(usize);

/// A fixed number of equal buffers of one thread, aligned to pages. They are
/// zeros at first, and take no memory before they are used.
#[derive(Debug)]
pub(crate) struct Pool {
    memory: NonNull<u8>,
    bytes: usize,
    size: usize,
    free: Vec<usize>,
}

// SAFETY: the memory is the pool's own, reached only through it.
unsafe impl Send for Pool {}

impl Pool {
    /// `count` buffers of `size` bytes, a multiple of 4096.
    ///
    /// # Errors
    /// There is not that much memory.
    pub(crate) fn new(count: usize, size: usize) -> io::Result<Self> {
        let size = size.max(4096).next_multiple_of(4096);
        let bytes = count.max(1) * size;
        Ok(Self {
            memory: map_zeros(bytes)?,
            bytes,
            size,
            free: (0..count.max(1)).collect(),
        })
    }

    /// Bytes of each buffer.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A buffer, unless all are in use.
    pub(crate) fn take(&mut self) -> Option<Buffer> {
        self.free.pop().map(Buffer)
    }

    /// Makes a buffer free again.
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        self.free.push(buffer.0);
    }

    /// The whole buffer as an entry for the kernel.
    pub(crate) fn entry(&self, buffer: Buffer) -> libc::iovec {
        let offset = buffer.0.saturating_mul(self.size);
        // Also one of another pool's.
        assert!(offset < self.bytes, "a buffer is one of the pool's");
        // SAFETY: all buffers lie in the memory.
        let base = unsafe { self.memory.as_ptr().add(offset) };
        libc::iovec {
            iov_base: base.cast(),
            iov_len: self.size,
        }
    }

    /// The first buffer, for a pool whose buffers are only read.
    pub(crate) fn first(&self) -> libc::iovec {
        self.entry(Buffer(0))
    }

    /// Reads up to `len` bytes into a buffer, at once: for probing.
    ///
    /// # Errors
    /// What preadv(2) says.
    pub(crate) fn read_at(
        &mut self,
        fd: RawFd,
        buffer: Buffer,
        len: usize,
        offset: i64,
    ) -> io::Result<i32> {
        let mut entry = self.entry(buffer);
        entry.iov_len = entry.iov_len.min(len);
        // SAFETY: the buffer is one of ours, and we are borrowed mutably.
        unsafe { sys::preadv(fd, &raw const entry, 1, offset) }
    }

    /// What the first `len` bytes of a buffer hold, or all of it.
    pub(crate) fn bytes(&self, buffer: Buffer, len: i32) -> Vec<u8> {
        let entry = self.entry(buffer);
        let len = usize::try_from(len).unwrap_or(0).min(entry.iov_len);
        // SAFETY: the buffer is ours, initialized, and has as many bytes; no
        // operation is in flight that would change them while we are borrowed.
        unsafe { std::slice::from_raw_parts(entry.iov_base.cast::<u8>(), len) }.to_vec()
    }

    /// Copies `len` bytes of the guest's pieces, from their byte `from` on, to
    /// the buffer's byte `at`.
    ///
    /// # Errors
    /// Some of the guest's memory cannot be reached.
    ///
    /// # Safety
    /// The pieces are mapped guest memory. (The guest may change them
    /// meanwhile: that only changes which bytes of its own it stores.)
    pub(crate) unsafe fn gather(
        &mut self,
        buffer: Buffer,
        at: usize,
        pieces: &[libc::iovec],
        from: usize,
        len: usize,
    ) -> Result<(), Unreachable> {
        let whole = self.entry(buffer);
        assert!(at + len <= whole.iov_len, "copies stay in the buffer");
        let mut to = whole.iov_base.cast::<u8>().wrapping_add(at);
        for_each_part(pieces, from, len, |part, bytes| {
            // SAFETY: `at + len` stays below the buffer's size, checked
            // above, and the parts are `len` bytes together; the caller
            // vouches for the pieces; they do not overlap, the buffer being
            // our own.
            let copied = unsafe { copy(part, to, bytes) };
            to = to.wrapping_add(bytes);
            copied
        })
    }

    /// Copies `len` bytes of the buffer, from its byte `at` on, to the guest's
    /// pieces from their byte `from` on.
    ///
    /// # Errors
    /// Some of the guest's memory cannot be reached.
    ///
    /// # Safety
    /// The pieces are mapped, writable guest memory.
    pub(crate) unsafe fn scatter(
        &self,
        buffer: Buffer,
        at: usize,
        pieces: &[libc::iovec],
        from: usize,
        len: usize,
    ) -> Result<(), Unreachable> {
        let whole = self.entry(buffer);
        assert!(at + len <= whole.iov_len, "copies stay in the buffer");
        let mut source = whole.iov_base.cast::<u8>().wrapping_add(at);
        for_each_part(pieces, from, len, |part, bytes| {
            // SAFETY: as in `gather`, the other way round.
            let copied = unsafe { copy(source, part, bytes) };
            source = source.wrapping_add(bytes);
            copied
        })
    }

    /// Writes zeros to `len` bytes of the buffer from its byte `at` on.
    pub(crate) fn zero(&mut self, buffer: Buffer, at: usize, len: usize) {
        let whole = self.entry(buffer);
        assert!(at + len <= whole.iov_len, "zeros stay in the buffer");
        // SAFETY: inside the buffer, checked above, and it is our own.
        unsafe { std::ptr::write_bytes(whole.iov_base.cast::<u8>().add(at), 0, len) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, unmapped once, and nothing else
        // knows of it: who has a `Buffer` reaches it through the pool.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// New memory that the kernel gives page by page as it is touched. (The
/// allocator would write the zeros itself, as the memory is aligned.)
fn map_zeros(bytes: usize) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces none.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // What a guest writes is nobody else's, in a core dump either. Where the
    // kernel does not know that, nothing else is wrong.
    // SAFETY: it changes no contents of the mapping, which is ours alone.
    unsafe { libc::madvise(address, bytes, libc::MADV_DONTDUMP) };
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Walks `len` bytes of the pieces from byte `from` on, part by part, as long
/// as that goes well.
fn for_each_part(
    pieces: &[libc::iovec],
    from: usize,
    len: usize,
    mut each: impl FnMut(*mut u8, usize) -> Result<(), Unreachable>,
) -> Result<(), Unreachable> {
    let (mut skip, mut left) = (from, len);
    for piece in pieces {
        if left == 0 {
            break;
        }
        if skip >= piece.iov_len {
            skip -= piece.iov_len;
            continue;
        }
        let bytes = (piece.iov_len - skip).min(left);
        each(piece.iov_base.cast::<u8>().wrapping_add(skip), bytes)?;
        skip = 0;
        left -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gathered_from_ragged_pieces_is_scattered_back() {
        let mut pool = Pool::new(2, 4096).unwrap();
        let buffer = pool.take().unwrap();
        let mut source: Vec<u8> = (0..=255).collect();
        let (a, b) = source.split_at_mut(77);
        let pieces = [
            libc::iovec {
                iov_base: a.as_mut_ptr().cast(),
                iov_len: a.len(),
            },
            libc::iovec {
                iov_base: b.as_mut_ptr().cast(),
                iov_len: b.len(),
            },
        ];
        // SAFETY: the pieces are slices of `source`.
        unsafe { pool.gather(buffer, 100, &pieces, 50, 100).unwrap() };
        let mut target = vec![0u8; 100];
        let whole = [libc::iovec {
            iov_base: target.as_mut_ptr().cast(),
            iov_len: 100,
        }];
        // SAFETY: the piece is `target`.
        unsafe { pool.scatter(buffer, 100, &whole, 0, 100).unwrap() };
        assert_eq!(target, (50..150).collect::<Vec<u8>>());
    }

    #[test]
    fn buffers_are_left_out_of_core_dumps() {
        // Unlike its neighbours, so that it is a mapping of its own.
        let pool = Pool::new(3, 4096).unwrap();
        let address = pool.first().iov_base.addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut flags = "";
        let mut inside = false;
        for line in maps.lines() {
            let range = line
                .split_once(' ')
                .and_then(|(range, _)| range.split_once('-'));
            let bounds = range.map(|(from, to)| {
                (
                    usize::from_str_radix(from, 16),
                    usize::from_str_radix(to, 16),
                )
            });
            if let Some((Ok(from), Ok(to))) = bounds {
                inside = (from..to).contains(&address);
            } else if let Some(list) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                flags = list;
            }
        }
        assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn buffers_run_out_and_come_back() {
        let mut pool = Pool::new(1, 4096).unwrap();
        let buffer = pool.take().unwrap();
        assert!(pool.take().is_none());
        pool.give_back(buffer);
        assert!(pool.take().is_some());
    }
}
