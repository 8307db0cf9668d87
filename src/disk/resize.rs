//! The size of the disk, and of what is under it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use vhost_backend::device::SECTOR;

use super::{Disk, DiskError};
use crate::sys;

impl Disk {
    pub(super) fn image_bytes(&self) -> io::Result<u64> {
        if self.block_device {
            sys::device_size(&self.image)
        } else {
            Ok(self.image.metadata()?.size())
        }
    }

    pub(super) fn set_size(&self, bytes: u64) {
        let block = u64::from(self.block());
        let whole = bytes - bytes % block;
        if whole != bytes {
            log::warn!(
                "{}: the last {} bytes are less than a block of {block} and are not offered",
                self.path.display(),
                bytes - whole
            );
        }
        self.sectors.store(whole / SECTOR, Ordering::Release);
    }

    /// Changes the size of a regular image, or takes notice that a block
    /// device has changed: then `bytes` must be what it has now.
    ///
    /// # Errors
    /// The size is no multiple of the block, or the host refuses it.
    pub fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let failed = |source| DiskError::Open {
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
        let before = self.sectors.load(Ordering::Acquire) * SECTOR;
        if bytes < before {
            // Requests are refused before the blocks go away, and raw I/O that
            // was planned before is waited for.
            self.set_size(bytes);
            if let Ok(path) = &self.raw {
                path.resize(bytes).map_err(failed)?;
            }
        }
        self.image.set_len(bytes).map_err(failed)?;
        if let Ok(path) = &self.raw {
            path.resize(bytes).map_err(failed)?;
        }
        self.set_size(bytes);
        Ok(())
    }

    /// Takes the size that the image has by now, whoever has changed it.
    ///
    /// # Errors
    /// It is shorter than one block, or the host does not tell.
    pub fn follow_size(&self) -> Result<(), DiskError> {
        let failed = |source| DiskError::Open {
            path: self.path.clone(),
            source,
        };
        let bytes = self.image_bytes().map_err(failed)?;
        let block = self.block();
        if bytes < u64::from(block) {
            return Err(DiskError::TooSmall(self.path.clone(), block));
        }
        if bytes / u64::from(block) * u64::from(block) == self.capacity_bytes() {
            return Ok(());
        }
        if self.options.swap.is_some() {
            return Err(DiskError::SwapGrade);
        }
        let grows = bytes > self.capacity_bytes();
        if !grows {
            self.set_size(bytes);
        }
        if let Ok(path) = &self.raw {
            path.resize(bytes - bytes % u64::from(block))
                .map_err(failed)?;
        }
        if grows {
            self.set_size(bytes);
        }
        Ok(())
    }
}
