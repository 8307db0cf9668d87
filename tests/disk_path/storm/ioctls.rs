//! System calls that others make on an image, and that the standard library
//! does not have.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

const FICLONERANGE: libc::c_ulong = 0x4020_940d;
const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;
const EXT4_IOC_MOVE_EXT: libc::c_ulong = 0xc028_660f;
const XFS_IOC_EXCHANGE_RANGE: libc::c_ulong = 0x4028_5881;
/// `file_setattr(2)`, Linux 6.17.
const SYS_FILE_SETATTR: libc::c_long = 469;

/// `struct file_clone_range`
#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    length: u64,
    to_offset: u64,
}

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`
#[repr(C)]
struct DedupeRange {
    from_offset: u64,
    length: u64,
    count: u16,
    reserved: [u16; 3],
    to: i64,
    to_offset: u64,
    deduped: u64,
    status: i32,
    reserved_too: u32,
}

/// `struct move_extent`
#[repr(C)]
struct MoveExtent {
    reserved: u32,
    donor: u32,
    start: u64,
    donor_start: u64,
    length: u64,
    moved: u64,
}

/// `struct xfs_exchange_range`
#[repr(C)]
struct ExchangeRange {
    other: i32,
    pad: u32,
    other_offset: u64,
    offset: u64,
    length: u64,
    flags: u64,
}

/// `struct file_attr`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Attributes {
    pub flags: u64,
    pub extent_size: u32,
    pub extents: u32,
    pub project: u32,
    pub cow_extent_size: u32,
}

fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `argument` is what the kernel reads and writes for `request`.
fn ioctl<T>(fd: RawFd, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller here gives the structure of its request, and the
    // reference makes it valid for reads and writes.
    check(unsafe { libc::ioctl(fd, request as _, std::ptr::from_mut(argument)) })
}

/// Blocks of `from` become those of `to` as well.
pub fn clone_range(from: &File, range: &Range<u64>, to: &File, offset: u64) -> io::Result<()> {
    let mut argument = CloneRange {
        from: from.as_raw_fd().into(),
        from_offset: range.start,
        length: range.end - range.start,
        to_offset: offset,
    };
    ioctl(to.as_raw_fd(), FICLONERANGE, &mut argument)
}

/// As [`clone_range`], where both hold the same; whether they do.
pub fn dedupe_range(from: &File, range: &Range<u64>, to: &File, offset: u64) -> io::Result<bool> {
    let mut argument = DedupeRange {
        from_offset: range.start,
        length: range.end - range.start,
        count: 1,
        reserved: [0; 3],
        to: to.as_raw_fd().into(),
        to_offset: offset,
        deduped: 0,
        status: 0,
        reserved_too: 0,
    };
    ioctl(from.as_raw_fd(), FIDEDUPERANGE, &mut argument)?;
    match argument.status {
        0 => Ok(true),
        1 => Ok(false),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Blocks of a file go to the blocks of another at the same place, with what
/// they hold; all are counted in blocks of the file system. How many did.
pub fn move_extent(file: &File, blocks: &Range<u64>, donor: &File) -> io::Result<u64> {
    let mut argument = MoveExtent {
        reserved: 0,
        donor: donor.as_raw_fd().try_into().unwrap(),
        start: blocks.start,
        donor_start: blocks.start,
        length: blocks.end - blocks.start,
        moved: 0,
    };
    ioctl(file.as_raw_fd(), EXT4_IOC_MOVE_EXT, &mut argument)?;
    Ok(argument.moved)
}

/// Two files exchange their blocks of a range.
pub fn exchange_range(file: &File, other: &File, range: &Range<u64>) -> io::Result<()> {
    let mut argument = ExchangeRange {
        other: other.as_raw_fd(),
        pad: 0,
        other_offset: range.start,
        offset: range.start,
        length: range.end - range.start,
        flags: 0,
    };
    ioctl(file.as_raw_fd(), XFS_IOC_EXCHANGE_RANGE, &mut argument)
}

/// Sets attributes by name, without opening the file.
pub fn set_attributes(path: &Path, attributes: Attributes) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with NUL, and the structure is as long as is said.
    check(unsafe {
        libc::syscall(
            SYS_FILE_SETATTR,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const attributes,
            size_of::<Attributes>(),
            0,
        )
    })
}

/// posix_fadvise(2) for a whole file.
pub fn advise(file: &File, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A file that is mapped for reading, and not open any more.
pub struct Mapped {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: nobody but the owner unmaps it, and it is only read.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Its first bytes, so many: others may cut off what comes after.
    pub fn new(path: &Path, length: usize) -> io::Result<Mapped> {
        let file = File::open(path)?;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast()) {
            Some(start) if start.as_ptr() as isize != -1 => Ok(Mapped { start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has pages of it loaded, one in `step` bytes.
    pub fn touch(&self, step: usize) {
        for at in (0..self.length).step_by(step) {
            // SAFETY: it lies in the mapping. Others may write it, so the
            // read is volatile and its result of no interest.
            unsafe { self.start.as_ptr().add(at).read_volatile() };
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
