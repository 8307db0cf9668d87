//! System calls, each as a safe function.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::time::Duration;

use crate::error::{Error, Result};

/// A file in memory, of `size` bytes, that can neither grow nor shrink, as
/// QEMU makes them.
pub(crate) fn sealed_memory(size: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string, which the call only reads.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Memory that is shared with other processes; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping stays where it is until it is dropped, and its owner
// decides how its bytes are accessed.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing here changes with a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of a file, which should be that long: in whole pages of the file, which
    /// may be huge ones and cannot be unmapped in part.
    pub(crate) fn new(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        let page = file.metadata()?.blksize().max(1);
        let length = usize::try_from(page)
            .ok()
            .and_then(|page| length.checked_next_multiple_of(page))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses an address that is free, so nothing that
        // exists is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, length })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no pointer into it
        // outlives its owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A descriptor to be waited for.
pub(crate) fn poll_entry(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// Waits until `fd` is readable; false after `limit`.
pub(crate) fn readable(fd: RawFd, limit: Duration) -> io::Result<bool> {
    any_readable(&mut [poll_entry(fd)], limit)
}

/// Waits until one of the descriptors is readable; false after `limit`.
pub(crate) fn any_readable(polls: &mut [libc::pollfd], limit: Duration) -> io::Result<bool> {
    let count = libc::nfds_t::try_from(polls.len()).map_err(io::Error::other)?;
    let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    loop {
        // SAFETY: so many valid entries are given, for the time of the call.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), count, limit) };
        if ready >= 0 {
            return Ok(ready > 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits until a descriptor of any kind is readable.
///
/// # Errors
/// [`Error::Late`] after `limit`.
pub fn wait_readable(fd: &impl AsRawFd, limit: Duration) -> Result<()> {
    match readable(fd.as_raw_fd(), limit) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Late("something to read")),
        Err(error) => Err(Error::Host("wait for something to read", error)),
    }
}

fn process_id(pid: u32) -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(pid).map_err(io::Error::other)
}

/// A descriptor that is readable once the process has ended.
pub(crate) fn process_handle(pid: u32) -> io::Result<OwnedFd> {
    let pid = process_id(pid)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t of zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= 8 * size_of_val(&set) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the set holds that number, as was just checked.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid and only read; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// CPU time that all threads of a process have used so far, user and system,
/// in clock ticks (10 ms).
pub(crate) fn cpu_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks.filter_map(|field| field.parse::<u64>().ok()).sum())
}

/// Sends a signal to a process that was not waited for yet.
pub(crate) fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = process_id(pid)?;
    // SAFETY: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
