//! The size of the disk, and of what is under it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost_backend::device::SECTOR;

use super::{Disk, DiskError};
use crate::host::sys;

/// How often, and how much later, an image is looked at that was cut.
const LATE_WRITES: usize = 10;
const LATE_WRITE: Duration = Duration::from_millis(10);

impl Disk {
    /// What the image has.
    ///
    /// # Errors
    /// The host does not tell.
    pub(crate) fn image_bytes(&self) -> io::Result<u64> {
        if self.block_device {
            sys::device_size(&self.image)
        } else {
            Ok(self.image.metadata()?.size())
        }
    }

    /// The capacity that an image of so many bytes offers: every whole sector,
    /// and what is left of one as a sector that ends with zeros, as in QEMU;
    /// but whole blocks where blocks are larger.
    pub(super) fn whole(&self, bytes: u64) -> u64 {
        let block = u64::from(self.block());
        let filled = bytes.next_multiple_of(SECTOR);
        if block == SECTOR && i64::try_from(filled).is_ok() {
            filled
        } else {
            bytes - bytes % block
        }
    }

    /// An image that ends within a sector gets the rest of it before a guest
    /// uses it; QEMU does it with the first write there.
    pub(super) fn fill_sector(&self) -> io::Result<()> {
        if self.block_device || self.options.read_only {
            return Ok(());
        }
        let bytes = self.image_bytes()?;
        let whole = self.whole(bytes);
        if whole <= bytes || whole != self.capacity_bytes() {
            return Ok(());
        }
        log::warn!(
            "{} ends within a sector: it is filled up with {} zero bytes",
            self.path.display(),
            whole - bytes
        );
        self.change_length(bytes, whole, || self.image.set_len(whole))
    }

    pub(super) fn set_size(&self, bytes: u64) {
        let whole = self.whole(bytes);
        if whole < bytes {
            log::warn!(
                "{}: the last {} bytes are less than a block of {} and are not offered",
                self.path.display(),
                bytes - whole,
                self.block()
            );
        }
        self.shared.set_end(bytes);
        self.shared.set_capacity(whole);
        self.sectors.store(whole / SECTOR, Ordering::Release);
    }

    /// Changes the size of a regular image, or takes notice that a block
    /// device has changed: then `bytes` must be what it has now.
    ///
    /// # Errors
    /// The size is no multiple of the block, or the host refuses it.
    pub(crate) fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let failed = |source| DiskError::Resize {
            path: self.path.clone(),
            source,
        };
        let block = self.block();
        if bytes == 0 || !bytes.is_multiple_of(u64::from(block)) {
            return Err(DiskError::BadSize(bytes, block));
        }
        if self.block_device {
            let now = self.image_bytes().map_err(failed)?;
            if now != bytes {
                return Err(DiskError::DeviceSize(self.path.clone(), now));
            }
            self.set_size(bytes);
            return Ok(());
        }
        if self.options.read_only {
            return Err(DiskError::ReadOnly);
        }
        if self.options.swap.is_some() {
            return Err(DiskError::SwapGrade);
        }
        let clones = self.clones().current();
        if clones.is_some_and(|cloning| bytes < cloning.pending.size()) {
            return Err(DiskError::BeingCloned);
        }
        let before = self.capacity_bytes();
        let length = self.image_bytes().map_err(failed)?;
        self.change_length(bytes.min(length), bytes, || {
            if i64::try_from(bytes).is_err() {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
            }
            self.image.set_len(bytes)?;
            self.cut_again(bytes)
        })
        .map_err(|source| {
            self.set_size(before.min(self.image_bytes().unwrap_or(before)));
            failed(source)
        })
    }

    /// Makes the disk `bytes` long by `change`, which changes the image from
    /// byte `from` on. Where it gets shorter, requests are refused before.
    fn change_length(
        &self,
        from: u64,
        bytes: u64,
        change: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if bytes < self.capacity_bytes() {
            self.set_size(bytes);
        }
        let path = self.disk_path().ok();
        let held = path.map(|path| path.hold_end(from)).transpose()?;
        change()?;
        if let Some(path) = path {
            path.set_length(bytes)?;
        }
        drop(held);
        self.set_size(bytes);
        Ok(())
    }

    /// Without a map nobody knows what was in flight: a write that was begun
    /// before the image was cut makes it longer again.
    fn cut_again(&self, bytes: u64) -> io::Result<()> {
        for _ in 0..LATE_WRITES {
            if self.raw.is_ok() || self.image_bytes()? <= bytes {
                break;
            }
            self.image.set_len(bytes)?;
            std::thread::sleep(LATE_WRITE);
        }
        Ok(())
    }

    /// Takes the size that the image has by now, whoever has changed it.
    ///
    /// # Errors
    /// It is shorter than one block, or the host does not tell.
    pub(crate) fn follow_size(&self) -> Result<(), DiskError> {
        let failed = |source| DiskError::Open {
            path: self.path.clone(),
            source,
        };
        let bytes = self.image_bytes().map_err(failed)?;
        let whole = self.whole(bytes);
        if whole == 0 {
            return Err(DiskError::TooSmall(self.path.clone(), self.block()));
        }
        if whole == self.capacity_bytes() {
            return Ok(());
        }
        if self.options.swap.is_some() {
            return Err(DiskError::SwapGrade);
        }
        // The rest of the last sector is there as soon as it can be written.
        let fills = whole > bytes && !self.options.read_only;
        let length = if fills { whole } else { bytes.min(whole) };
        self.change_length(length.min(self.capacity_bytes()), length, || {
            if fills {
                self.image.set_len(whole)
            } else {
                Ok(())
            }
        })
        .map_err(failed)
    }
}
