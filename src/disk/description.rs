//! The disk as `extentctl info` shows it.

use std::sync::atomic::Ordering;

use serde::Serialize;
use vhost_backend::device::SECTOR;

use super::Disk;
use crate::block_io::Sums;
use crate::engine::Features;
use crate::engine::manner::Manner;
use crate::engine::pin::PinState;
use crate::options::size;

/// What `extentctl info` shows of the disk.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DiskDescription {
    /// The image; what of its name is not UTF-8 is replaced.
    pub image: String,
    /// "file" or "block device".
    pub kind: &'static str,
    /// The capacity that the guest sees, in bytes.
    pub size_bytes: u64,
    /// The same in 512-byte sectors.
    pub capacity_sectors: u64,
    /// Offered read-only.
    pub read_only: bool,
    /// O_DIRECT is used.
    pub direct: bool,
    /// "io_uring", or "sync" with plain system calls.
    pub engine: &'static str,
    /// `blk_size` in bytes.
    pub logical_block_size: u32,
    /// Alignment of direct I/O on the image in bytes; other requests bounce.
    pub direct_alignment: u32,
    /// Where requests go now: "disk" or "file".
    pub path: &'static str,
    /// Why.
    pub path_reason: String,
    /// How often the disk path was entered.
    pub path_entries: u64,
    /// How long the kernel makes others wait for the image, in seconds; 0 is
    /// for as long as it takes, and `None` that it does not tell.
    pub lease_break_time_s: Option<u64>,
    /// How the thread is doing that looks at the lease.
    pub guard: Option<GuardState>,
    /// What was done so far.
    pub operations: Sums,
    /// The block device under the image, if raw I/O to it is possible.
    pub device: Option<String>,
    /// How the device is read and written: "queued", "inline" by the workers
    /// themselves as it takes nothing without waiting, or "polled" as it need
    /// not interrupt.
    pub device_io: &'static str,
    /// What of io_uring the kernel has.
    pub io_uring: Option<Features>,
    /// Guest memory as registered buffers, which excludes ballooning, free
    /// page reporting and virtio-mem.
    pub pinned_guest_memory: String,
    /// The image lock is used.
    pub lock: bool,
}

/// How the thread is doing that looks at the lease.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct GuardState {
    /// When it last looked, in milliseconds; it does at least every second
    /// while the path is in use, and need not otherwise.
    pub turned_ms_ago: u64,
    /// The path is in use and it has not looked for long. Workers look too.
    pub late: bool,
}

impl From<mapping::path::GuardState> for GuardState {
    fn from(state: mapping::path::GuardState) -> GuardState {
        GuardState {
            turned_ms_ago: state.turned_ms_ago,
            late: state.late,
        }
    }
}

impl Disk {
    /// The disk as an operator sees it.
    pub(crate) fn describe(&self) -> DiskDescription {
        let sectors = self.sectors.load(Ordering::Acquire);
        let (on_disk, path_reason, path_entries) = match self.disk_path() {
            Ok(path) => {
                let now = path.situation();
                (now.on_disk, now.reason, now.entries)
            }
            Err(reason) => (self.block_device, reason.to_owned(), 0),
        };
        let path = self.disk_path().ok();
        DiskDescription {
            image: self.path.display().to_string(),
            kind: if self.block_device {
                "block device"
            } else {
                "file"
            },
            size_bytes: sectors * SECTOR,
            capacity_sectors: sectors,
            read_only: self.options.read_only,
            direct: self.direct.is_some(),
            engine: if self.uring.load(Ordering::Relaxed) {
                "io_uring"
            } else {
                "sync"
            },
            logical_block_size: self.logical,
            direct_alignment: self.shared.align.offset,
            path: if on_disk { "disk" } else { "file" },
            path_reason,
            path_entries,
            lease_break_time_s: mapping::lease::break_time()
                .ok()
                .map(|time| time.map_or(0, |time| time.as_secs())),
            guard: path.map(|path| path.guard_state().into()),
            operations: self.sums(),
            device: path.and_then(|path| Some(path.device().path()?.display().to_string())),
            device_io: match self.raw.as_ref().map_or(self.manner, |way| way.manner) {
                Manner::Queued => "queued",
                Manner::Inline => "inline",
                Manner::Polled => "polled",
            },
            io_uring: self.features.get().copied(),
            pinned_guest_memory: self.pin_description(),
            lock: self.options.lock,
        }
    }

    fn pin_description(&self) -> String {
        match (&self.pinner, self.options.pin_guest_memory) {
            (None, false) => "no".to_owned(),
            (None, true) => "no: the host refuses io_uring".to_owned(),
            (Some(pinner), _) => match pinner.state() {
                PinState::Pinned(bytes) => format!(
                    "{} (incompatible with ballooning, free page reporting and virtio-mem)",
                    size::display(bytes)
                ),
                PinState::Working => "under way".to_owned(),
                PinState::Refused(reason) => format!("no: {reason}"),
            },
        }
    }
}
