//! What kind of descriptor somebody has sent, as the kernel itself knows it:
//! whoever serves the file is not asked, and so cannot let anybody wait.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Types of the handles that btrfs and bcachefs give their files, and nobody
/// else: those are on block devices, though the device that stat(2) tells is
/// none.
const HANDLES: [i32; 3] = [0x4d, 0x4e, 0xb1];

/// What the kernel itself knows of a descriptor, without asking whoever serves
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An eventfd.
    Event,
    /// A file in memory.
    Memory,
    /// A pipe without a name.
    Pipe,
    /// A Unix socket.
    Socket,
    /// A regular file on a disk of this host.
    Disk,
    /// Another regular file.
    Elsewhere,
    /// Anything else: it may be closed, but nothing else is safe.
    Other,
}

/// What kind of descriptor it is. Waits for nobody.
pub(crate) fn kind(fd: &impl AsRawFd) -> Kind {
    let fd = fd.as_raw_fd();
    if super::is_memory(&fd) {
        return Kind::Memory;
    }
    if domain(fd) == Some(libc::AF_UNIX) {
        return Kind::Socket;
    }
    let known = known_of(&fd).ok();
    // Of what has no name the kernel tells what it is; names begin with a slash.
    match std::fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(name) if name.as_os_str() == "anon_inode:[eventfd]" => Kind::Event,
        Ok(name) if name.as_os_str().as_encoded_bytes().starts_with(b"pipe:[") => Kind::Pipe,
        // Without /proc there is no telling which of the files without a type
        // it is, and the front-end is believed.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && known.is_some_and(|known| known.has_no_type) =>
        {
            Kind::Event
        }
        _ if known.is_some_and(|known| known.is_regular && known.is_of_this_host) => Kind::Disk,
        _ if known.is_some_and(|known| known.is_regular) => Kind::Elsewhere,
        _ => Kind::Other,
    }
}

/// The family of a socket.
fn domain(fd: RawFd) -> Option<libc::c_int> {
    let mut domain: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of_val(&domain)).ok()?;
    // SAFETY: `domain` is writable for as many bytes as `len` says.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(domain)
}

/// What the kernel knows of a file, without asking whoever serves it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub is_regular: bool,
    /// Bytes.
    pub size: u64,
    /// As what the kernel makes up for itself, such as eventfds.
    pub has_no_type: bool,
    /// Its file system is on one block device, or on several of btrfs or
    /// bcachefs, which is not for every user to arrange.
    pub is_of_this_host: bool,
}

/// Looks at a file; never waits.
pub(crate) fn known_of(file: &impl AsRawFd) -> io::Result<Known> {
    // SAFETY: all zeros is a valid statx, a struct of integers.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the name is a C string, and `stat` is
    // writable for the call.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE | libc::STATX_SIZE,
            &raw mut stat,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
    Ok(Known {
        is_regular: kind == libc::S_IFREG,
        has_no_type: kind == 0,
        size: stat.stx_size,
        is_of_this_host: stat.stx_dev_major != 0
            || handle_type(file).is_some_and(|kind| HANDLES.contains(&kind)),
    })
}

/// The type of handle by which its file system would find a file again, if it
/// gives any. The kernel makes it up by itself.
fn handle_type(file: &impl AsRawFd) -> Option<i32> {
    /// `struct file_handle` with `MAX_HANDLE_SZ` bytes.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        handle: [0; 128],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: the descriptor is open, the name is a C string, and both structs
    // are writable for the call, the handle for as many bytes as it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    let Handle {
        bytes,
        kind,
        handle,
    } = handle;
    (result == 0 && bytes > 0 && handle.len() >= bytes as usize).then_some(kind)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::sys::sealed_memory;

    #[test]
    fn kinds_are_told_without_touching() {
        let (one, _other) = UnixStream::pair().unwrap();
        let (end, _pipe) = std::io::pipe().unwrap();
        let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let memory = sealed_memory(c"test", 4096).unwrap();
        assert_eq!(kind(&one), Kind::Socket);
        assert_eq!(kind(&internet), Kind::Other);
        assert_eq!(kind(&end), Kind::Pipe);
        assert_eq!(kind(&memory), Kind::Memory);
        assert_eq!(kind(&EventFd::new(0).unwrap()), Kind::Event);
        let named = |name: &str| kind(&File::open(name).unwrap());
        assert_eq!(named("/dev/zero"), Kind::Other);
        assert_eq!(named("/"), Kind::Other);
        assert_eq!(named("/proc/self/status"), Kind::Elsewhere);
    }
}
