//! The block device under a file: finding it, opening it, and why it may not be used.
//!
//! The kernel calls writing to the blocks of a mounted file system's file undefined, so every condition
//! known to matter is checked here ([`admit`]), the result is proved on real blocks
//! ([`BackingDevice::prove`]), and the caller holds a [lease] for as long as it goes on.

mod admission;
pub mod flush;
pub mod lease;
mod proof;
pub(crate) mod refusal;
pub mod sharing;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use self::admission::admit_file;
use self::refusal::failed;
use crate::sys::{self, major, minor};

pub use self::admission::admit;
pub use self::proof::Proof;
pub use self::refusal::Refusal;

/// The block device that holds a file's blocks, open for direct I/O in the mode the file is open in.
#[derive(Debug)]
pub struct BackingDevice {
    file: File,
    path: Option<PathBuf>,
    number: u64,
    sizes: sys::BlockSizes,
    identity: bool,
}

impl BackingDevice {
    /// Finds the file's block device and opens it, for writing only if `file` is. What the file is and its
    /// attributes are checked; how its file system is mounted is not, as that may change ([`admit`] does). An image
    /// that is a block device itself is its own backing device.
    ///
    /// The device must not be used without a [lease] on the file, nor longer than `file` is
    /// open: an open file keeps the file system mounted.
    ///
    /// # Errors
    /// The reason, as a [`Refusal`].
    pub fn find(file: &File) -> Result<BackingDevice, Refusal> {
        let stat = file.metadata().map_err(failed("fstat"))?;
        if stat.file_type().is_block_device() {
            let device = file.try_clone().map_err(failed("dup"))?;
            return BackingDevice::opened(device, None, stat.rdev(), true);
        }
        admit_file(file)?;
        let number = stat.dev();
        let flags = sys::open_flags(file).map_err(failed("F_GETFL"))?;
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let path = node(number)?;
        let device = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .map_err(|source| Refusal::DeviceOpen {
                path: path.clone(),
                source,
            })?;
        // The node may have been replaced between the look and the open.
        let opened = device.metadata().map_err(failed("fstat"))?;
        if !opened.file_type().is_block_device() || opened.rdev() != number {
            return Err(Refusal::NoNode {
                major: major(number),
                minor: minor(number),
            });
        }
        BackingDevice::opened(device, Some(path), number, false)
    }

    fn opened(
        file: File,
        path: Option<PathBuf>,
        number: u64,
        identity: bool,
    ) -> Result<BackingDevice, Refusal> {
        let sizes =
            sys::block_sizes(&file).map_err(failed("asking for the device's block sizes"))?;
        if sizes.logical > 4096 {
            return Err(Refusal::BlockSize(sizes.logical));
        }
        Ok(BackingDevice {
            file,
            path,
            number,
            sizes,
            identity,
        })
    }

    /// The open device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its node; `None` if the image itself is the device.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Its device number (`st_rdev`).
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether the image is the device itself: every byte at its own offset ([`Identity`](crate::Identity)).
    #[must_use]
    pub fn is_image(&self) -> bool {
        self.identity
    }

    /// Bytes of the device.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.sizes.device
    }

    /// Bytes of a logical block: direct I/O must be aligned to it.
    #[must_use]
    pub fn logical_block(&self) -> u32 {
        self.sizes.logical
    }

    /// Bytes of a block of the device's own page cache (`BLKBSZGET`; a mounted file system sets it). Raw
    /// writes are legal only in multiples of this; anything smaller goes by the file.
    #[must_use]
    pub fn page_block(&self) -> u32 {
        self.sizes.page_cache
    }
}

/// The node of a block device, named by the kernel's own listing.
fn node(number: u64) -> Result<PathBuf, Refusal> {
    let (major, minor) = (major(number), minor(number));
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))
        .unwrap_or_default();
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="));
    let named = name.map(|name| Path::new("/dev").join(name));
    let numbered = PathBuf::from(format!("/dev/block/{major}:{minor}"));
    let fits = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|stat| stat.file_type().is_block_device() && stat.rdev() == number)
    };
    named
        .into_iter()
        .chain([numbered])
        .find(fits)
        .ok_or(Refusal::NoNode { major, minor })
}
