//! System calls for which there is no safe function elsewhere: most reach a
//! file by its path or its handle.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use io_uring::{IoUring, opcode, types};
use rustix::mount::{MountPropagationFlags, mount_change};

fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn result(value: impl Into<i64>) -> io::Result<RawFd> {
    match value.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(RawFd::try_from(value).unwrap()),
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: a fresh descriptor is owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// truncate(2).
pub fn truncate(path: &Path, bytes: u64) -> io::Result<()> {
    let bytes = i64::try_from(bytes).unwrap();
    // SAFETY: the path is a C string, which the call only reads.
    result(unsafe { libc::truncate(name(path).as_ptr(), bytes) }).map(drop)
}

/// Gives the calling thread mounts of its own, which nobody else sees.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: the call takes an integer; the thread shares neither memory nor
    // descriptors less than before.
    result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", private)?)
}

/// swapon(2) of what is not a swap area.
pub fn refused_swapon(path: &Path) -> io::Error {
    // SAFETY: the path is a C string, which the call only reads.
    result(unsafe { libc::swapon(name(path).as_ptr(), 0) }).unwrap_err()
}

/// `struct file_handle`, with all the room that there can be.
#[repr(C)]
pub struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; libc::MAX_HANDLE_SZ as usize],
}

/// name_to_handle_at(2).
pub fn handle_of(path: &Path) -> Handle {
    let room = [0; libc::MAX_HANDLE_SZ as usize];
    let mut handle = Handle {
        bytes: u32::try_from(room.len()).unwrap(),
        kind: 0,
        handle: room,
    };
    let mut mount: libc::c_int = 0;
    let to = std::ptr::from_mut(&mut handle);
    let path = name(path);
    // SAFETY: the path is a C string; the kernel writes a handle of as many
    // bytes at most as the structure says that it has, and one number.
    let value = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            to,
            &raw mut mount,
            0,
        )
    };
    result(value).unwrap();
    handle
}

/// open_by_handle_at(2), in the file system in which `folder` lies.
pub fn open_by_handle(folder: &File, handle: &Handle, flags: libc::c_int) -> io::Result<OwnedFd> {
    let from = std::ptr::from_ref(handle);
    let (call, folder) = (libc::SYS_open_by_handle_at, folder.as_raw_fd());
    // SAFETY: the kernel reads a handle that it has written itself.
    let value = unsafe { libc::syscall(call, folder, from, flags | libc::O_CLOEXEC) };
    result(value).map(owned)
}

/// Opens for reading by io_uring; `None`, with the reason printed, where the
/// host has none.
pub fn open_by_ring(path: &Path) -> Option<OwnedFd> {
    let mut ring = match IoUring::new(2) {
        Ok(ring) => ring,
        Err(error) => {
            eprintln!("SKIP: no io_uring: {error}");
            return None;
        }
    };
    let path = name(path);
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(libc::O_RDONLY | libc::O_CLOEXEC)
        .build();
    // SAFETY: the path lives until the operation has ended, below.
    unsafe { ring.submission().push(&open) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    let fd = ring.completion().next().unwrap().result();
    assert!(fd >= 0, "{}", io::Error::from_raw_os_error(-fd));
    Some(owned(fd))
}

/// Marks a file for all that fanotify(7) tells of it.
pub fn mark(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let reading = u32::try_from(libc::O_RDONLY).unwrap();
    // SAFETY: the call takes two integers and touches no memory of ours.
    let marks = owned(result(unsafe { libc::fanotify_init(flags, reading) })?);
    let events = libc::FAN_OPEN | libc::FAN_ACCESS | libc::FAN_MODIFY | libc::FAN_CLOSE;
    let path = name(path);
    // SAFETY: the path is a C string, which the call only reads.
    let value = unsafe {
        libc::fanotify_mark(
            marks.as_raw_fd(),
            libc::FAN_MARK_ADD,
            events,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    result(value)?;
    Ok(marks)
}
