//! Part of a file that the front-end has shared, mapped into this process:
//! guest memory, the record of requests in flight, the log of dirty pages.

use std::fs::File;
use std::io;
use std::ptr::with_exposed_provenance_mut;

use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use crate::memory::backing::{Backing, SharedError};
use crate::memory::sigbus::Guarded;
use crate::sys;

/// A mapped part of a file. Whoever has the file can write it at any time,
/// and can see to it that it cannot be reached: then it is [lost](Self::is_lost).
#[derive(Debug)]
pub(crate) struct Shared {
    /// The address of the first byte asked for, with exposed provenance.
    start: usize,
    len: usize,
    in_memory: bool,
    mapping: Guarded,
}

impl Shared {
    /// Maps `size` bytes from `offset` on, which need not be the start of a
    /// page.
    pub(crate) fn map(file: File, offset: u64, size: u64) -> Result<Self, SharedError> {
        Self::map_as(file, offset, size, false)
    }

    /// As [`map`](Self::map), of what no request uses: no request fails when
    /// it is lost.
    pub(crate) fn map_apart(file: File, size: u64) -> Result<Self, SharedError> {
        Self::map_as(file, 0, size, true)
    }

    fn map_as(file: File, offset: u64, size: u64, apart: bool) -> Result<Self, SharedError> {
        let end = offset.checked_add(size).ok_or(SharedError::Range)?;
        if size == 0 {
            return Err(SharedError::Range);
        }
        let backing = Backing::of(&file)?;
        if backing.len < end {
            return Err(SharedError::BeyondFile);
        }

        sys::close_on_exec(&file).map_err(SharedError::Map)?;

        // Only whole pages can be mapped, and only whole huge pages unmapped.
        let unit = backing.unit;
        let past = offset.checked_rem(unit).ok_or(SharedError::Range)?;
        let start = offset.saturating_sub(past);
        let end = end
            .checked_next_multiple_of(unit)
            .ok_or(SharedError::Range)?;
        let bytes = |bytes: u64| usize::try_from(bytes).map_err(|_| SharedError::Range);
        let (mapped, skip) = (bytes(end.saturating_sub(start))?, bytes(past)?);
        let mmap: MmapRegion = MmapRegionBuilder::new(mapped)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, start))
            .build()
            .map_err(|e| SharedError::Map(io::Error::other(e)))?;
        sys::keep_private(mmap.as_ptr(), mapped);
        let mapping = Guarded::new(mmap, bytes(unit)?, apart).map_err(SharedError::Map)?;
        Ok(Self {
            start: mapping.start().wrapping_add(skip),
            len: bytes(size)?,
            in_memory: backing.in_memory,
            mapping,
        })
    }

    /// It is the guest's memory, which the host may reclaim and swap even if
    /// this process has all of its own memory locked.
    pub(crate) fn leave_to_host(&self) {
        let start = with_exposed_provenance_mut(self.mapping.start());
        sys::leave_to_host(start, self.mapping.size());
    }

    /// The file of which it is a part.
    pub(crate) fn file(&self) -> Option<&File> {
        self.mapping.file()
    }

    /// It is memory of this host, and no file on a disk.
    pub(crate) fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// It could not be reached, at least once: what is there now is no longer
    /// the front-end's, and what was read there since may have been zeros.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// Bytes that were asked for.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of a byte. It can be read and written as long as it is one
    /// of those asked for and this lives.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        with_exposed_provenance_mut(self.start.wrapping_add(offset))
    }
}
