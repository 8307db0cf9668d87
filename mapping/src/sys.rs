//! The few system calls of this crate that the standard library does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `-1` becomes the error, everything else the value.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A new non-blocking, close-on-exec eventfd.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the descriptor is new and ours.
    unsafe {
        check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))
            .map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// Adds 1 to an eventfd. A full counter is readable already, so failure to add does not matter.
pub(crate) fn eventfd_signal(fd: RawFd) {
    let one = 1u64;
    // SAFETY: writes 8 bytes from a live local.
    let _ = unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

/// Resets an eventfd; whether it was signalled.
pub(crate) fn eventfd_take(fd: RawFd) -> bool {
    let mut count = 0u64;
    // SAFETY: reads at most 8 bytes into a live local.
    unsafe { libc::read(fd, (&raw mut count).cast(), 8) == 8 }
}

/// Nanoseconds since the machine has started, those that it was suspended for included.
#[cfg(not(loom))]
pub(crate) fn boot_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: one timespec is writable; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FiemapRecord {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) length: u64,
    reserved64: [u64; 2],
    pub(crate) flags: u32,
    reserved: [u32; 3],
}

impl FiemapRecord {
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn new(logical: u64, physical: u64, length: u64, flags: u32) -> FiemapRecord {
        FiemapRecord {
            logical,
            physical,
            length,
            flags,
            ..FiemapRecord::default()
        }
    }
}

/// `struct fiemap` without its flexible tail.
#[repr(C)]
struct FiemapHead {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

const FIEMAP_BATCH: usize = 512;

#[repr(C)]
struct FiemapBuffer {
    head: FiemapHead,
    records: [FiemapRecord; FIEMAP_BATCH],
}

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
const FIEMAP_FLAG_SYNC: u32 = 1;

/// The records from `start` on that fit in one call, at most 512, into `records`.
pub(crate) fn fiemap(
    file: &File,
    start: u64,
    length: u64,
    sync: bool,
    records: &mut Vec<FiemapRecord>,
) -> io::Result<()> {
    records.clear();
    let flags = if sync { FIEMAP_FLAG_SYNC } else { 0 };
    let count = u32::try_from(FIEMAP_BATCH).unwrap_or(0);
    let mut buffer = Box::new(MaybeUninit::<FiemapBuffer>::uninit());
    // SAFETY: the buffer is written through its own pointer; the kernel fills at most `count` records
    // behind the head, which is what the buffer has room for, and says in `mapped` how many it did.
    unsafe {
        let pointer = buffer.as_mut_ptr();
        (&raw mut (*pointer).head).write(FiemapHead {
            start,
            length,
            flags,
            mapped: 0,
            count,
            reserved: 0,
        });
        check(libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, pointer))?;
        let mapped = usize::try_from((*pointer).head.mapped)
            .unwrap_or(0)
            .min(FIEMAP_BATCH);
        let first = (&raw const (*pointer).records).cast::<FiemapRecord>();
        records.extend_from_slice(std::slice::from_raw_parts(first, mapped));
    }
    Ok(())
}

/// How many records there are, without reading them.
pub(crate) fn fiemap_count(file: &File, start: u64, length: u64) -> io::Result<u64> {
    let mut head = FiemapHead {
        start,
        length,
        flags: FIEMAP_FLAG_SYNC,
        mapped: 0,
        count: 0,
        reserved: 0,
    };
    // SAFETY: with a count of 0 the kernel writes to the head alone.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut head) })?;
    Ok(u64::from(head.mapped))
}

/// Writes the file's dirty pages out and waits for them. What fails is told by this, and by the next sync of each
/// open file as well, as if this had not been.
pub(crate) fn write_out(file: &File) -> io::Result<()> {
    fiemap_count(file, 0, 1).map(drop)
}

/// `struct cachestat_range` and `struct cachestat`.
#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// cachestat(2), Linux 6.5; the number is the same on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Pages of `range` in the page cache of the file, clean, dirty or being written.
///
/// `ENOSYS` before Linux 6.5.
pub(crate) fn cached_pages(file: &File, range: &Range<u64>) -> io::Result<u64> {
    let span = CachestatRange {
        off: range.start,
        len: range.end.saturating_sub(range.start),
    };
    let mut stat = Cachestat::default();
    // SAFETY: both structures are live locals of the layout the kernel expects.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const span,
            &raw mut stat,
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.cache + stat.dirty + stat.writeback)
}

