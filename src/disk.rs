//! The disk: an image, how it was opened, what is offered of it, and which
//! ways lead to it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vhost_backend::device::SECTOR;
use vhost_backend::{Device, DiscardLimits, DiskInfo, Topology, WriteZeroesLimits};

use crate::allocations;
use crate::block_io::{BlockIo, Raw, Shared, Sums, Tally};
use crate::config::{IoPath, Swap};
use crate::disk_path::{DiskPath, Obstacle, Situation};
use crate::engine::{Any, Files, sync::Sync, uring::Uring};
use crate::guard::Guard;
use crate::hardening;
use crate::image_lock;
use crate::pin::{PinState, Pinner};
use crate::sys::{self, DirectAlign};

/// Longest DISCARD or WRITE_ZEROES segment: 1 GiB.
const MAX_CHANGE_SECTORS: u32 = 1 << 21;

/// What an operator can do wrong with an image; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image cannot be opened.
    #[error("--blk-file {path}: {source}")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Somebody else owns the block device.
    #[error(
        "--blk-file {0}: the device is in use (mounted, or part of another disk): release it first, or give --lock off"
    )]
    Busy(PathBuf),
    /// Not a file that holds a disk.
    #[error("--blk-file {0}: neither a regular file nor a block device")]
    NotAnImage(PathBuf),
    /// Not even one block long.
    #[error(
        "--blk-file {0}: shorter than one block of {1} bytes: make it longer, for example with truncate -s 1G"
    )]
    TooSmall(PathBuf, u32),
    /// The new size makes no sense.
    #[error("resize: {0} bytes is not a positive multiple of {1}: round it")]
    BadSize(u64, u32),
    /// Block devices have the size that they have.
    #[error("resize: {0} is a block device of {1} bytes: change the device itself first")]
    DeviceSize(PathBuf, u64),
    /// The disk path was demanded and is impossible.
    #[error("--io-path disk: {0}: remove that obstacle, or give --io-path auto")]
    NoDiskPath(Obstacle),
    /// A disk that is offered read-only is not changed.
    #[error("resize: the disk is read-only: start extentd without --read-only")]
    ReadOnly,
    /// What is swapped on is prepared first.
    #[error(
        "resize: the disk is swap-grade: stop extentd, run extentctl prepare --size, and start it again"
    )]
    SwapGrade,
    /// The disk path is part of what was asked for.
    #[error("--swap: {0}: remove that obstacle, or give --swap=best-effort")]
    NoSwapPath(String),
}

/// How to open and offer an image.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Open for reading only, and offer RO.
    pub read_only: bool,
    /// `blk_size` in bytes; `None`: the medium's for a block device, else 512.
    pub logical_block_size: Option<u32>,
    /// The answer to GET_ID.
    pub serial: [u8; 20],
    /// Keep other users of the image away.
    pub lock: bool,
    /// How requests may reach the image.
    pub io_path: IoPath,
    /// Bytes of extents that the map may hold.
    pub map_budget: u64,
    /// Use guest memory as registered buffers.
    pub pin_guest_memory: bool,
    /// Bytes of pinned extents that the map may hold besides.
    pub pin_reserve: u64,
    /// Swap-grade mode.
    pub swap: Option<Swap>,
}

/// What `extentctl info` shows of the disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskDescription {
    /// The image.
    pub image: PathBuf,
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
    /// What was done so far.
    pub operations: Sums,
    /// The block device under the image, if raw I/O to it is possible.
    pub device: Option<PathBuf>,
    /// Raw I/O is done by the workers themselves, as the device takes none
    /// without waiting.
    pub device_inline: bool,
    /// Guest memory as registered buffers, which excludes ballooning, free
    /// page reporting and virtio-mem.
    pub pinned_guest_memory: String,
    /// The image lock is used.
    pub lock: bool,
}

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
    sectors: AtomicU64,
    uring: AtomicBool,
    shared: Arc<Shared>,
    /// The way past the file system, or why there is none.
    raw: Result<Arc<DiskPath>, String>,
    guard: Option<Guard>,
    pinner: Option<Arc<Pinner>>,
    tallies: Mutex<Vec<Arc<Tally>>>,
    opened: Instant,
}

/// How often an image is asked for that a previous process has not let go of.
const STILL_BUSY: Duration = Duration::from_millis(50);
/// How long a device may stay in use: the kernel ends the io_uring of a process
/// some time after the process.
const SOON_FREE: Duration = Duration::from_secs(2);

