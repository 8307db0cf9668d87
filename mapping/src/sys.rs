//! The few system calls of this crate that the standard library does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `-1` becomes the error, everything else the value.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new non-blocking, close-on-exec eventfd.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the descriptor is new and ours.
    unsafe { check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)).map(|fd| OwnedFd::from_raw_fd(fd)) }
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
    #[cfg(test)]
    pub(crate) fn new(logical: u64, physical: u64, length: u64, flags: u32) -> FiemapRecord {
        FiemapRecord { logical, physical, length, flags, ..FiemapRecord::default() }
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
pub(crate) fn fiemap(file: &File, start: u64, length: u64, sync: bool, records: &mut Vec<FiemapRecord>) -> io::Result<()> {
    records.clear();
    let flags = if sync { FIEMAP_FLAG_SYNC } else { 0 };
    let count = u32::try_from(FIEMAP_BATCH).unwrap_or(0);
    let mut buffer = Box::new(MaybeUninit::<FiemapBuffer>::uninit());
    // SAFETY: the buffer is written through its own pointer; the kernel fills at most `count` records
    // behind the head, which is what the buffer has room for, and says in `mapped` how many it did.
    unsafe {
        let pointer = buffer.as_mut_ptr();
        (&raw mut (*pointer).head).write(FiemapHead { start, length, flags, mapped: 0, count, reserved: 0 });
        check(libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, pointer))?;
        let mapped = usize::try_from((*pointer).head.mapped).unwrap_or(0).min(FIEMAP_BATCH);
        let first = (&raw const (*pointer).records).cast::<FiemapRecord>();
        records.extend_from_slice(std::slice::from_raw_parts(first, mapped));
    }
    Ok(())
}

/// How many records there are, without reading them.
pub(crate) fn fiemap_count(file: &File, start: u64, length: u64) -> io::Result<u64> {
    let mut head = FiemapHead { start, length, flags: FIEMAP_FLAG_SYNC, mapped: 0, count: 0, reserved: 0 };
    // SAFETY: with a count of 0 the kernel writes to the head alone.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut head) })?;
    Ok(u64::from(head.mapped))
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
    let span = CachestatRange { off: range.start, len: range.end.saturating_sub(range.start) };
    let mut stat = Cachestat::default();
    // SAFETY: both structures are live locals of the layout the kernel expects.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const span, &raw mut stat, 0)
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