/// Drops the clean pages of `range` from the page cache.
pub(crate) fn drop_cache(file: &File, range: &Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(range.start).map_err(io::Error::other)?;
    let len = i64::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    // SAFETY: no memory is involved.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The attributes of a file that decide about its disk path, from statx(2).
pub(crate) struct Attributes {
    /// `STATX_ATTR_*`.
    pub(crate) bits: u64,
    /// The identifier of the mount in mountinfo, if the kernel tells it.
    pub(crate) mount: Option<u64>,
}

pub(crate) fn attributes(file: &File) -> io::Result<Attributes> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; the kernel fills the structure, of
    // which all zero bytes are valid too.
    let stat = unsafe {
        check(libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            stat.as_mut_ptr(),
        ))?;
        stat.assume_init()
    };
    let mount = (stat.stx_mask & libc::STATX_MNT_ID != 0).then_some(stat.stx_mnt_id);
    Ok(Attributes {
        bits: stat.stx_attributes,
        mount,
    })
}

/// What [`filesystem`] tells of ext2, ext3 and ext4.
pub(crate) const EXT4_MAGIC: i64 = 0xEF53;
/// What it tells of XFS.
pub(crate) const XFS_MAGIC: i64 = 0x5846_5342;
/// What it tells of btrfs.
pub(crate) const BTRFS_MAGIC: i64 = 0x9123_683E;

/// The magic number of the file system.
pub(crate) fn filesystem(file: &File) -> io::Result<i64> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel fills the structure, of which all zero bytes are valid too.
    let stat = unsafe {
        check(libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()))?;
        stat.assume_init()
    };
    #[allow(clippy::unnecessary_cast)]
    Ok(stat.f_type as i64)
}

/// `FS_IOC_GETFLAGS`, the flags of chattr(1).
pub(crate) fn inode_flags(file: &File) -> io::Result<u32> {
    const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
    let mut flags = [0u32; 2];
    // SAFETY: the kernel writes 4 bytes (its header says a long) into 8.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS as _, flags.as_mut_ptr()) })?;
    Ok(flags[0])
}

/// `FS_IOC_FSGETXATTR`, the flags of xfs_io's lsattr.
pub(crate) fn extended_flags(file: &File) -> io::Result<u32> {
    const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801C_581F;
    let mut attributes = [0u32; 7];
    // SAFETY: the kernel writes the 28 bytes of `struct fsxattr`, whose first field the flags are.
    check(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            FS_IOC_FSGETXATTR as _,
            attributes.as_mut_ptr(),
        )
    })?;
    Ok(attributes[0])
}

/// `FS_XFLAG_REALTIME`
pub(crate) const XFLAG_REALTIME: u32 = 0x1;

/// The file's data are, or will be, on another device than its file system's.
pub(crate) fn is_realtime(file: &File) -> io::Result<bool> {
    Ok(extended_flags(file)? & XFLAG_REALTIME != 0)
}

/// The identifier of a btrfs (`BTRFS_IOC_FS_INFO`), whatever the subvolume.
pub(crate) fn btrfs_id(file: &File) -> io::Result<[u8; 16]> {
    const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941F;
    const ID: usize = 16;
    let mut information = [0u8; 1024];
    // SAFETY: the kernel writes the 1024 bytes of `struct btrfs_ioctl_fs_info_args`.
    check(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            BTRFS_IOC_FS_INFO as _,
            information.as_mut_ptr(),
        )
    })?;
    let mut id = [0; 16];
    id.copy_from_slice(&information[ID..ID + 16]);
    Ok(id)
}

/// `FALLOC_FL_UNSHARE_RANGE`.
pub(crate) fn unshare(file: &File, range: &Range<u64>) -> io::Result<()> {
    let start = i64::try_from(range.start).map_err(io::Error::other)?;
    let len = i64::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_UNSHARE_RANGE, start, len) })
        .map(drop)
}

