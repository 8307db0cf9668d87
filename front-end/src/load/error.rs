//! What can go wrong under load.

use crate::error::Error;

/// The result of everything here that can fail.
pub type LoadResult<T> = std::result::Result<T, LoadError>;

/// One line each, for who started the load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan asks for what the disk or the pattern cannot give.
    #[error("{0}")]
    Plan(String),
    /// The device or the connection misbehaved.
    #[error(transparent)]
    Device(#[from] Error),
    /// A request ended otherwise than well.
    #[error("{what} of {length} bytes at {offset} ended with status {status}")]
    Status {
        /// What it was.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How long, in bytes.
        length: u32,
        /// The status byte.
        status: u8,
    },
    /// A block holds something else than what was written there last.
    #[error("the block at {offset} holds {found:x?} at byte {at} instead of {expected:x?}")]
    Content {
        /// Where the block begins, in bytes.
        offset: u64,
        /// Where in the block the difference begins.
        at: usize,
        /// Offset and generation as they are there.
        found: [u64; 2],
        /// Offset and generation as they should be.
        expected: [u64; 2],
    },
    /// A thread of the client has panicked.
    #[error("a thread of the load generator has died")]
    Died,
}
