//! What a server tells about itself.

use std::time::Instant;

use crate::peer::Peer;

/// The session as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// A front-end is connected. All else but those that wait is zero
    /// otherwise.
    pub connected: bool,
    /// Who that is, and since when.
    pub front_end: Option<Connected>,
    /// Connections that wait until it has gone.
    pub waiting: Vec<Connected>,
    /// Rings that are being served.
    pub rings_running: usize,
    /// Rings could run, but [`Device::rings_started`](crate::Device::rings_started)
    /// fails; it is asked again.
    pub awaited: Option<Awaited>,
    /// Virtio features acknowledged.
    pub features: u64,
    /// vhost-user protocol features acknowledged.
    pub protocol_features: u64,
    /// Regions of guest memory that are shared.
    pub memory_regions: usize,
    /// Bytes of guest memory that are shared.
    pub memory_bytes: u64,
    /// Writes may be cached until the guest flushes.
    pub writeback: bool,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connected {
    /// Who has made it; `None` if the kernel does not tell.
    pub peer: Option<Peer>,
    /// When it was accepted.
    pub since: Instant,
}

/// An image that somebody else has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// When it was asked for first.
    pub since: Instant,
    /// What the device said then.
    pub reason: String,
}
