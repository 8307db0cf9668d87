//! What is asked of a disk.

use crate::options::config::{IoPath, Swap};

/// How to open and offer an image.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Open for reading only, and offer RO.
    pub read_only: bool,
    /// `blk_size` in bytes; `None`: the medium's for a block device, else 512.
    pub logical_block_size: Option<u32>,
    /// The answer to GET_ID.
    pub serial: [u8; 20],
    /// Keep other users of the image away.
    pub lock: bool,
    /// How requests may reach the image.
    pub io_path: IoPath,
    /// Bytes of extents that the map may hold.
    pub map_budget: u64,
    /// Use guest memory as registered buffers.
    pub pin_guest_memory: bool,
    /// Bytes of pinned extents that the map may hold besides.
    pub pin_reserve: u64,
    /// Swap-grade mode.
    pub swap: Option<Swap>,
    /// A device with queues that never interrupt is looked at for the ends of
    /// requests.
    pub may_poll: bool,
}
