//! What a server tells about itself.

/// The session as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// A front-end is connected. All else is zero otherwise.
    pub connected: bool,
    /// Rings that are being served.
    pub rings_running: usize,
    /// Rings could run, but [`Device::rings_started`](crate::Device::rings_started)
    /// fails; it is asked again.
    pub waits_for_image: bool,
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
