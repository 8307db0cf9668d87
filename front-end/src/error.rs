//! What can go wrong, as a test or a load generator tells it.

use std::io;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What the other side did, or what the host could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    Host(&'static str, #[source] io::Error),
    /// The back-end has closed the connection.
    #[error("the back-end has closed the connection")]
    Closed,
    /// A reply that does not belong to the request.
    #[error("request {request} was answered by request {id}, flags {flags:#x}, {size} bytes")]
    Reply {
        /// What was asked.
        request: u32,
        /// The request field of the answer.
        id: u32,
        /// The flags field of the answer.
        flags: u32,
        /// The size of the answer's payload in bytes.
        size: usize,
    },
    /// The back-end has answered an acknowledged request with a failure.
    #[error("request {request} was refused with {value}")]
    Refused {
        /// What was asked.
        request: u32,
        /// The value that came back.
        value: u64,
    },
    /// The back-end has so many queues, fewer than wanted.
    #[error("the back-end has only {0} queues")]
    FewQueues(u64),
    /// Guest memory is missing there, or the range spans two regions.
    #[error("no guest memory of {length} bytes in one region at {address:#x}")]
    NoMemory {
        /// The guest address.
        address: u64,
        /// The length in bytes.
        length: u64,
    },
    /// A request, a table or a list is larger than its field allows.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// The ring has no room for the chain.
    #[error("the ring is full")]
    Full,
    /// The device returned a head that it does not hold.
    #[error("the device returned head {0}, which is not in flight")]
    NotInFlight(u32),
    /// Nothing came within the limit.
    #[error("waited in vain for {0}")]
    Late(&'static str),
    /// The process under test ended.
    #[error("the process ended: {0}")]
    Ended(std::process::ExitStatus),
}
