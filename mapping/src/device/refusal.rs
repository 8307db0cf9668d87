//! Why the disk path is not possible for a file.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a file's disk may not be used directly. One sentence each, made to be shown to users.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Neither a regular file nor a block device.
    #[error("the image is neither a regular file nor a block device")]
    NotRegular,
    /// Only ext4 and XFS are known to keep blocks where their extents say.
    #[error("the file system ({0}) is not ext4 or XFS, whose block addresses can be trusted")]
    FileSystem(String),
    /// `st_dev` names no block device.
    #[error("the file system has no block device of its own (device number {major}:{minor})")]
    NoDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// There is no node for the device.
    #[error("there is no device node for block device {major}:{minor} in /dev")]
    NoNode {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The node cannot be opened.
    #[error("{} cannot be opened: {source}{}", path.display(), hint(source))]
    DeviceOpen {
        /// The node.
        path: PathBuf,
        /// The error of open(2).
        source: io::Error,
    },
    /// The device's blocks are larger than extents of 4 KiB blocks can be checked for.
    #[error("the device's logical blocks of {0} bytes are larger than 4096")]
    BlockSize(u32),
    /// XFS keeps the data on a realtime device.
    #[error("the file's data are on the XFS realtime device")]
    Realtime,
    /// The file is accessed through DAX.
    #[error("the file is in DAX mode")]
    Dax,
    /// The file is encrypted by the file system.
    #[error("the file is encrypted by its file system")]
    Encrypted,
    /// The file is protected by fs-verity.
    #[error("the file is protected by fs-verity")]
    Verity,
    /// It cannot be synced: what was written before may be lost, and the kernel does not say so again.
    #[error("the image could not be synced: {0}")]
    Sync(#[source] io::Error),
    /// The data are inside the inode.
    #[error("the file's data are stored inside its inode")]
    Inline,
    /// The file's data go through the journal.
    #[error("the file's data go through the journal")]
    DataJournal,
    /// The file is marked immutable.
    #[error("the file is marked immutable")]
    Immutable,
    /// The file is marked append-only.
    #[error("the file is marked append-only")]
    AppendOnly,
    /// XFS puts every write elsewhere.
    #[error("XFS puts every write elsewhere (/sys/fs/xfs/debug/always_cow)")]
    AlwaysCow,
    /// A mount option that makes the disk path unsafe.
    #[error("the file system is mounted with {0}")]
    MountOption(String),
    /// An overlay has the file in the folder that it writes to: it truncates files there without breaking a lease.
    #[error("an overlay file system writes to {} and can change the file there", .0.display())]
    Overlaid(PathBuf),
    /// The file is not open with `O_DIRECT`.
    #[error("the file is not open for direct I/O")]
    NotDirect,
    /// The page cache keeps data of the file.
    #[error("{0} pages of the file stay in the page cache: somebody has it mapped")]
    Cached(u64),
    /// cachestat(2) does not exist: the page cache cannot be proved empty.
    #[error(
        "this kernel has no cachestat (it is older than Linux 6.5), so the page cache cannot be proved empty"
    )]
    NoCachestat,
    /// A block read by the file and by the device differs.
    #[error(
        "byte {file} of the file and byte {disk} of the device differ, where the file system says they are the same"
    )]
    Mismatch {
        /// Offset in the file.
        file: u64,
        /// Offset on the device.
        disk: u64,
    },
    /// A system call failed that the checks need.
    #[error("{what} failed: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EBUSY) => " (the kernel may forbid writing to mounted devices)",
        Some(libc::EACCES) => " (no permission on the node)",
        _ => "",
    }
}

/// Makes an I/O error a refusal that says what was tried.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Refusal {
    move |source| Refusal::System { what, source }
}