/// Whether an XFS file system lets files share blocks (`XFS_IOC_FSGEOMETRY`, Linux 5.0).
pub(crate) fn has_reflink(file: &File) -> io::Result<bool> {
    const XFS_IOC_FSGEOMETRY: libc::c_ulong = 0x8100_587E;
    const FLAGS: usize = 23;
    const REFLINK: u32 = 1 << 20;
    let mut geometry = [0u32; 64];
    // SAFETY: the kernel writes the 256 bytes of `struct xfs_fsop_geom`.
    check(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            XFS_IOC_FSGEOMETRY as _,
            geometry.as_mut_ptr(),
        )
    })?;
    Ok(geometry[FLAGS] & REFLINK != 0)
}

/// The flags the file was opened with.
pub(crate) fn open_flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })
}

/// Sizes of a block device, in bytes.
#[derive(Debug)]
pub(crate) struct BlockSizes {
    pub(crate) device: u64,
    pub(crate) logical: u32,
    pub(crate) page_cache: u32,
}

pub(crate) fn block_sizes(device: &File) -> io::Result<BlockSizes> {
    const BLKSSZGET: libc::c_ulong = 0x1268;
    const BLKBSZGET: libc::c_ulong = 0x8008_1270;
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let int = |request: libc::c_ulong| -> io::Result<u32> {
        let mut value = [0u32; 2];
        // SAFETY: the kernel writes 4 bytes (BLKBSZGET's header says 8) into 8.
        check(unsafe { libc::ioctl(device.as_raw_fd(), request as _, value.as_mut_ptr()) })?;
        Ok(value[0])
    };
    let mut bytes = 0u64;
    // SAFETY: the kernel writes 8 bytes into a live local.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) })?;
    Ok(BlockSizes {
        device: bytes,
        logical: int(BLKSSZGET)?,
        page_cache: int(BLKBSZGET)?,
    })
}

/// Takes (`F_RDLCK`, `F_WRLCK`) or gives back (`F_UNLCK`) a lease.
pub(crate) fn set_lease(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// The lease held, or the one that a pending break allows.
pub(crate) fn get_lease(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) })
}

/// Directs the signal of a lease break to one thread.
pub(crate) fn direct_signal(
    file: &File,
    signal: libc::c_int,
    thread: libc::pid_t,
) -> io::Result<()> {
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let owner = [F_OWNER_TID, thread];
    // SAFETY: the first call involves no memory; the second reads `struct f_owner_ex`, two ints, from a
    // live local.
    unsafe {
        check(libc::fcntl(file.as_raw_fd(), F_SETSIG, signal))?;
        check(libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, owner.as_ptr())).map(drop)
    }
}

/// Blocks `signals` for the calling thread and makes a descriptor that reads them; and the thread's id.
pub(crate) fn own_signals(signals: &[libc::c_int]) -> io::Result<(OwnedFd, libc::pid_t)> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before anything else reads it, and outlives the calls.
    unsafe {
        check(libc::sigemptyset(set.as_mut_ptr()))?;
        for signal in signals {
            check(libc::sigaddset(set.as_mut_ptr(), *signal))?;
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let fd = check(libc::signalfd(
            -1,
            set.as_ptr(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok((OwnedFd::from_raw_fd(fd), libc::gettid()))
    }
}

/// Reads all pending signals off; how many there were.
pub(crate) fn drain_signals(signals: &OwnedFd) -> usize {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    let mut count = 0;
    // SAFETY: the kernel writes at most one record into a buffer of its size, which nobody reads.
    while unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) } > 0 {
        count += 1;
    }
    count
}

/// Waits until one of two descriptors is readable; which are.
pub(crate) fn wait_readable(a: &OwnedFd, b: &OwnedFd) -> io::Result<(bool, bool)> {
    let poll = |fd: &OwnedFd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [poll(a), poll(b)];
    // SAFETY: two live records.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok((false, false)),
        Err(error) => Err(error),
        Ok(_) => Ok((fds[0].revents != 0, fds[1].revents != 0)),
    }
}

/// The major number of a device number.
pub(crate) fn major(number: u64) -> u32 {
    libc::major(number)
}

/// The minor number of a device number.
pub(crate) fn minor(number: u64) -> u32 {
    libc::minor(number)
}