impl Disk {
    /// Opens the image once; every worker uses this open file description.
    ///
    /// # Errors
    /// The image cannot serve as a disk.
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let meta = std::fs::metadata(path).map_err(failed)?;
        let block_device = meta.file_type().is_block_device();
        if !block_device && !meta.file_type().is_file() {
            return Err(DiskError::NotAnImage(path.to_owned()));
        }
        let exclusive = if block_device && options.lock {
            libc::O_EXCL
        } else {
            0
        };
        let (image, mut direct) =
            match open_file(path, options.read_only, exclusive | libc::O_DIRECT) {
                Ok(image) => (image, true),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (
                    open_file(path, options.read_only, exclusive).map_err(failed)?,
                    false,
                ),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(DiskError::Busy(path.to_owned()));
                }
                Err(error) => return Err(failed(error)),
            };
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
        let image = Arc::new(image);
        let grain = u64::from(unit.max(4096));
        let raw = disk_path(&image, block_device, direct, grain, options)?;
        if let Ok(path) = &raw
            && let Some(device) = sys::direct_align(path.device().file())
        {
            align.memory = align.memory.max(device.memory);
        }
        let guard = match &raw {
            Ok(path) => Some(Guard::spawn(Arc::clone(path)).map_err(failed)?),
            Err(_) => None,
        };
        let logical = options.logical_block_size.unwrap_or(medium);
        let disk = Self {
            path: path.to_owned(),
            block_device,
            options: options.clone(),
            logical,
            physical: physical.max(logical),
            unit,
            direct: direct.then_some(align),
            sectors: AtomicU64::new(0),
            uring: AtomicBool::new(true),
            shared: Arc::new(match options.swap {
                Some(_) => Shared::keeping_blocks(align, unit),
                None => Shared::new(align, unit),
            }),
            image,
            raw,
            guard,
            pinner: pinner(options),
            tallies: Mutex::default(),
            opened: Instant::now(),
        };
        let bytes = disk.image_bytes().map_err(failed)?;
        let block = disk.block();
        if bytes < u64::from(block) {
            return Err(DiskError::TooSmall(path.to_owned(), block));
        }
        disk.set_size(bytes);
        disk.take_for_swap()?;
        Ok(disk)
    }

    /// In swap-grade mode the image is ours, and its map in memory, from the
    /// start to the end of the process.
    fn take_for_swap(&self) -> Result<(), DiskError> {
        let Some(grade) = self.options.swap else {
            return Ok(());
        };
        if let Some(guard) = &self.guard {
            guard.want();
            // What is in the way is told below.
            let _ = guard.try_now();
        }
        let obstacle = match &self.raw {
            Ok(path) => Some(path.situation()).filter(|situation| !situation.on_disk),
            Err(_) if self.block_device => None,
            Err(reason) => return self.lacks_path(grade, reason),
        };
        obstacle.map_or(Ok(()), |situation| {
            self.lacks_path(grade, &situation.reason)
        })
    }

    fn lacks_path(&self, grade: Swap, reason: &str) -> Result<(), DiskError> {
        if grade == Swap::Demanded && !hardening::left_out("prepare") {
            return Err(DiskError::NoSwapPath(reason.to_owned()));
        }
        log::warn!("not swap-grade: {reason}");
        Ok(())
    }

    /// What the capacity is a multiple of, so that no block is cut in two.
    fn block(&self) -> u32 {
        self.logical
            .max(self.direct.map_or(512, |align| align.offset))
            .max(512)
    }

    fn image_bytes(&self) -> io::Result<u64> {
        if self.block_device {
            sys::device_size(&self.image)
        } else {
            Ok(self.image.metadata()?.size())
        }
    }

    fn set_size(&self, bytes: u64) {
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

    /// What all workers have done so far.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for tally in self.tallies().iter() {
            tally.add_to(&mut sums);
        }
        sums
    }

    /// Requests that failed for what the host said.
    pub fn errors(&self) -> u64 {
        self.shared.errors()
    }

    /// The way past the file system.
    ///
    /// # Errors
    /// Why there is none.
    pub fn disk_path(&self) -> Result<&Arc<DiskPath>, &str> {
        self.raw.as_ref().map_err(String::as_str)
    }

    /// What decides whether the disk path is used, if there is one.
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// Since the image was opened.
    pub fn uptime(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The capacity that the guest sees, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.sectors.load(Ordering::Acquire) * SECTOR
    }

    /// The open image.
    pub fn image(&self) -> &Arc<File> {
        &self.image
    }

    /// The image is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    fn tallies(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Tally>>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as an operator sees it.
    pub fn describe(&self) -> DiskDescription {
        let sectors = self.sectors.load(Ordering::Acquire);
        let situation = match &self.raw {
            Ok(path) => path.situation(),
            Err(reason) => Situation {
                on_disk: self.block_device,
                reason: reason.clone(),
                entries: 0,
            },
        };
        let path = self.raw.as_ref().ok();
        DiskDescription {
            image: self.path.clone(),
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
            path: if situation.on_disk { "disk" } else { "file" },
            path_reason: situation.reason,
            path_entries: situation.entries,
            operations: self.sums(),
            device: path.and_then(|path| path.device().path().map(Path::to_owned)),
            device_inline: path.is_some_and(|path| path.is_inline()),
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
                    crate::size::display(bytes)
                ),
                PinState::Working => "under way".to_owned(),
                PinState::Refused(reason) => format!("no: {reason}"),
            },
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(pinner) = &self.pinner {
            pinner.stop();
        }
    }
}

