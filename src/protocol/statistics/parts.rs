//! What is counted of each queue and each worker of a disk.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Times;

/// A queue; all but what is in flight since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct QueueStatistics {
    /// As the front-end counts, from 0.
    pub queue: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of reads that were fetched.
    pub read_bytes: u64,
    /// Bytes of writes that were fetched.
    pub written_bytes: u64,
    /// Requests in flight, as of the last turn of its worker.
    pub in_flight: u64,
    /// From fetched to published, of the requests that are timed.
    pub latency: Times,
}

/// A worker; all since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct WorkerStatistics {
    /// From 0.
    pub worker: u64,
    /// Reads and writes that went straight to the device.
    pub disk_operations: u64,
    /// Reads and writes that went by the file with no copy.
    pub file_operations: u64,
    /// Reads of holes and unwritten extents.
    pub zero_fills: u64,
}

impl From<&vhost_backend::QueueActivity> for QueueStatistics {
    fn from(activity: &vhost_backend::QueueActivity) -> Self {
        Self {
            queue: activity.number as u64,
            requests: activity.requests,
            read_bytes: activity.read_bytes,
            written_bytes: activity.written_bytes,
            in_flight: activity.in_flight,
            latency: activity.times.into(),
        }
    }
}
