//! The disk as `extentctl info` shows it.

use std::sync::atomic::Ordering;

use vhost_backend::device::SECTOR;

use super::Disk;
use crate::block_io::Sums;
use crate::engine::Features;
use crate::engine::manner::Manner;
use crate::engine::pin::PinState;
use crate::options::size;
use crate::protocol::info::{DiskInfo, Guard, IoUring, Operations};
use crate::protocol::words::{DeviceIo, EngineName, ImageKind, Way};

impl Disk {
    /// The disk as an operator sees it.
    pub(crate) fn describe(&self) -> DiskInfo {
        let sectors = self.sectors.load(Ordering::Acquire);
        let (on_disk, path_reason, path_entries) = match self.disk_path() {
            Ok(path) => {
                let now = path.situation();
                (now.on_disk, now.reason, now.entries)
            }
            Err(reason) => (self.block_device, reason.to_owned(), 0),
        };
        let path = self.disk_path().ok();
        let (on_enospc, on_io_error) = self.on_errors();
        DiskInfo {
            image: self.path.display().to_string(),
            kind: if self.block_device {
                ImageKind::BlockDevice.into()
            } else {
                ImageKind::File.into()
            },
            size_bytes: sectors * SECTOR,
            capacity_sectors: sectors,
            read_only: self.options.read_only,
            direct: self.direct.is_some(),
            engine: if self.uring.load(Ordering::Relaxed) {
                EngineName::IoUring.into()
            } else {
                EngineName::Sync.into()
            },
            logical_block_size: self.logical,
            direct_alignment: self.shared.align.offset,
            path: if on_disk {
                Way::Disk.into()
            } else {
                Way::File.into()
            },
            path_reason,
            path_entries,
            lease_break_time_s: mapping::lease::break_time()
                .ok()
                .map(|time| time.map_or(0, |time| time.as_secs())),
            guard: path.map(|path| path.guard_state().into()),
            operations: self.sums().into(),
            on_enospc,
            on_io_error,
            held_requests: self.held.counts().now,
            room: self.room.now(),
            device: path.and_then(|path| Some(path.device().path()?.display().to_string())),
            device_io: match self.raw.as_ref().map_or(self.manner, |way| way.manner) {
                Manner::Queued => DeviceIo::Queued.into(),
                Manner::Inline => DeviceIo::Inline.into(),
                Manner::Polled => DeviceIo::Polled.into(),
            },
            io_uring: self.features.get().copied().map(IoUring::from),
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

impl From<mapping::path::GuardState> for Guard {
    fn from(state: mapping::path::GuardState) -> Self {
        Self {
            turned_ms_ago: state.turned_ms_ago,
            late: state.late,
        }
    }
}

impl From<Sums> for Operations {
    fn from(sums: Sums) -> Self {
        Self {
            disk_operations: sums.disk_operations,
            file_operations: sums.file_operations,
            zero_fills: sums.zero_fills,
            polled_operations: sums.polled_operations,
            bounced_operations: sums.bounced_operations,
            refused_operations: sums.refused_operations,
            requests: sums.requests.iter().sum(),
            read_bytes: sums.read_bytes,
            written_bytes: sums.written_bytes,
        }
    }
}

impl From<Features> for IoUring {
    fn from(features: Features) -> Self {
        Self {
            task_work: features.task_work.to_owned(),
            bounded_threads: features.bounded_threads,
            shared_buffers: features.shared_buffers,
            vectored_buffers: features.vectored_buffers,
        }
    }
}
