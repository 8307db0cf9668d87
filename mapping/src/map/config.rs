//! How a map is built.

use std::time::Duration;

use crate::map::slab::bytes_for;
use crate::map::table::Table;

/// How a map is built. All sizes are bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Size of a window, the unit of loading and eviction: a power of two, 64 KiB to 1 GiB. Default 4 MiB.
    pub window: u64,
    /// Memory that loaded windows may take before some are evicted; pinned windows do not count. Default 64 MiB.
    pub budget: u64,
    /// Memory set aside for pinned windows; pinning fails at once when it would not suffice. Default 0.
    pub pin_reserve: u64,
    /// Holds are widened to multiples of this: the larger of the file system's block and the page, because
    /// a file write can move or cache the whole block around it. A power of two. Default 4096.
    pub grain: u64,
    /// How many wishes may wait for the filler; those beyond are dropped. Default 1024.
    pub queue: usize,
    /// How long no hold may have ended in a window before it is read again; it is read again anyway after
    /// sixteen times as long. Default 10 ms.
    pub quiet: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            window: 4 << 20,
            budget: 64 << 20,
            pin_reserve: 0,
            grain: 4096,
            queue: 1024,
            quiet: Duration::from_millis(10),
        }
    }
}

impl Config {
    /// Bytes of memory that the table of windows of a file of `size` bytes takes once all of it is used.
    #[must_use]
    pub fn table_bytes(&self, size: u64) -> u64 {
        Table::bytes_for(size, self.window.trailing_zeros())
    }

    /// With a reserve that suffices to pin the whole map of a file of `size` bytes, which now has `extents`
    /// extents ([`ExtentSource::count`](crate::ExtentSource::count)). As much again is added, because file systems
    /// do not count the same extents each time.
    #[must_use]
    pub fn reserve_whole(self, size: u64, extents: u64) -> Config {
        let windows = size.div_ceil(self.window);
        // Every window but the first may begin with the rest of the extent before.
        let entries = usize::try_from(extents.saturating_add(windows)).unwrap_or(usize::MAX);
        let needed = bytes_for(entries).saturating_add(windows.saturating_mul(bytes_for(0)));
        Config {
            pin_reserve: needed.saturating_mul(2),
            ..self
        }
    }
}
