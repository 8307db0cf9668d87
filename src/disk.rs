//! The disk: an image, how it was opened, what is offered of it, and which
//! ways lead to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mapping::DiskPath;
use mapping::lease::LeaseError;
use mapping::path::Obstacle;
use vhost_backend::device::SECTOR;
use vhost_backend::{
    Device, DiscardLimits, DiskInfo, HeldRequests, IoChannel, Topology, WriteZeroesLimits,
};

use crate::block_io::{BlockIo, ByKind, Shared, Sums, Tally};
use crate::engine::pin::Pinner;
use crate::engine::{Any, Features, Files, manner::Manner, sync::Sync, uring::Uring};
use crate::host::allocations;
use crate::host::sandbox::{self, Kind};
use crate::host::switches;
use crate::host::sys::{self, DirectAlign};
pub use crate::options::config::DiskOptions;
use crate::options::config::{IoPath, Swap};

pub mod at_rest;
pub(crate) mod cloning;
mod description;
mod device_claim;
mod error;
mod holders;
mod holding;
mod image_file;
mod image_lock;
mod reports;
mod resize;
pub(crate) mod room;
pub(crate) mod snapshots;
pub(crate) mod unsharing;
mod ways;

pub(crate) use self::error::DiskError;
pub(crate) use self::image_file::open_file;
use self::image_file::probe_align;
use self::image_lock::ImageLock;
use self::ways::{RawWay, no_disk_path_beside_tail, pinner, raw_way};

/// Longest DISCARD or WRITE_ZEROES segment: 1 GiB.
const MAX_CHANGE_SECTORS: u32 = 1 << 21;

/// An open image. Shared by the session and all workers.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    image: Arc<File>,
    block_device: bool,
    options: DiskOptions,
    logical: u32,
    physical: u32,
    /// The file system's block or the device's, in bytes: what can be freed.
    unit: u32,
    direct: Option<DirectAlign>,
    /// What the capacity is a multiple of, as far as the image asks for it.
    granule: u32,
    /// The image by the page cache, for the end that direct I/O does not take.
    tail: Option<File>,
    sectors: AtomicU64,
    uring: AtomicBool,
    /// What of io_uring the kernel has, once a worker has found out.
    features: OnceLock<Features>,
    /// How the image is read and written where the file is meant.
    manner: Manner,
    shared: Arc<Shared>,
    /// The way past the file system, or why there is none.
    raw: Result<RawWay, String>,
    /// `None` if nobody is to be kept away.
    lock: Option<ImageLock>,
    pinner: Option<Arc<Pinner>>,
    tallies: Mutex<Vec<Arc<Tally>>>,
    /// Requests that wait for the host.
    held: Arc<HeldRequests>,
    /// Of the image's file system.
    room: room::Seen,
    /// From when rings start to when others may have the image.
    ours: AtomicBool,
    opened: Instant,
}

impl Disk {
    /// Opens the image once; every worker uses this open file description.
    ///
    /// # Errors
    /// The image cannot serve as a disk.
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Self, DiskError> {
        Self::open_again(path, None, options)
    }

