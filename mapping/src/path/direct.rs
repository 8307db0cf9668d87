//! Reads and writes that a thread waits for: all that those need who have no ring of their own.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use super::permit::Permit;
use super::planner::{Plan, Way};
use super::worker::{Reserved, Worker};

/// How long a range that another thread changes is left alone.
const BUSY: Duration = Duration::from_micros(100);
/// Bytes that every memory address of direct I/O is a multiple of.
const ALIGN: usize = 4096;

/// Memory as direct I/O takes it: it begins at a page.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> Buffer {
        let memory = vec![0; len + ALIGN];
        Buffer {
            start: memory.as_ptr().align_offset(ALIGN),
            memory,
            len,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

impl Worker {
    /// Fills a [`Buffer`], or a part of one that begins at a multiple of 512 bytes, from byte `offset` of the file: by
    /// the disk where that is possible now, else by the file. Offset and length are multiples of what direct I/O on
    /// the file takes, as with pread(2).
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; or what the host says.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = self.range(offset, buffer.len())?;
        let result = self.read_pieces(buffer, range);
        self.idle();
        result
    }

    fn read_pieces(&mut self, buffer: &mut [u8], range: Range<u64>) -> io::Result<()> {
        let (mut plan, mut left) = (Plan::default(), buffer);
        let mut at = range.start;
        while at < range.end {
            self.turn();
            self.plan_read(at..range.end, &mut plan);
            for piece in plan.pieces() {
                let (part, rest) = left.split_at_mut(bytes(piece.end - piece.start));
                match piece.way {
                    Way::Disk(disk) => {
                        if !self.read_disk(part, disk)? {
                            self.file().read_exact_at(part, piece.start)?;
                        }
                    }
                    Way::File => self.file().read_exact_at(part, piece.start)?,
                    Way::Zeros => part.fill(0),
                }
                (left, at) = (rest, piece.end);
            }
        }
        Ok(())
    }

    /// Writes to byte `offset` of the file, as [`read_at`](Self::read_at) reads. Waits for whoever else changes a part
    /// of the same range. What was written is on the medium after [`DiskPath::sync`](super::DiskPath::sync).
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; or what the host says.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let range = self.range(offset, data.len())?;
        let result = self.write_pieces(data, range);
        self.idle();
        result
    }

    fn write_pieces(&mut self, data: &[u8], range: Range<u64>) -> io::Result<()> {
        let (mut plan, mut left) = (Plan::default(), data);
        let (mut at, mut by_file) = (range.start, false);
        while at < range.end {
            self.turn();
            if by_file || !self.plan_write(at..range.end, &mut plan) {
                // What it has claimed must not be waited for.
                plan.release();
                let rest = at..range.end;
                let relocates = self.may_relocate(rest.clone());
                return self.change(rest, relocates, |file| file.write_all_at(left, at));
            }
            for piece in plan.pieces() {
                let (part, rest) = left.split_at(bytes(piece.end - piece.start));
                if let Way::Disk(disk) = piece.way
                    && !self.write_disk(part, disk)?
                {
                    by_file = true;
                    break;
                }
                (left, at) = (rest, piece.end);
            }
        }
        Ok(())
    }

    /// Reads from the device; whether that may be done and could be begun at once. If not, `part` holds anything.
    fn read_disk(&mut self, part: &mut [u8], disk: u64) -> io::Result<bool> {
        let address = part.as_mut_ptr().expose_provenance();
        // SAFETY: the calls have ended when this returns, and write to `part` only.
        unsafe { self.transfer_all(libc::SYS_preadv2, address, part.len(), disk) }
    }

    /// Writes to the device; whether that may be done and could be begun at once. If not, any of it was written.
    fn write_disk(&mut self, part: &[u8], disk: u64) -> io::Result<bool> {
        let address = part.as_ptr().expose_provenance();
        // SAFETY: the calls have ended when this returns, and read `part` only.
        unsafe { self.transfer_all(libc::SYS_pwritev2, address, part.len(), disk) }
    }

    /// Transfers until all is done; whether it is.
    ///
    /// # Safety
    /// As for [`transfer`](Self::transfer).
    unsafe fn transfer_all(
        &mut self,
        number: libc::c_long,
        address: usize,
        len: usize,
        disk: u64,
    ) -> io::Result<bool> {
        let mut done = 0;
        while done < len {
            let (address, left, at) = (address + done, len - done, disk + done as u64);
            // SAFETY: a part of the caller's memory.
            match unsafe { self.transfer(number, address, left, at) }? {
                Some(moved) => done += moved,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// One transfer of the device; how many bytes, or `None` if it may not be done, or not without waiting for the
    /// device to take it, which may last longer than a lease.
    ///
    /// # Safety
    /// `len` bytes of memory at `address` are valid for the call.
    unsafe fn transfer(
        &mut self,
        number: libc::c_long,
        address: usize,
        len: usize,
        disk: u64,
    ) -> io::Result<Option<usize>> {
        let entry = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: len,
        };
        let device = self.device().as_raw_fd().cast_unsigned() as usize;
        let vector = (&raw const entry).expose_provenance();
        for flags in [libc::RWF_NOWAIT, 0] {
            let flags = flags.cast_unsigned() as usize;
            let args = [device, vector, 1, bytes(disk), 0, flags];
            // SAFETY: the vector is a local, the memory the caller's.
            match unsafe { Permit::submit(|| self.may_submit(), number, args) } {
                None => return Ok(None),
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Ok(moved)) => return Ok(Some(moved)),
                Some(Err(error)) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    Some(libc::EINTR) => return Ok(Some(0)),
                    // The device's driver does everything at once.
                    Some(libc::EOPNOTSUPP) if flags != 0 => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(None)
    }

    /// Gives the whole blocks in `range` of the file back to the file system; they read as zeros then. A range within
    /// one block changes nothing.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; or what the host says.
    pub fn discard(&mut self, range: Range<u64>) -> io::Result<()> {
        let range = self.range(range.start, bytes(range.end.saturating_sub(range.start)))?;
        let block = self.core().map().config().grain;
        let blocks = range.start.next_multiple_of(block)..range.end - range.end % block;
        if blocks.is_empty() {
            return Ok(());
        }
        self.turn();
        let len = blocks.end - blocks.start;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let result = self.change(blocks.clone(), true, |file| {
            Ok(fallocate(file, punch, blocks.start, len)?)
        });
        self.idle();
        result
    }

    /// Changes `range` by the file, once nobody else changes it and, if that may give blocks away that raw I/O is in
    /// flight to, once all of that has ended.
    fn change(
        &mut self,
        range: Range<u64>,
        relocates: bool,
        by: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let core = Arc::clone(self.core());
        loop {
            let is_beyond = || range.end > core.length.load(Ordering::SeqCst);
            match self.reserve(range.clone(), is_beyond) {
                Reserved::Held(hold) => {
                    // This worker has nothing in flight: it must not be waited for.
                    self.idle();
                    let fence = hold.fence();
                    while relocates && !fence.wait(Duration::from_secs(1)) {
                        log::debug!("a change waits for raw I/O to end");
                    }
                    return by(self.file());
                }
                Reserved::Claimed(_claim) => return by(self.file()),
                Reserved::Busy => {
                    self.idle();
                    std::thread::sleep(BUSY);
                    self.turn();
                }
                Reserved::Beyond => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// A range that lies within the file.
    fn range(&self, offset: u64, len: usize) -> io::Result<Range<u64>> {
        offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.core().map().size())
            .map(|end| offset..end)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn file(&self) -> &File {
        &self.core().image
    }

    fn device(&self) -> &File {
        self.core().device().file()
    }
}

/// No piece is longer than the memory that it is for.
fn bytes(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
