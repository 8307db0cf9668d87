//! A snapshot for readers of the NBD protocol: a socket, the handshake, and
//! requests that only read. What a client sends is bounded, by size and by
//! time, before anything is done with it.

mod contents;
mod line;
mod negotiation;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod playing;
mod server;
mod snapshot;
mod transmission;
mod wire;

pub(crate) use self::server::serve;
pub(crate) use self::snapshot::Snapshot;
pub use self::snapshot::SnapshotError;

/// Most bytes of a read, and of what is read away of a write.
const MOST_BYTES: u32 = 32 << 20;