    /// As [`open`](Self::open), but what is `handed` over, whatever has its
    /// name by now. It is closed when it has been opened anew, as it keeps the
    /// lease away.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_again(
        path: &Path,
        handed: Option<OwnedFd>,
        options: &DiskOptions,
    ) -> Result<Self, DiskError> {
        let source = &image_file::source(path, handed.as_ref());
        let failed = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let meta = std::fs::metadata(source).map_err(failed)?;
        let block_device = meta.file_type().is_block_device();
        if !block_device && !meta.file_type().is_file() {
            return Err(DiskError::NotAnImage(path.to_owned()));
        }
        let (image, mut direct) = match open_file(source, options.read_only, libc::O_DIRECT) {
            Ok(image) => (image, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (
                open_file(source, options.read_only, 0).map_err(failed)?,
                false,
            ),
            Err(error) => return Err(failed(error)),
        };
        drop(handed);
        if block_device && !options.read_only && sys::is_read_only(&image).map_err(failed)? {
            return Err(DiskError::ReadOnlyDevice(path.to_owned()));
        }
        image_file::warn_of_format(&image, path);
        if !block_device && !options.read_only {
            image_file::warn_of_limit(&image, path).map_err(failed)?;
        }
        let (medium, physical, unit) = if block_device {
            let (logical, physical) = sys::device_blocks(&image).map_err(failed)?;
            (logical, physical, physical)
        } else {
            let block = sys::filesystem_block(&image)
                .map_err(failed)?
                .clamp(512, 65536);
            (512, block, block)
        };
        let mut align = DirectAlign::all(1);
        if direct {
            align = match sys::direct_align(&image) {
                Some(align) => align,
                None if block_device => DirectAlign::all(medium),
                None => probe_align(&image).map_err(failed)?,
            };
            direct = align.offset > 1;
        }
        if !direct {
            log::warn!(
                "{} allows no direct I/O: requests go through the page cache, FLUSH is fdatasync",
                path.display()
            );
        }
        let mut granule = align.offset.max(512);
        let mut tail = None;
        if !block_device && granule > 512 {
            // XFS names its own block for a file that shares blocks with
            // another, and takes single sectors all the same.
            if u64::from(probe_align(&image).map_err(failed)?.offset) == SECTOR {
                granule = 512;
            } else if !image
                .metadata()
                .map_err(failed)?
                .len()
                .is_multiple_of(u64::from(granule))
            {
                tail = image_file::open_buffered(&image, path, options.read_only);
                granule = if tail.is_some() { 512 } else { granule };
            }
        }
        let lock = options
            .lock
            .then(|| ImageLock::new(&image, path, block_device, options.read_only))
            .transpose()
            .map_err(failed)?;
        let image = Arc::new(image);
        let grain = u64::from(unit.max(4096));
        let raw = match &tail {
            Some(_) => no_disk_path_beside_tail(path, align.offset, options)?,
            None => raw_way(&image, block_device, direct, grain, options)?,
        };
        if let Ok(way) = &raw
            && let Some(device) = sys::direct_align(way.path.device().file())
        {
            align.memory = align.memory.max(device.memory);
        }
        let logical = options.logical_block_size.unwrap_or(medium);
        let manner = if block_device && direct {
            // One that waits too long to be waited for is left to the kernel's threads.
            let best = Manner::of(&image, align.offset, options.may_poll).map_err(failed)?;
            best.unwrap_or(Manner::Queued)
        } else {
            Manner::Queued
        };
        let disk = Self {
            path: path.to_owned(),
            block_device,
            options: options.clone(),
            logical,
            physical: physical.max(logical),
            unit,
            direct: direct.then_some(align),
            granule,
            sectors: AtomicU64::new(0),
            uring: AtomicBool::new(true),
            features: OnceLock::new(),
            manner,
            shared: Arc::new(
                match options.swap {
                    Some(_) => Shared::keeping_blocks(align, unit),
                    None => Shared::new(align, unit),
                }
                .with_buffered_tail(tail.is_some()),
            ),
            tail,
            image,
            raw,
            lock,
            pinner: pinner(options),
            tallies: Mutex::default(),
            held: Arc::default(),
            room: room::Seen::default(),
            ours: AtomicBool::new(false),
            opened: Instant::now(),
        };
        let bytes = disk.image_bytes().map_err(failed)?;
        if disk.whole(bytes) == 0 {
            return Err(DiskError::TooSmall(path.to_owned(), disk.block()));
        }
        disk.hold_on(Some(options.on_enospc), Some(options.on_io_error));
        disk.set_size(bytes);
        disk.take_for_swap()?;
        Ok(disk)
    }

    /// In swap-grade mode the image is ours, and its map in memory, from the
    /// start to the end of the process; or from when somebody else, as the
    /// source of a migration, gives the image up.
    fn take_for_swap(&self) -> Result<(), DiskError> {
        let Some(grade) = self.options.swap else {
            return Ok(());
        };
        let path = match &self.raw {
            Ok(way) => &way.path,
            Err(_) if self.block_device => return Ok(()),
            Err(reason) => return self.lacks_path(grade, reason),
        };
        path.want();
        if self.options.io_path == IoPath::Disk {
            return image_file::enter_soon(|| path.try_now())
                .map_err(|obstacle| DiskError::NoDiskPath(obstacle.into()));
        }
        match path.try_now() {
            Ok(()) => Ok(()),
            Err(obstacle @ (Obstacle::Lease(LeaseError::InUse) | Obstacle::Asked)) => {
                log::warn!(
                    "not swap-grade yet: {obstacle}: requests go by the file until it is given up"
                );
                Ok(())
            }
            Err(_) => self.lacks_path(grade, &path.situation().reason),
        }
    }

    fn lacks_path(&self, grade: Swap, reason: &str) -> Result<(), DiskError> {
        if grade == Swap::Demanded && !switches::left_out("prepare") {
            return Err(DiskError::NoSwapPath(reason.to_owned()));
        }
        log::warn!("not swap-grade: {reason}");
        Ok(())
    }

    /// What the capacity is a multiple of, so that no block is cut in two.
    fn block(&self) -> u32 {
        self.logical.max(self.granule)
    }

    /// What all workers have done so far.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for tally in self.tallies().iter() {
            tally.add_to(&mut sums);
        }
        sums
    }

    /// Requests that failed for what the host said.
    pub(crate) fn errors(&self) -> ByKind {
        self.shared.errors()
    }

    /// The way past the file system.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn disk_path(&self) -> Result<&DiskPath, &str> {
        match &self.raw {
            Ok(way) => Ok(&way.path),
            Err(reason) => Err(reason),
        }
    }

    /// Since the image was opened.
    pub(crate) fn uptime(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The capacity that the guest sees, in bytes.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.sectors.load(Ordering::Acquire) * SECTOR
    }

    /// The open image.
    pub(crate) fn image(&self) -> &Arc<File> {
        &self.image
    }

    /// Makes all that was written stable, by whichever way it went.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let synced = self.image.sync_all().and_then(|()| match &self.raw {
            Ok(way) => way.path.device().file().sync_data(),
            Err(_) => Ok(()),
        });
        // What is lost is told once, and the guest has to hear of it.
        synced.inspect_err(|_| self.shared.lose_writes())
    }

    /// Bytes of memory that a map of its extents may take.
    pub(crate) fn map_budget(&self) -> u64 {
        self.options.map_budget
    }

    /// The image is a block device.
    pub(crate) fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// A block device is open exclusively: the kernel refuses others who ask
    /// for that, and it was us who asked.
    ///
    /// # Errors
    /// It cannot be tried.
    pub(crate) fn is_exclusive(&self) -> io::Result<bool> {
        if !self.lock.as_ref().is_some_and(ImageLock::has_claim) {
            return Ok(false);
        }
        match device_claim::open_exclusively(&self.image) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What each worker counts, in their order.
    pub(crate) fn tallies(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Tally>>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(pinner) = &self.pinner {
            pinner.stop();
        }
    }
}

