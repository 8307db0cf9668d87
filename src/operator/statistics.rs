//! The counters of a disk, as `extentctl` and metrics show them.

use mapping::Stats;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;

/// All counters since the start, and the state now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Milliseconds since the disk was opened.
    pub uptime_ms: u64,
    /// Where requests go now: "disk" or "file".
    pub path: String,
    /// Why: one sentence.
    pub path_reason: String,
    /// How often the disk path was entered.
    pub path_entries: u64,
    /// Requests that have ended.
    pub requests: u64,
    /// Those that failed for what the host said.
    pub failed_requests: u64,
    /// Reads and writes that went straight to the device.
    pub disk_operations: u64,
    /// Reads and writes that went by the file with no copy.
    pub file_operations: u64,
    /// Reads of holes and unwritten extents, which need no I/O.
    pub zero_fills: u64,
    /// Bytes of reads that ended well.
    pub read_bytes: u64,
    /// Bytes of writes that ended well.
    pub written_bytes: u64,
    /// The map of extents; `None` where there is no disk path.
    pub map: Option<MapStatistics>,
}

/// The map of extents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatistics {
    /// Lookups that found an extent.
    pub hits: u64,
    /// Lookups in windows that were not loaded.
    pub misses: u64,
    /// Lookups in ranges that were being changed.
    pub changing: u64,
    /// Windows loaded.
    pub loads: u64,
    /// Loads that failed.
    pub load_errors: u64,
    /// Loads put off because of the page cache.
    pub unsettled: u64,
    /// Windows evicted.
    pub evictions: u64,
    /// Windows not kept, as nothing could be evicted for them.
    pub refused: u64,
    /// Wishes for windows that were dropped.
    pub wishes_dropped: u64,
    /// Windows in memory.
    pub resident_windows: u64,
    /// Bytes of extents in memory.
    pub resident_bytes: u64,
    /// Those that may be evicted are at most so many.
    pub budget_bytes: u64,
    /// Bytes of extents that are pinned.
    pub pinned_bytes: u64,
    /// At most so many.
    pub pin_reserve_bytes: u64,
    /// Bytes of the table of windows.
    pub table_bytes: u64,
    /// Bytes of the image in a window.
    pub window_bytes: u64,
    /// Ranges taken away from the map now.
    pub holds: u64,
    /// Replaced windows that wait for readers.
    pub retired: u64,
    /// Extents in memory, by kind.
    pub extents: ExtentCounts,
}

/// Extents in memory by kind; one counts once per window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentCounts {
    /// Data of this image alone.
    pub written: u64,
    /// Places that read as zeros.
    pub unwritten: u64,
    /// No place.
    pub hole: u64,
    /// Data that other files use too.
    pub shared: u64,
    /// Not for the disk path.
    pub opaque: u64,
}

impl ExtentCounts {
    /// Each kind with its name.
    pub fn named(&self) -> [(&'static str, u64); 5] {
        [
            ("written", self.written),
            ("unwritten", self.unwritten),
            ("hole", self.hole),
            ("shared", self.shared),
            ("opaque", self.opaque),
        ]
    }
}

impl MapStatistics {
    fn new(stats: &Stats, config: &mapping::Config) -> Self {
        // The order of mapping::Kind::index.
        let [written, unwritten, hole, shared, opaque] = stats.extents;
        Self {
            hits: stats.hits,
            misses: stats.misses,
            changing: stats.changing,
            loads: stats.loads,
            load_errors: stats.load_errors,
            unsettled: stats.unsettled,
            evictions: stats.evictions,
            refused: stats.refused,
            wishes_dropped: stats.wishes_dropped,
            resident_windows: stats.resident_windows,
            resident_bytes: stats.resident_bytes,
            budget_bytes: config.budget,
            pinned_bytes: stats.pinned_bytes,
            pin_reserve_bytes: config.pin_reserve,
            table_bytes: stats.table_bytes,
            window_bytes: config.window,
            holds: stats.holds,
            retired: stats.retired,
            extents: ExtentCounts {
                written,
                unwritten,
                hole,
                shared,
                opaque,
            },
        }
    }
}

/// The counters of `disk`.
pub(crate) fn gather(disk: &Disk) -> Statistics {
    let sums = disk.sums();
    let description = disk.describe();
    let path = disk.disk_path().ok();
    Statistics {
        uptime_ms: u64::try_from(disk.uptime().as_millis()).unwrap_or(u64::MAX),
        path: description.path.to_owned(),
        path_reason: description.path_reason,
        path_entries: path.map_or(0, |path| path.situation().entries),
        requests: sums.requests,
        failed_requests: disk.errors(),
        disk_operations: sums.disk_operations,
        file_operations: sums.file_operations,
        zero_fills: sums.zero_fills,
        read_bytes: sums.read_bytes,
        written_bytes: sums.written_bytes,
        map: path.map(|path| MapStatistics::new(&path.stats(), path.map().config())),
    }
}

#[cfg(test)]
mod tests {
    use mapping::{Kind, Reason};

    use super::*;

    #[test]
    fn extents_are_counted_under_their_own_kind() {
        let kinds = [
            Kind::Written,
            Kind::Unwritten,
            Kind::Hole,
            Kind::Shared,
            Kind::Opaque(Reason::Inline),
        ];
        for kind in kinds {
            let mut stats = Stats::default();
            stats.extents[kind.index()] = 7;
            let shown = MapStatistics::new(&stats, &mapping::Config::default());
            for (name, count) in shown.extents.named() {
                let own = kind.to_string().starts_with(name);
                assert_eq!(count, if own { 7 } else { 0 }, "{name} of {kind}");
            }
        }
    }
}
