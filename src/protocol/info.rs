//! The answer to `info`, and what it has in common with `selftest`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::done::{SnapshotInMaking, Unsharing};
use super::limits::LimitsNow;
use super::words::{DeviceIo, EngineName, ImageKind, Named, Way};
use crate::options::config::{OnError, Swap};

mod hexadecimal;
mod properties;

pub use self::properties::{Properties, Property};

/// What is served, how, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Info {
    /// Of extentd.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Queues offered.
    pub queues: u16,
    /// Largest ring accepted, in entries.
    pub queue_size: u16,
    /// Worker threads.
    pub threads: usize,
    /// CPUs that they are pinned to in turn; empty: not pinned.
    pub cpus: Vec<usize>,
    /// How much longer the disk is held still, in milliseconds; null if it is
    /// not.
    pub held_ms: Option<u64>,
    /// The snapshot that is being made, if there is one.
    pub snapshot: Option<SnapshotInMaking>,
    /// How blocks that are shared become the image's own, or became it last;
    /// null if nobody has asked for that.
    pub unshare: Option<Unsharing>,
    /// The disk.
    pub disk: DiskInfo,
    /// Swap-grade mode; `None` without `--swap`.
    pub swap: Option<SwapInfo>,
    /// What the process has given up; `None` with `--sandbox off`.
    pub sandbox: Option<Sandbox>,
    /// Limits on requests and bytes per second.
    pub limits: LimitsNow,
    /// The front-end.
    pub session: Session,
    /// Threads that do not come round; empty where all is well.
    pub standing: Vec<StandingThread>,
}

/// A thread that has stood still for some seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct StandingThread {
    /// Its name.
    pub thread: String,
    /// For how long, in seconds.
    pub seconds: u64,
    /// What it does: for people.
    pub doing: String,
}

/// What the process has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Sandbox {
    /// Each thread may make the system calls of its kind only.
    pub seccomp: bool,
    /// Threads open no files but below /proc and /sys: the version of the
    /// kernel's landlock, 0 without.
    pub landlock_version: u32,
    /// Capabilities that the mode does not need are dropped.
    pub capabilities_dropped: bool,
    /// System calls that were denied since the start: none is expected.
    pub denied_calls: u64,
}

/// The disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct DiskInfo {
    /// The image; what of its name is not UTF-8 is replaced.
    pub image: String,
    /// What that is.
    pub kind: Named<ImageKind>,
    /// The capacity that the guest sees, in bytes.
    pub size_bytes: u64,
    /// The same in 512-byte sectors.
    pub capacity_sectors: u64,
    /// Offered read-only.
    pub read_only: bool,
    /// O_DIRECT is used.
    pub direct: bool,
    /// How operations are given to the kernel.
    pub engine: Named<EngineName>,
    /// `blk_size` in bytes.
    pub logical_block_size: u32,
    /// Alignment of direct I/O on the image in bytes; other requests bounce.
    pub direct_alignment: u32,
    /// Where requests go now.
    pub path: Named<Way>,
    /// Why: one sentence.
    pub path_reason: String,
    /// How often the disk path was entered.
    pub path_entries: u64,
    /// How long the kernel makes others wait for the image, in seconds; 0 is
    /// for as long as it takes, and `None` that it does not tell.
    pub lease_break_time_s: Option<u64>,
    /// The thread that looks at the lease; `None` where there is no disk path.
    pub guard: Option<Guard>,
    /// What was done so far.
    pub operations: Operations,
    /// What becomes of requests for which there is no room.
    pub on_enospc: OnError,
    /// What becomes of requests that the disk fails.
    pub on_io_error: OnError,
    /// Requests that are held now.
    pub held_requests: u64,
    /// The room of the image's file system; `None` for a block device, for a
    /// read-only disk, and where it is not known.
    pub room: Option<Room>,
    /// The block device under the image, if raw I/O to it is possible.
    pub device: Option<String>,
    /// How the device is read and written.
    pub device_io: Named<DeviceIo>,
    /// What of io_uring the kernel has; `None` where it is not used, or no
    /// worker has found out yet.
    pub io_uring: Option<IoUring>,
    /// Guest memory as registered buffers, which excludes ballooning, free
    /// page reporting and virtio-mem: for people.
    pub pinned_guest_memory: String,
    /// The image lock is used.
    pub lock: bool,
}

