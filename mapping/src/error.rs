//! What can go wrong with a map.

use std::io;
use std::ops::Range;

use thiserror::Error;

/// Errors of [`Map`](crate::Map), [`Filler`](crate::Filler) and their handles.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot work.
    #[error("{0}")]
    Config(&'static str),
    /// More than [`MAX_READERS`](crate::MAX_READERS) readers.
    #[error("the map has as many readers as it can have")]
    TooManyReaders,
    /// The range overlaps one that is held already; the caller queues behind it.
    #[error("bytes {} to {} overlap a range that is held already", .0.start, .0.end)]
    Overlap(Range<u64>),
    /// The range is empty, reversed or beyond the end of the file.
    #[error("bytes {} to {} are not a range of the file", .0.start, .0.end)]
    Range(Range<u64>),
    /// Loading is disabled: the lease is gone.
    #[error("loading is disabled while the image is not exclusively ours")]
    Disabled,
    /// Pinning needs more memory than what is left of the reserve.
    #[error(
        "pinning needs {needed} bytes of map, {left} bytes of the reserve of {reserve} are left"
    )]
    Reserve {
        /// Bytes the range's extents take.
        needed: u64,
        /// Bytes of the reserve not used by other pinned ranges.
        left: u64,
        /// The reserve asked for when the map was made.
        reserve: u64,
    },
    /// The memory budget does not allow the range to be loaded.
    #[error("the map's memory budget is too small for this range")]
    Budget,
    /// The allocator refused.
    #[error("out of memory")]
    Memory,
    /// Other users' data are cached for the range, so the disk cannot be believed.
    #[error("the page cache holds data of bytes {} to {}", .0.start, .0.end)]
    Unsettled(Range<u64>),
    /// The caller's progress callback asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// The file system could not tell its extents.
    #[error("cannot read the extents of the file: {0}")]
    Source(#[from] io::Error),
    /// The helper thread could not be started.
    #[error("cannot start the helper thread: {0}")]
    Thread(#[source] io::Error),
}
