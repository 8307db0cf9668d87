//! The answer to `stats`: what is counted of a disk. Metrics tell the same.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use mapping::{Kind, KindName};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::info::Room;
use super::words::{Named, Way};

mod kinds;
mod parts;

pub use self::kinds::{ByOperation, ByStage, Latency, Times};
pub use self::parts::{QueueStatistics, WorkerStatistics};

/// All counters since the start, and the state now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Statistics {
    /// Milliseconds since the disk was opened.
    pub uptime_ms: u64,
    /// Where requests go now.
    pub path: Named<Way>,
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
    /// Requests that are held now: the host has failed them, and they are tried
    /// again.
    pub held_requests: u64,
    /// Those that were, since the start.
    pub held_requests_ever: u64,
    /// How often one of them was tried again.
    pub held_retries: u64,
    /// The room of the image's file system; `None` for a block device, and
    /// where it is not known.
    pub room: Option<Room>,
    /// How often a queue with something to fetch was held back by a limit.
    pub limit_waits: u64,
    /// For how long in all, in microseconds.
    pub limit_waited_us: u64,
    /// For how long the disk has been held still by `quiesce`, in
    /// microseconds; `None` if it is not.
    pub held_for_us: Option<u64>,
    /// Threads that stand still now.
    pub threads_standing: u64,
    /// How often one was found to.
    pub thread_stands: u64,
    /// The map of extents; `None` where there is no disk path.
    pub map: Option<MapStatistics>,
    /// Which extentd this is.
    pub version: String,
    /// The image, by the path it was opened by.
    pub image: String,
    /// The size of the disk.
    pub size_bytes: u64,
    /// A front-end is connected.
    pub connected: bool,
    /// The kernel says that the lease on the image is ours; `None` where there
    /// is no disk path.
    pub lease_held: Option<bool>,
    /// Requests that have ended, by kind.
    pub requests_by_operation: ByOperation<u64>,
    /// Those that failed for what the host said, by kind.
    pub failed_by_operation: ByOperation<u64>,
    /// Reads and writes whose end was looked for, so that the device did not
    /// have to interrupt.
    pub polled_operations: u64,
    /// Reads and writes of the file through a buffer of extentd's.
    pub bounced_operations: u64,
    /// Reads and writes that the device did not take at once.
    pub refused_operations: u64,
    /// Interrupts sent to the driver.
    pub interrupts: u64,
    /// Answers that took no interrupt of their own.
    pub interrupts_saved: u64,
    /// Times that workers looked for work and found some.
    pub looks_found: u64,
    /// For how long in all, in microseconds.
    pub looks_found_us: u64,
    /// Times that they looked in vain.
    pub looks_vain: u64,
    /// For how long in all, in microseconds.
    pub looks_vain_us: u64,
    /// System calls that the sandbox denied.
    pub sandbox_denials: u64,
    /// How long requests take.
    pub latency: Latency,
    /// Queues that something was asked of, in their order.
    #[serde(default)]
    pub queues: Vec<QueueStatistics>,
    /// Workers, in their order; queue q is served by worker q modulo their
    /// number.
    #[serde(default)]
    pub workers: Vec<WorkerStatistics>,
}

/// The map of extents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtentCounts([u64; Kind::COUNT]);

impl ExtentCounts {
    /// From counts in the order of [`Kind::index`].
    pub fn new(counts: [u64; Kind::COUNT]) -> Self {
        Self(counts)
    }

    /// Each kind with its count.
    pub fn named(self) -> [(KindName, u64); Kind::COUNT] {
        let mut named = KindName::ALL.map(|kind| (kind, 0));
        for (place, count) in named.iter_mut().zip(self.0) {
            place.1 = count;
        }
        named
    }
}

impl Serialize for ExtentCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.named().map(|(kind, count)| (kind.as_str(), count)))
    }
}

impl JsonSchema for ExtentCounts {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ExtentCounts".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, u64>::json_schema(generator)
    }
}

impl<'de> Deserialize<'de> for ExtentCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let counts = HashMap::<String, u64>::deserialize(deserializer)?;
        Ok(Self(KindName::ALL.map(|kind| {
            counts.get(kind.as_str()).copied().unwrap_or(0)
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_they_were_written() {
        let counts = ExtentCounts::new([1, 2, 3, 4, 5]);
        let text = serde_json::to_string(&counts).unwrap();
        assert_eq!(
            text,
            r#"{"written":1,"unwritten":2,"hole":3,"shared":4,"opaque":5}"#
        );
        assert_eq!(serde_json::from_str::<ExtentCounts>(&text).unwrap(), counts);
        let newer = text.replace('}', r#","compressed":6}"#);
        assert_eq!(
            serde_json::from_str::<ExtentCounts>(&newer).unwrap(),
            counts
        );
    }
}