/// The room that the image's file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Room {
    /// Bytes that are free, but for what is kept for root.
    pub free_bytes: u64,
    /// Bytes of the image that have no blocks yet: the guest may ask for as
    /// many. Blocks that it shares with other files come to that.
    pub unallocated_bytes: u64,
    /// That is more than is free.
    pub overcommitted: bool,
    /// And little is free: less than a twentieth of the file system, and than
    /// 10 GiB.
    pub low: bool,
}

/// The thread that takes the lease and gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Guard {
    /// When it last looked at the lease, in milliseconds before now; it does
    /// at least every second while the path is in use, and need not otherwise.
    pub turned_ms_ago: u64,
    /// The path is in use and it has not looked for 5 s. Workers look too.
    pub late: bool,
}

/// What all workers have done since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Operations {
    /// Reads and writes that went straight to the device.
    pub disk_operations: u64,
    /// Reads and writes that went by the file with no copy.
    pub file_operations: u64,
    /// Reads of holes and unwritten extents, which need no I/O.
    pub zero_fills: u64,
    /// Reads and writes whose end was looked for, so that the device did not
    /// have to interrupt.
    pub polled_operations: u64,
    /// Reads and writes of the file through a buffer of extentd: guest memory,
    /// offset or length do not suit direct I/O.
    pub bounced_operations: u64,
    /// Reads and writes that the device did not take at once, as its queue was
    /// full; they were tried again, or went by the file.
    pub refused_operations: u64,
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes of reads that ended well.
    pub read_bytes: u64,
    /// Bytes of writes that ended well; zeroing and discarding do not count.
    pub written_bytes: u64,
}

/// What of io_uring the kernel has; each has a way round where it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct IoUring {
    /// Completions are posted when the worker asks (6.1): "deferred"; when it
    /// is in the kernel anyway (5.19): "cooperative"; else "interrupting".
    pub task_work: String,
    /// The threads that take what would wait can be limited (5.15).
    pub bounded_threads: bool,
    /// Registered buffers can be shared between rings (6.12): without it,
    /// guest memory is not pinned.
    pub shared_buffers: bool,
    /// Vectors of registered buffers (6.15); without it, only single ones.
    pub vectored_buffers: bool,
}

/// Swap-grade mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct SwapInfo {
    /// How strictly it was asked for.
    pub mode: Named<Swap>,
    /// All properties are held.
    pub holds: bool,
    /// Allocations by worker threads since the start, those outside requests
    /// included.
    pub worker_allocations: u64,
    /// Each property.
    pub properties: Properties,
}

/// Whether a disk is swap-grade, watched for a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Selftest {
    /// All properties are held.
    pub holds: bool,
    /// Those that `info` shows, and what takes longer to find out.
    pub properties: Properties,
}

/// A connection of a front-end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct FrontEnd {
    /// The process that has made it; `None` if the kernel does not tell.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: Option<u32>,
    /// For how long it has been there, in seconds.
    pub seconds: u64,
}

/// An image that others have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ImageAwaited {
    /// For how long it was asked for, in seconds.
    pub seconds: u64,
    /// Who has it, as far as can be told.
    pub reason: String,
}

/// The front-end. All is zero but `connected` where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Session {
    /// A front-end is connected.
    pub connected: bool,
    /// Rings that are being served.
    pub rings_running: usize,
    /// Who it is, if one is connected.
    pub front_end: Option<FrontEnd>,
    /// Others who have connected meanwhile, in order: they are served one
    /// after the other.
    pub waiting: Vec<FrontEnd>,
    /// Rings could run, but the image is in use by others.
    pub waits_for_image: bool,
    /// Since when, and what for.
    pub image_awaited: Option<ImageAwaited>,
    /// Virtio features acknowledged: bits, as a hexadecimal number in a text.
    #[serde(with = "hexadecimal")]
    #[schemars(with = "String")]
    pub features: u64,
    /// vhost-user protocol features acknowledged, likewise.
    #[serde(with = "hexadecimal")]
    #[schemars(with = "String")]
    pub protocol_features: u64,
    /// Regions of guest memory that are shared.
    pub memory_regions: usize,
    /// Bytes of guest memory that are shared.
    pub memory_bytes: u64,
    /// Writes may be cached until the guest flushes.
    pub writeback: bool,
}