fn pinner(options: &DiskOptions) -> Option<Arc<Pinner>> {
    if !options.pin_guest_memory {
        return None;
    }
    Pinner::spawn()
        .map_err(|error| log::error!("--pin-guest-memory: {error}: plain buffers are used"))
        .ok()
}

/// Opens the image, once nobody has a lease on it: a previous process that was
/// killed has one until its last raw I/O has ended. A device that somebody has
/// for himself is given a little time, as it may be a previous process.
pub(crate) fn open_file(path: &Path, read_only: bool, flags: i32) -> io::Result<File> {
    let mut told = false;
    let start = Instant::now();
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags | libc::O_NONBLOCK)
            .open(path);
        match opened {
            Ok(image) => {
                sys::set_blocking(&image)?;
                return Ok(image);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !std::mem::replace(&mut told, true) {
                    log::info!("waiting for another process's I/O on {}", path.display());
                }
                std::thread::sleep(STILL_BUSY);
            }
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < SOON_FREE =>
            {
                std::thread::sleep(STILL_BUSY);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The way past the file system, if it is wanted and possible, or a sentence
/// that says why not.
fn disk_path(
    image: &Arc<File>,
    block_device: bool,
    direct: bool,
    grain: u64,
    options: &DiskOptions,
) -> Result<Result<Arc<DiskPath>, String>, DiskError> {
    if block_device {
        return Ok(Err("the image is a block device itself".to_owned()));
    }
    if options.io_path == IoPath::File {
        return Ok(Err("--io-path file was given".to_owned()));
    }
    let demanded = options.io_path == IoPath::Disk;
    if !direct && !demanded {
        return Ok(Err("the image allows no direct I/O".to_owned()));
    }
    let path = DiskPath::new(
        image,
        options.read_only,
        grain,
        options.map_budget,
        options.pin_reserve,
        options.swap,
    );
    match path {
        Ok(path) => {
            if demanded && options.swap.is_none() {
                path.enter().map_err(DiskError::NoDiskPath)?;
                path.leave("no guest uses the disk");
            }
            Ok(Ok(Arc::new(path)))
        }
        Err(obstacle) if demanded => Err(DiskError::NoDiskPath(obstacle)),
        Err(obstacle) => {
            log::info!("requests go by the file: {obstacle}");
            Ok(Err(obstacle.to_string()))
        }
    }
}

/// Finds the smallest alignment that direct reads take, where the kernel does
/// not tell.
fn probe_align(image: &File) -> io::Result<DirectAlign> {
    let mut pool = crate::bounce::Pool::new(1, 4096);
    let Some(buffer) = pool.take() else {
        return Err(io::ErrorKind::OutOfMemory.into());
    };
    for size in [512u32, 1024, 2048, 4096] {
        let mut entry = pool.entry(buffer);
        entry.iov_len = size as usize;
        // A read elsewhere than at 0 shows whether offsets of `size` are taken.
        match pool.read_at(image.as_raw_fd(), entry, i64::from(size)) {
            Ok(_) => {
                return Ok(DirectAlign::all(size));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(DirectAlign::all(1))
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
                .map(|path| path.device().file().as_raw_fd()),
            device_inline: self.raw.as_ref().is_ok_and(|path| path.is_inline()),
        };
        let engine = match Uring::new(files, slots) {
            Ok(ring) => Any::Uring(Box::new(ring)),
            Err(error) => {
                if self.uring.swap(false, Ordering::Relaxed) {
                    log::warn!(
                        "io_uring is refused ({error}): plain system calls are used, one request at a time"
                    );
                }
                Any::Sync(Sync::new(files, slots))
            }
        };
        let raw = match &self.raw {
            Ok(path) => Some(Raw::new(Arc::clone(path))?),
            Err(_) => None,
        };
        let pins = match &self.pinner {
            Some(pinner) => Some(pinner.worker()?),
            None => None,
        };
        let channel = BlockIo::new(engine, Arc::clone(&self.shared), raw, pins, slots);
        self.tallies().push(channel.tally());
        Ok(channel)
    }

    fn rings_started(&self) -> io::Result<()> {
        if self.options.lock && !self.block_device {
            image_lock::take(&self.image, self.options.read_only).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::WouldBlock => io::Error::new(
                        error.kind(),
                        format!(
                            "{} is in use by another process: stop that one, or give --lock off",
                            self.path.display()
                        ),
                    ),
                    _ => error,
                }
            })?;
        }
        if let Some(guard) = &self.guard {
            guard.want();
        }
        Ok(())
    }

    fn rings_stopped(&self) {
        if let Some(guard) = &self.guard
            && self.options.swap.is_none()
        {
            guard.unwant();
        }
        if self.options.lock && !self.block_device {
            image_lock::give_back(&self.image, self.options.read_only);
        }
    }
}
