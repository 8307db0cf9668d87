//! What a worker knows of the disk as it judges requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::command::Mode;
use crate::device::{Device, DiskInfo};
use crate::queue::request::Terms;

/// The disk and how its guest wants it to behave.
pub(crate) struct Disk<D> {
    device: Arc<D>,
    /// Asked once: it stays the same.
    info: DiskInfo,
    mode: Arc<Mode>,
}

impl<D: Device> Disk<D> {
    pub(crate) fn new(device: Arc<D>, mode: Arc<Mode>) -> Self {
        let info = device.info();
        Self { device, info, mode }
    }

    /// The terms in force now.
    pub(crate) fn terms(&self) -> Terms<'_> {
        Terms {
            info: &self.info,
            capacity: self.device.capacity_sectors(),
            writeback: self.mode.writeback.load(Ordering::Acquire),
        }
    }
}
