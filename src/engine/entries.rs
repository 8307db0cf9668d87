//! Operations as entries of io_uring's submission queue.
#![allow(unsafe_code)]

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::ring::DEVICE;
use super::{Slot, Target, Vector, Work};

/// `MAX_RW_COUNT`, a multiple of every block.
const MOST: u32 = 0x7fff_0000;

/// The registered buffers that entries may use.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// In the order of their indices.
    pub slots: Vec<Slot>,
    /// The kernel takes vectors of registered buffers (since 6.15).
    pub vectored: bool,
    /// `RWF_NOWAIT` for the device: what cannot be started at once fails with
    /// EAGAIN. Else the kernel would keep it for threads of its own, which
    /// would start it whenever there is room: after the process was stopped
    /// for longer than the lease lasts, into blocks of others.
    pub raw_flags: i32,
}

impl Buffers {
    /// The entry for an operation on the registered files.
    ///
    /// # Safety
    /// The entries of a vector are valid, as many as it says.
    pub(super) unsafe fn entry(&self, work: Work) -> squeue::Entry {
        match work {
            // SAFETY: the caller's promise.
            Work::Read(target, vector) => unsafe { self.read(target, &vector) },
            Work::Write {
                target,
                vector,
                stable,
            } => {
                let stable = if stable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: the caller's promise.
                unsafe { self.write(target, &vector, stable | self.flags(target)) }
            }
            Work::Sync(target) => opcode::Fsync::new(file(target))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            Work::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(file(Target::Image), len)
                    .offset(offset)
                    .mode(mode)
                    .build()
            }
        }
    }

    fn flags(&self, target: Target) -> i32 {
        match target {
            Target::Image | Target::Tail => 0,
            Target::Device => self.raw_flags,
        }
    }

    /// A single buffer is cheaper without a vector, and a registered one is
    /// cheaper still.
    ///
    /// # Safety
    /// As for [`entry`](Self::entry).
    unsafe fn read(&self, target: Target, vector: &Vector) -> squeue::Entry {
        let flags = self.flags(target);
        let (file, offset) = (file(target), vector.offset);
        // SAFETY: the caller's promise.
        let (single, registered) = unsafe { (single(vector), self.registered(vector)) };
        match (single, registered) {
            (Some((base, len)), Some(index)) => opcode::ReadFixed::new(file, base, len, index)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (Some((base, len)), None) => opcode::Read::new(file, base, len)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, Some(index)) => opcode::ReadvFixed::new(file, vector.iov, vector.count, index)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, None) => opcode::Readv::new(file, vector.iov, vector.count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
        }
    }

    /// # Safety
    /// As for [`entry`](Self::entry).
    unsafe fn write(&self, target: Target, vector: &Vector, flags: i32) -> squeue::Entry {
        let (file, offset) = (file(target), vector.offset);
        // SAFETY: the caller's promise.
        let (single, registered) = unsafe { (single(vector), self.registered(vector)) };
        match (single, registered) {
            (Some((base, len)), Some(index)) => opcode::WriteFixed::new(file, base, len, index)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (Some((base, len)), None) => opcode::Write::new(file, base, len)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, Some(index)) => opcode::WritevFixed::new(file, vector.iov, vector.count, index)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, None) => opcode::Writev::new(file, vector.iov, vector.count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
        }
    }

    /// The registered buffer that all of a vector lies in.
    ///
    /// # Safety
    /// As for [`entry`](Self::entry).
    unsafe fn registered(&self, vector: &Vector) -> Option<u16> {
        if self.slots.is_empty() || (vector.count > 1 && !self.vectored) {
            return None;
        }
        // SAFETY: the caller's promise.
        let entries = unsafe { std::slice::from_raw_parts(vector.iov, vector.count as usize) };
        let index = self
            .slots
            .iter()
            .position(|slot| entries.iter().all(|entry| slot.contains(entry)))?;
        u16::try_from(index).ok()
    }
}

/// The only entry of a vector. The kernel moves less than 2 GiB at a time, so
/// a longer buffer is only cut short.
///
/// # Safety
/// The entries of the vector are valid, as many as it says.
unsafe fn single(vector: &Vector) -> Option<(*mut u8, u32)> {
    if vector.count != 1 {
        return None;
    }
    // SAFETY: the caller's promise, and there is one.
    let entry = unsafe { *vector.iov };
    let len = u32::try_from(entry.iov_len).unwrap_or(MOST);
    Some((entry.iov_base.cast(), len.min(MOST)))
}

/// The index of a registered file.
fn file(target: Target) -> Fixed {
    match target {
        Target::Image => Fixed(0),
        Target::Device => Fixed(DEVICE),
        Target::Tail => Fixed(2),
    }
}
