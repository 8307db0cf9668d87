//! Part of a file that the front-end has shared, mapped into this process:
//! guest memory, the record of requests in flight, the log of dirty pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr::with_exposed_provenance_mut;

use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use crate::memory::sigbus::Guarded;
use crate::sys;

/// Why something cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedError {
    #[error("is empty or wraps around")]
    Range,
    #[error("is not backed by a regular file")]
    NotAFile,
    #[error("reaches beyond the end of its file")]
    BeyondFile,
    #[error("cannot be mapped: {0}")]
    Map(io::Error),
}

/// A mapped part of a file. Whoever has the file can write it at any time,
/// and can shrink it, after which it reads as zeros (VU-20).
#[derive(Debug)]
pub(crate) struct Shared {
    /// The address of the first byte asked for, with exposed provenance.
    start: usize,
    len: usize,
    /// Before the mapping, so that it is dropped first. `None`: cannot shrink.
    _guard: Option<Guarded>,
    mmap: MmapRegion,
}

impl Shared {
    /// Maps `size` bytes from `offset` on, which need not be the start of a
    /// page.
    pub(crate) fn map(file: File, offset: u64, size: u64) -> Result<Self, SharedError> {
        let end = offset.checked_add(size).ok_or(SharedError::Range)?;
        if size == 0 {
            return Err(SharedError::Range);
        }
        let metadata = file.metadata().map_err(SharedError::Map)?;
        if !metadata.file_type().is_file() {
            return Err(SharedError::NotAFile);
        }
        if metadata.size() < end {
            return Err(SharedError::BeyondFile);
        }

        sys::close_on_exec(&file).map_err(SharedError::Map)?;

        // Only whole pages can be mapped, and only whole huge pages unmapped.
        let granule = sys::map_granule(&file).map_err(SharedError::Map)?;
        let start = offset / granule * granule;
        let end = end
            .checked_next_multiple_of(granule)
            .ok_or(SharedError::Range)?;
        let bytes = |bytes: u64| usize::try_from(bytes).map_err(|_| SharedError::Range);
        let (mapped, skip) = (bytes(end - start)?, bytes(offset - start)?);
        let shrinks = !sys::cannot_shrink(&file);
        let mmap: MmapRegion = MmapRegionBuilder::new(mapped)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, start))
            .build()
            .map_err(|e| SharedError::Map(io::Error::other(e)))?;
        sys::keep_private(mmap.as_ptr(), mapped);

        let host = mmap.as_ptr().expose_provenance();
        let guard = shrinks
            .then(|| Guarded::new(host, mapped, bytes(granule)?).map_err(SharedError::Map))
            .transpose()?;
        Ok(Self {
            start: host + skip,
            len: bytes(size)?,
            _guard: guard,
            mmap,
        })
    }

    /// It is the guest's memory, which the host may reclaim and swap even if
    /// this process has all of its own memory locked.
    pub(crate) fn leave_to_host(&self) {
        sys::leave_to_host(self.mmap.as_ptr(), self.mmap.size());
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
