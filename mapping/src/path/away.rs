//! Why the disk path is not in use.

use std::io;

use super::situation::SHORTEST_BREAK;
use super::survey::Survey;
use crate::device::Refusal;
use crate::lease::LeaseError;

/// Why the disk path cannot be taken now. It is tried again by itself where that may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// The file or its file system does not allow it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The file was opened without `O_DIRECT`: what goes by the file would stay in the page cache.
    #[error("the file is open without O_DIRECT: open it with it")]
    Buffered,
    /// Somebody else has the file.
    #[error("{0}")]
    Lease(#[from] LeaseError),
    /// The map cannot be made.
    #[error("{0}")]
    Map(#[from] crate::Error),
    /// The lease was broken before the path was entered.
    #[error("somebody else has asked for the image")]
    Asked,
    /// The host refuses a descriptor or a thread.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The file is too long for the memory that its map may take: bytes of its table, and of all of it.
    #[error(
        "the map of a file of this size may need {0} bytes for its table alone, of the {1} that it may take"
    )]
    Table(u64, u64),
    /// A [`Worker`](super::Worker) was dropped while a claim on it was not: its I/O may be in flight for ever.
    #[error("raw I/O may be in flight whose thread has gone: start the process anew")]
    Abandoned,
    /// The kernel would let others in before raw I/O has ended; with the time in seconds.
    #[error(
        "/proc/sys/fs/lease-break-time is {0} s: others would get the image before requests in flight have ended; make it {min} or more",
        min = SHORTEST_BREAK.as_secs()
    )]
    BreakTime(u64),
    /// Somebody has cut the file.
    #[error("the image is shorter than the disk: make it as long as it was, or set the new length")]
    Short,
    /// The map and the file system disagree on the byte at this offset.
    #[error("byte {0} of the image is not where the map says")]
    Differs(u64),
    /// What is not written, or not the file's own, cannot be swapped on.
    #[error("part of the image is not swap-grade ({0})")]
    Unfit(Survey),
}

/// Why requests go by the file now.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[non_exhaustive]
pub enum Away<'a> {
    /// Nobody wants the path: [`DiskPath::want`](super::DiskPath::want) was not called, or taken back.
    #[error("nobody uses the disk")]
    Unwanted,
    /// It was [forbidden](super::DiskPath::forbid).
    #[error("the disk path was forbidden")]
    Forbidden,
    /// Blocks of the file change hands: [`DiskPath::step_aside`](super::DiskPath::step_aside).
    #[error("the image is being cloned")]
    Aside,
    /// Somebody else wanted the file, and got it.
    #[error("somebody else has asked for the image")]
    Asked,
    /// The [`DiskPath`](super::DiskPath) is being dropped.
    #[error("the process ends")]
    Ended,
    /// Something is in its way.
    #[error("{0}")]
    Obstacle(&'a Obstacle),
}
