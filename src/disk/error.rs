//! What an operator can do wrong with an image.

use std::io;
use std::path::PathBuf;

use mapping::path::{Away, Obstacle};

use crate::engine::manner::Punts;

/// Why there is no way past the file system.
#[derive(Debug, thiserror::Error)]
pub enum NoRawWay {
    /// The image, or its host, does not allow it.
    #[error("{}", tell(&Away::Obstacle(.0)))]
    Obstacle(#[from] Obstacle),
    /// Raw I/O on the device would be slower than the file.
    #[error("{0}")]
    Punts(#[from] Punts),
}

/// Why requests go by the file, and what an operator can do about it.
pub(super) fn tell(away: &Away<'_>) -> String {
    match away {
        Away::Unwanted => "no guest uses the disk".to_owned(),
        Away::Forbidden => "an operator has chosen the file (extentctl io-path file)".to_owned(),
        Away::Obstacle(Obstacle::Short) => {
            "the image is shorter than the disk: make it as long as it was, or send SIGHUP"
                .to_owned()
        }
        Away::Obstacle(Obstacle::Table(table, budget)) => format!(
            "the map of an image of this size may need {table} bytes for its table alone, of the {budget} of --map-budget: give more"
        ),
        _ => away.to_string(),
    }
}

/// What an operator can do wrong with an image; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image cannot be opened.
    #[error("--blk-file {path}: {source}{}", remedy(source))]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// A device that does not take writes.
    #[error(
        "--blk-file {0}: the device is read-only: give --read-only, or make it writable (blockdev --setrw)"
    )]
    ReadOnlyDevice(PathBuf),
    /// Not a file that holds a disk.
    #[error("--blk-file {0}: neither a regular file nor a block device: give the path of one")]
    NotAnImage(PathBuf),
    /// Not even one block long.
    #[error(
        "--blk-file {0}: shorter than one block of {1} bytes: make it longer, for example with truncate -s 1G"
    )]
    TooSmall(PathBuf, u32),
    /// The new size makes no sense.
    #[error("resize: {0} bytes is not a positive multiple of {1}: round it")]
    BadSize(u64, u32),
    /// The file system does not do it.
    #[error("resize: {path}: {source}{}", resize_remedy(source))]
    Resize {
        /// The image.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Block devices have the size that they have.
    #[error("resize: {0} is a block device of {1} bytes: change the device itself first")]
    DeviceSize(PathBuf, u64),
    /// The disk path was demanded and is impossible.
    #[error("--io-path disk: {0}: remove that obstacle, or give --io-path auto")]
    NoDiskPath(NoRawWay),
    /// The disk path was demanded and the end of the image excludes it.
    #[error(
        "--io-path disk: {0} ends within a block of {1} bytes, of which its device takes no part: make it a multiple of {1} bytes long (truncate -s %{1}), or give --io-path auto"
    )]
    RaggedEnd(PathBuf, u32),
    /// A disk that is offered read-only is not changed.
    #[error("resize: the disk is read-only: start extentd without --read-only")]
    ReadOnly,
    /// What is not cloned yet cannot be cut off.
    #[error(
        "resize: the image cannot become shorter while a snapshot is made: wait for it, or cancel it (extentctl snapshot --cancel)"
    )]
    BeingCloned,
    /// What is swapped on is prepared first.
    #[error(
        "resize: the disk is swap-grade: stop extentd, run extentctl prepare --size, and start it again"
    )]
    SwapGrade,
    /// The disk path is part of what was asked for.
    #[error("--swap: {0}: remove that obstacle, or give --swap=best-effort")]
    NoSwapPath(String),
}

/// What to do about an image that keeps its size.
fn resize_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EFBIG | libc::EINVAL | libc::EOVERFLOW) => {
            ": more than its file system or a limit (LimitFSIZE=, ulimit -f) lets a file have: give a smaller size"
        }
        Some(libc::ENOSPC | libc::EDQUOT) => ": make room on its file system first",
        Some(libc::EPERM) => ": it may be append-only or sealed (lsattr)",
        _ => "",
    }
}

/// What to do about an image that cannot be opened.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG) => {
            ": check the name; truncate -s 10G IMAGE makes a new one"
        }
        Some(libc::EACCES) => {
            ": let this user read and write it, or give --read-only if it may only be read"
        }
        Some(libc::EROFS) => ": give --read-only",
        Some(libc::EPERM) => {
            ": it may be immutable or append-only (lsattr, chattr -i -a): change that, or give --read-only"
        }
        Some(libc::EFBIG) => {
            ": it is longer than this file system or the limit on the length of files allows (LimitFSIZE=, ulimit -f)"
        }
        Some(libc::EBUSY) => {
            ": it is mounted, and this kernel lets nobody else write it meanwhile: release it, or give --read-only"
        }
        Some(libc::ELOOP) => ": its symbolic links lead round in a circle",
        Some(libc::EMFILE | libc::ENFILE) => {
            ": the limit on open files is reached (LimitNOFILE=, ulimit -n): raise it"
        }
        _ => "",
    }
}
