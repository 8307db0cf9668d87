//! The table of metrics: under which name each counter is told, and what it
//! means. docs/metrics.md has the same list.

use super::scraped::Scraped;
use crate::protocol::info::Room;
use crate::protocol::statistics::{ByOperation, MapStatistics, Statistics};
use crate::protocol::words::Way;

/// What OpenMetrics calls a family: samples with one name and meaning.
pub(super) struct Family {
    /// Without the prefix `extentd_` and without the unit.
    pub name: &'static str,
    pub number: Number,
    pub help: &'static str,
    pub samples: Samples,
}

/// What a family counts. Units are in its name; counters end in `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// Only ever grows.
    Counter,
    /// Likewise, of bytes.
    CounterOfBytes,
    /// Likewise, of time, which is read in microseconds.
    CounterOfTime,
    /// As it is now.
    Gauge,
    /// Likewise, of bytes.
    GaugeOfBytes,
    /// Likewise, of time, which is read in microseconds.
    GaugeOfTime,
    /// A histogram of times.
    Times,
    /// Labels only.
    Words,
}

/// Where the samples of a family come from.
pub(super) enum Samples {
    /// From the exporter, of each that it asks.
    Asked(fn(&Scraped) -> u64),
    /// From the disk.
    Disk(&'static [Sample<Statistics>]),
    /// From the map, where there is one.
    Map(&'static [Sample<MapStatistics>]),
    /// From the room of the image's file system, where that is known.
    Room(fn(&Room) -> u64),
    /// One for each kind of extent in the map.
    Extents,
    /// Whether there is a lease, where there could be one.
    Lease,
    /// One for each kind of request.
    Operations(fn(&Statistics) -> &ByOperation<u64>),
    /// Times of each stage.
    Stages,
    /// Times of each kind of request.
    Requests,
    /// Labels.
    Words(fn(&Statistics) -> Vec<(&str, &str)>),
}

/// A label and its value, or nothing, and what is counted.
pub(super) type Sample<T> = (Option<(&'static str, &'static str)>, fn(&T) -> u64);

use Number::{
    Counter, CounterOfBytes, CounterOfTime, Gauge, GaugeOfBytes, GaugeOfTime, Times, Words,
};
use Samples::{Disk, Map};

const fn family(
    name: &'static str,
    number: Number,
    help: &'static str,
    samples: Samples,
) -> Family {
    Family {
        name,
        number,
        help,
        samples,
    }
}

/// What only an exporter tells.
pub(super) const EXPORTER: &[Family] = &[
    family(
        "up",
        Gauge,
        "1 if the disk has answered in time.",
        Samples::Asked(|disk| u64::from(disk.statistics.is_some())),
    ),
    family(
        "scrape_duration",
        GaugeOfTime,
        "How long the disk took to answer, or how long that was waited for.",
        Samples::Asked(|disk| {
            let time = disk.asked.as_ref().map(|asked| asked.time.as_micros());
            u64::try_from(time.unwrap_or(0)).unwrap_or(u64::MAX)
        }),
    ),
];

pub(super) const FAMILIES: &[Family] = &[
    family(
        "build",
        Words,
        "The version of extentd.",
        Samples::Words(|of| vec![("version", &of.version)]),
    ),
    family(
        "uptime",
        GaugeOfTime,
        "Time since the disk was opened.",
        Disk(&[(None, |of| of.uptime_ms.saturating_mul(1000))]),
    ),
    family(
        "size",
        GaugeOfBytes,
        "The size of the disk.",
        Disk(&[(None, |of| of.size_bytes)]),
    ),
    family(
        "front_end_connected",
        Gauge,
        "1 while a front-end is connected.",
        Disk(&[(None, |of| u64::from(of.connected))]),
    ),
    family(
        "requests",
        Counter,
        "Requests that have ended, by kind.",
        Samples::Operations(|of| &of.requests_by_operation),
    ),
    family(
        "failed_requests",
        Counter,
        "Requests that failed for what the host said, by kind.",
        Samples::Operations(|of| &of.failed_by_operation),
    ),
    family(
        "request_duration",
        Times,
        "From when a request was fetched until the driver was shown its answer; one request of a queue in 127 is timed.",
        Samples::Requests,
    ),
    family(
        "request_stage_duration",
        Times,
        "How long requests were at each stage: submit (fetched until given to the kernel), io (until its result was taken), publish (until the driver was shown the answer), interrupt (until it was interrupted, where it wants to be); one request of a queue in 127 is timed.",
        Samples::Stages,
    ),
    family(
        "operations",
        Counter,
        "Reads and writes by the way they went; zero needs no I/O.",
        Disk(&[
            (Some(("way", "disk")), |of| of.disk_operations),
            (Some(("way", "file")), |of| of.file_operations),
            (Some(("way", "bounced")), |of| of.bounced_operations),
            (Some(("way", "zero")), |of| of.zero_fills),
        ]),
    ),
    family(
        "polled_operations",
        Counter,
        "Reads and writes whose end was looked for, so that the device did not have to interrupt.",
        Disk(&[(None, |of| of.polled_operations)]),
    ),
    family(
        "refused_operations",
        Counter,
        "Reads and writes that the device did not take at once.",
        Disk(&[(None, |of| of.refused_operations)]),
    ),
    family(
        "transferred",
        CounterOfBytes,
        "Bytes of reads and writes that ended well.",
        Disk(&[
            (Some(("direction", "read")), |of| of.read_bytes),
            (Some(("direction", "write")), |of| of.written_bytes),
        ]),
    ),
    family(
        "interrupts",
        Counter,
        "Answers by whether the driver was interrupted for them: sent, or saved as it was awake or one interrupt was for several.",
        Disk(&[
            (Some(("outcome", "sent")), |of| of.interrupts),
            (Some(("outcome", "saved")), |of| of.interrupts_saved),
        ]),
    ),
    family(
        "poll_looks",
        Counter,
        "Times that a worker looked for work before it slept, by what it found.",
        Disk(&[
            (Some(("result", "found")), |of| of.looks_found),
            (Some(("result", "vain")), |of| of.looks_vain),
        ]),
    ),
    family(
        "poll_time",
        CounterOfTime,
        "Time that workers looked for work before they slept, by what they found.",
        Disk(&[
            (Some(("result", "found")), |of| of.looks_found_us),
            (Some(("result", "vain")), |of| of.looks_vain_us),
        ]),
    ),
    family(
        "disk_path",
        Gauge,
        "1 while requests go straight to the disk.",
        Disk(&[(None, |of| u64::from(of.path == Way::Disk))]),
    ),
    family(
        "path",
        Words,
        "Which way requests go, and why.",
        Samples::Words(|of| vec![("way", of.path.as_str()), ("reason", &of.path_reason)]),
    ),
    family(
        "disk_path_entries",
        Counter,
        "Times that the disk path was entered.",
        Disk(&[(None, |of| of.path_entries)]),
    ),
    family(
        "lease_held",
        Gauge,
        "1 while the kernel says that the lease on the image is ours.",
        Samples::Lease,
    ),
    family(
        "held_requests",
        Gauge,
        "Requests that the host has failed and that are tried again.",
        Disk(&[(None, |of| of.held_requests)]),
    ),
    family(
        "requests_held",
        Counter,
        "Requests that were held, each once.",
        Disk(&[(None, |of| of.held_requests_ever)]),
    ),
    family(
        "held_retries",
        Counter,
        "Times that a request that was held was tried again.",
        Disk(&[(None, |of| of.held_retries)]),
    ),
    family(
        "file_system_free",
        GaugeOfBytes,
        "Free bytes of the image's file system.",
        Samples::Room(|room| room.free_bytes),
    ),
    family(
        "image_unallocated",
        GaugeOfBytes,
        "Bytes of the image that have no blocks yet.",
        Samples::Room(|room| room.unallocated_bytes),
    ),
    family(
        "room_low",
        Gauge,
        "1 while little is free, and less than the guest may ask for.",
        Samples::Room(|room| u64::from(room.low)),
    ),
    family(
        "limit_waits",
        Counter,
        "Times that a queue was held back by a limit.",
        Disk(&[(None, |of| of.limit_waits)]),
    ),
    family(
        "limit_waited",
        CounterOfTime,
        "Time for which queues were held back by limits.",
        Disk(&[(None, |of| of.limit_waited_us)]),
    ),
    family(
        "quiesced",
        Gauge,
        "1 while the disk is held still.",
        Disk(&[(None, |of| u64::from(of.held_for_us.is_some()))]),
    ),
    family(
        "quiesced_time",
        GaugeOfTime,
        "How long the disk has been held still by now; 0 while it is not.",
        Disk(&[(None, |of| of.held_for_us.unwrap_or(0))]),
    ),
    family(
        "threads_standing",
        Gauge,
        "Threads that stand still now.",
        Disk(&[(None, |of| of.threads_standing)]),
    ),
    family(
        "thread_stands",
        Counter,
        "Times that a thread was found to stand still.",
        Disk(&[(None, |of| of.thread_stands)]),
    ),
    family(
        "sandbox_denials",
        Counter,
        "System calls that the sandbox has denied.",
        Disk(&[(None, |of| of.sandbox_denials)]),
    ),
    family(
        "map_lookups",
        Counter,
        "Lookups by what they found.",
        Map(&[
            (Some(("result", "hit")), |of| of.hits),
            (Some(("result", "miss")), |of| of.misses),
            (Some(("result", "changing")), |of| of.changing),
        ]),
    ),
    family(
        "map_loads",
        Counter,
        "Windows loaded.",
        Map(&[(None, |of| of.loads)]),
    ),
    family(
        "map_load_failures",
        Counter,
        "Windows not loaded or not kept, by reason.",
        Map(&[
            (Some(("reason", "error")), |of| of.load_errors),
            (Some(("reason", "cached")), |of| of.unsettled),
            (Some(("reason", "budget")), |of| of.refused),
        ]),
    ),
    family(
        "map_evictions",
        Counter,
        "Windows evicted to keep within the budget.",
        Map(&[(None, |of| of.evictions)]),
    ),
    family(
        "map_wishes_dropped",
        Counter,
        "Wishes for windows that were dropped.",
        Map(&[(None, |of| of.wishes_dropped)]),
    ),
    family(
        "map_resident_windows",
        Gauge,
        "Windows in memory.",
        Map(&[(None, |of| of.resident_windows)]),
    ),
    family(
        "map_resident",
        GaugeOfBytes,
        "Memory of extents.",
        Map(&[(None, |of| of.resident_bytes)]),
    ),
    family(
        "map_budget",
        GaugeOfBytes,
        "Most memory of extents that are not pinned.",
        Map(&[(None, |of| of.budget_bytes)]),
    ),
    family(
        "map_pinned",
        GaugeOfBytes,
        "Memory of pinned extents.",
        Map(&[(None, |of| of.pinned_bytes)]),
    ),
    family(
        "map_pin_reserve",
        GaugeOfBytes,
        "Most memory of pinned extents.",
        Map(&[(None, |of| of.pin_reserve_bytes)]),
    ),
    family(
        "map_holds",
        Gauge,
        "Ranges taken away from the map while they change.",
        Map(&[(None, |of| of.holds)]),
    ),
    family(
        "map_extents",
        Gauge,
        "Extents in memory by kind.",
        Samples::Extents,
    ),
];
