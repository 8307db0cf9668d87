//! Why an image cannot be made fit to swap on.

use std::io;
use std::path::PathBuf;

use mapping::device::Refusal;
use mapping::lease::LeaseError;

use crate::options::size;
use mapping::path::Survey;

/// Why an image cannot be made fit to swap on; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// There is no image, and none was to be made.
    #[error("{0} does not exist: give --size to make it, or correct the path")]
    Missing(PathBuf),
    /// Not something that holds a disk.
    #[error("{0} is neither a regular file nor a block device")]
    NotAnImage(PathBuf),
    /// An image is never cut.
    #[error(
        "{path} has {have} bytes, more than --size {size}: leave --size out, or remove the image first"
    )]
    Shrinks {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        have: u64,
        /// The size asked for.
        size: u64,
    },
    /// The last block is not whole.
    #[error("{0} has {1} bytes, which is no multiple of 4096: make it one with truncate -s %4096")]
    Ragged(PathBuf, u64),
    /// A block device has the size that it has.
    #[error("{0} is a block device, whose size is its own: leave --size out")]
    DeviceSize(PathBuf),
    /// Its file system or its attributes do not allow it.
    #[error("{path} cannot be made swap-grade: {refusal}: {}", remedy(refusal))]
    Refused {
        /// The image.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// Somebody else has it.
    #[error("{path}: {source}: stop whoever uses it, then try again")]
    InUse {
        /// The image.
        path: PathBuf,
        /// Why the lease was refused or lost.
        source: LeaseError,
    },
    /// Somebody else has it, and it cannot be used as it is.
    #[error(
        "{path}: somebody else has the image open, and {} of it are not written or not its own: {survey}: prepare it first (extentctl prepare), or stop whoever uses it",
        size::display(survey.unfit())
    )]
    Unprepared {
        /// The image.
        path: PathBuf,
        /// What was found.
        survey: Survey,
    },
    /// The file system is too full.
    #[error(
        "{path} needs {} more, but its file system has {} left: free some, or take a smaller image",
        size::display(*needed),
        size::display(*left)
    )]
    Space {
        /// The image.
        path: PathBuf,
        /// Bytes that are to be allocated.
        needed: u64,
        /// Bytes that are free.
        left: u64,
    },
    /// The map would not fit into memory.
    #[error(
        "the map of {path} needs {} of memory ({extents} extents), but only {} are available: copy the image to a fresh file, which has fewer extents, or free memory",
        size::display(*needed),
        size::display(*left)
    )]
    Memory {
        /// The image.
        path: PathBuf,
        /// Extents of the image.
        extents: u64,
        /// Bytes of the map.
        needed: u64,
        /// Bytes of memory that are available.
        left: u64,
    },
    /// All was done, and still some of it is not as it has to be.
    #[error(
        "{path}: {} of it are still not written or not its own: {survey}: its file system cannot do it, put it on another",
        size::display(survey.unfit())
    )]
    Unfit {
        /// The image.
        path: PathBuf,
        /// What was found.
        survey: Survey,
    },
    /// The caller has asked to stop.
    #[error("interrupted: what is done stays done, and the next preparation goes on from there")]
    Interrupted,
    /// The host refuses something.
    #[error("{path}: cannot {what}: {source}{}", host_remedy(source))]
    Host {
        /// The image.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
}

/// What to do about what the host says.
fn host_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG) => {
            ": check the name, and that its directory exists"
        }
        Some(libc::EACCES) => ": be a user that may read and write it",
        Some(libc::EROFS) => ": its file system is mounted read-only",
        Some(libc::EPERM) => ": it may be immutable or append-only (lsattr, chattr -i -a)",
        Some(libc::EFBIG) => ": more than its file system lets a file have: take a smaller image",
        _ => "",
    }
}

/// What to do about a refusal.
fn remedy(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::FileSystem(name) if name == "btrfs" => {
            "btrfs writes everything to new blocks; put it on ext4 or XFS, or use a block device"
        }
        Refusal::FileSystem(name) if name == "tmpfs" => {
            "tmpfs is memory itself; put it on ext4 or XFS, or use a block device"
        }
        Refusal::FileSystem(_) => "put it on ext4 or XFS, or use a block device",
        Refusal::MountOption(_) => "mount its file system without that option",
        _ => "remove that obstacle, or use another file",
    }
}
