//! Which files may be memory that a front-end shares, found out without asking
//! whoever serves them.
//!
//! A page that is touched for the first time comes from its file, and whoever
//! touches it waits as long as that takes. A file system in user space (FUSE)
//! may answer never, and so may one of another host; both could also let
//! fstat(2), fstatfs(2) or mmap(2) wait. So memory has to be of this host: in
//! memory (a memfd, tmpfs, hugetlbfs), or on a block device of it. What tells
//! that is known to the kernel itself, and no user can give a file system of
//! their own the looks of one of those.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::sys;

/// Why something cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedError {
    #[error("is empty or wraps around")]
    Range,
    #[error("is not backed by a regular file")]
    NotAFile,
    #[error(
        "is backed by a file of which nobody here knows how long it takes to answer (FUSE, a network, an overlay): give the front-end a memfd, or a file on tmpfs, hugetlbfs, ext4, XFS or btrfs"
    )]
    Elsewhere,
    #[error("reaches beyond the end of its file")]
    BeyondFile,
    #[error(
        "cannot be reached: its file was truncated, or there is no room for its pages (a full tmpfs or file system, no free huge page)"
    )]
    Lost,
    #[error("cannot be mapped: {0}")]
    Map(io::Error),
}

/// A file that may be memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Bytes that it has now.
    pub len: u64,
    /// The unit in which it can be mapped and unmapped, in bytes: a huge page
    /// on hugetlbfs, a page elsewhere.
    pub unit: u64,
    /// It is memory itself (tmpfs, a memfd, hugetlbfs), and no file on a disk.
    pub in_memory: bool,
}

impl Backing {
    /// Looks at a file; waits for nobody.
    pub(crate) fn of(file: &File) -> Result<Self, SharedError> {
        if sys::is_memory(file) {
            // The kernel answers these itself.
            return Ok(Self {
                len: file.metadata().map_err(SharedError::Map)?.size(),
                unit: sys::map_granule(file).map_err(SharedError::Map)?,
                in_memory: true,
            });
        }
        let known = sys::known_of(file).map_err(SharedError::Map)?;
        if !known.is_regular {
            return Err(SharedError::NotAFile);
        }
        if !known.is_of_this_host {
            return Err(SharedError::Elsewhere);
        }
        Ok(Self {
            len: known.size,
            unit: sys::page_size(),
            in_memory: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_files_on_disks_are_told_apart() {
        let memfd = crate::memory::tests::memfd(3 << 20, 0);
        let of_memfd = Backing::of(&memfd).unwrap();
        assert_eq!((of_memfd.len, of_memfd.in_memory), (3 << 20, true));
        let shm = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(Backing::of(&shm).unwrap().in_memory);
        let disk = tempfile::tempfile_in("/var/tmp").unwrap();
        disk.set_len(12345).unwrap();
        match Backing::of(&disk) {
            Ok(backing) => assert_eq!(backing.len, 12345),
            // Where tests run on an overlay of a container.
            Err(error) => assert!(matches!(error, SharedError::Elsewhere)),
        }
    }

    #[test]
    fn files_that_the_kernel_makes_up_are_no_memory() {
        let status = File::open("/proc/self/status").unwrap();
        assert!(matches!(Backing::of(&status), Err(SharedError::Elsewhere)));
        let zero = File::open("/dev/zero").unwrap();
        assert!(matches!(Backing::of(&zero), Err(SharedError::NotAFile)));
        let folder = File::open("/dev/shm").unwrap();
        assert!(Backing::of(&folder).is_err());
    }
}