impl Device for Disk {
    type Channel = BlockIo<Any>;

    fn info(&self) -> DiskInfo {
        let logical = self.logical;
        let blocks = (self.physical / logical).max(1);
        let writable = !self.options.read_only;
        // What is swapped on never loses a block.
        let frees = self.options.swap.is_none();
        DiskInfo {
            read_only: self.options.read_only,
            logical_block_size: logical,
            topology: Topology {
                physical_block_exp: u8::try_from(blocks.ilog2()).unwrap_or(0),
                alignment_offset: 0,
                min_io_size: u16::try_from(blocks).unwrap_or(1),
                opt_io_size: 0,
            },
            discard: (writable && frees).then_some(DiscardLimits {
                max_sectors: MAX_CHANGE_SECTORS,
                alignment_sectors: (self.unit.max(logical)) / 512,
            }),
            write_zeroes: writable.then_some(WriteZeroesLimits {
                max_sectors: MAX_CHANGE_SECTORS,
                may_unmap: frees,
            }),
            serial: self.options.serial,
        }
    }

    fn capacity_sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    fn channel(&self, _worker: usize, slots: usize) -> io::Result<Self::Channel> {
        allocations::serve_rings();
        let files = Files {
            image: self.image.as_raw_fd(),
            device: self
                .raw
                .as_ref()
                .ok()
                .map(|way| way.path.device().file().as_raw_fd()),
            tail: self.tail.as_ref().map(AsRawFd::as_raw_fd),
            keeper: self.lock.as_ref().and_then(ImageLock::keeper),
            image_manner: self.manner,
            device_manner: self.raw.as_ref().map_or(Manner::Queued, |way| way.manner),
        };
        let engine = match Uring::new(files, slots) {
            Ok(ring) => {
                self.features.get_or_init(|| ring.features());
                Any::Uring(Box::new(ring))
            }
            Err(error) => {
                if self.uring.swap(false, Ordering::Relaxed) {
                    log::warn!(
                        "io_uring is refused ({error}): plain system calls are used, one request at a time"
                    );
                }
                Any::Sync(Sync::new(files, slots)?)
            }
        };
        let raw = match &self.raw {
            Ok(way) => Some((way.path.worker()?, way.limits)),
            Err(_) => None,
        };
        let pins = match &self.pinner {
            Some(pinner) => Some(pinner.worker()?),
            None => None,
        };
        let mut channel = BlockIo::new(engine, Arc::clone(&self.shared), raw, pins, slots)?;
        if self.options.swap.is_some() {
            // Not when rings start: there may be no memory by then.
            channel.room(slots);
        }
        self.tallies().push(channel.tally());
        Ok(channel)
    }

    fn worker_ready(&self) {
        sandbox::enter(Kind::Worker);
    }

    fn rings_started(&self) -> io::Result<()> {
        if let Some(lock) = &self.lock {
            lock.take(&self.image, &self.path)?;
        }
        self.fill_sector()?;
        self.ours.store(true, Ordering::SeqCst);
        if let Ok(path) = self.disk_path() {
            path.want();
        }
        Ok(())
    }

    fn rings_stopped(&self) {
        self.ours.store(false, Ordering::SeqCst);
        self.give_clone_up("others may write the image now, as its guest has gone or moves");
        if let Ok(path) = self.disk_path()
            && self.options.swap.is_none()
        {
            path.unwant();
        }
        if let Some(lock) = &self.lock {
            lock.give_back(&self.image);
        }
    }
}
