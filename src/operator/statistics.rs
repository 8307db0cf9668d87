//! Gathers the counters of a disk.

use std::time::Duration;

use mapping::Stats;
use vhost_backend::{Handle, Limits, SAMPLED};

use crate::disk::Disk;
use crate::host::sandbox;
use crate::protocol::statistics::{
    ByOperation, ExtentCounts, Latency, MapStatistics, Statistics, WorkerStatistics,
};

fn of_map(stats: &Stats, config: &mapping::Config) -> MapStatistics {
    MapStatistics {
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
        extents: ExtentCounts::new(stats.extents),
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn by_operation(counts: [u64; 5]) -> ByOperation<u64> {
    ByOperation::new(|kind| counts.get(kind.index()).copied().unwrap_or(0))
}

fn workers(disk: &Disk) -> Vec<WorkerStatistics> {
    let tallies = disk.tallies();
    let each = tallies.iter().zip(0..).map(|(tally, worker)| {
        let sums = tally.sums();
        WorkerStatistics {
            worker,
            disk_operations: sums.disk_operations,
            file_operations: sums.file_operations,
            zero_fills: sums.zero_fills,
        }
    });
    each.collect()
}

/// The counters of `disk`, which has these limits and is offered by this server.
pub(crate) fn gather(disk: &Disk, limits: &Limits, server: &Handle) -> Statistics {
    let activity = server.activity();
    let failed = disk.errors();
    let waits = limits.waits();
    let sums = disk.sums();
    let held = disk.held().counts();
    let description = disk.describe();
    let path = disk.disk_path().ok();
    Statistics {
        uptime_ms: u64::try_from(disk.uptime().as_millis()).unwrap_or(u64::MAX),
        path: description.path,
        path_reason: description.path_reason,
        path_entries: description.path_entries,
        requests: sums.requests.iter().sum(),
        failed_requests: failed.iter().sum::<u64>().saturating_add(held.failed),
        disk_operations: sums.disk_operations,
        file_operations: sums.file_operations,
        zero_fills: sums.zero_fills,
        read_bytes: sums.read_bytes,
        written_bytes: sums.written_bytes,
        held_requests: held.now,
        held_requests_ever: held.ever,
        held_retries: held.retries,
        room: description.room,
        limit_waits: waits.count,
        limit_waited_us: microseconds(waits.time),
        held_for_us: limits.held_for().map(microseconds),
        threads_standing: pulse::standing().len() as u64,
        thread_stands: pulse::times_stood(),
        map: path.map(|path| of_map(&path.stats(), path.map().config())),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        image: description.image,
        size_bytes: description.size_bytes,
        connected: server.status().connected,
        lease_held: path.map(|path| path.lease_is_held()),
        requests_by_operation: by_operation(sums.requests),
        failed_by_operation: by_operation(failed),
        polled_operations: sums.polled_operations,
        bounced_operations: sums.bounced_operations,
        refused_operations: sums.refused_operations,
        interrupts: activity.interrupts,
        interrupts_saved: activity.interrupts_saved,
        looks_found: activity.looks_found,
        looks_found_us: microseconds(activity.looks_found_time),
        looks_vain: activity.looks_vain,
        looks_vain_us: microseconds(activity.looks_vain_time),
        sandbox_denials: sandbox::in_force().map_or(0, |sandbox| sandbox.denied),
        latency: Latency::new(SAMPLED, &activity),
        queues: activity.queues.iter().map(Into::into).collect(),
        workers: workers(disk),
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
            let shown = of_map(&stats, &mapping::Config::default());
            for (name, count) in shown.extents.named() {
                let own = kind.name() == name;
                assert_eq!(count, if own { 7 } else { 0 }, "{name} of {kind}");
            }
        }
    }
}
