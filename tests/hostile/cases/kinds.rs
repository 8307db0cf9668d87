//! Every kind of descriptor that one process can send to another.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use front_end::Connection;

use crate::suite::site::Site;

/// A descriptor, and others that make it what it is.
pub struct Made {
    pub fd: OwnedFd,
    _kept: Vec<OwnedFd>,
}

pub type Make = fn(&Site, &Connection) -> io::Result<Made>;

/// The attacker's end of its own connection.
pub const OWN: &str = "the connection itself";

/// What each is, and how it is made.
pub const KINDS: [(&str, Make); 38] = [
    ("a regular file", |site, _| one(scratch(site, 1 << 20)?)),
    ("an empty file", |site, _| one(scratch(site, 0)?)),
    ("a file open for reading", |_, _| {
        one(File::open("/proc/self/exe")?)
    }),
    ("a folder", |_, _| one(File::open("/")?)),
    ("a file open as a path", |_, _| path("/etc/passwd")),
    ("a folder open as a path", |_, _| path("/")),
    ("/dev/null", |_, _| device("/dev/null")),
    ("/dev/zero", |_, _| device("/dev/zero")),
    ("/dev/full", |_, _| device("/dev/full")),
    ("/dev/urandom", |_, _| one(File::open("/dev/urandom")?)),
    ("a terminal", |_, _| device("/dev/ptmx")),
    ("a file of /proc", |_, _| {
        one(File::open("/proc/self/status")?)
    }),
    ("another's memory", |_, _| device("/proc/self/mem")),
    ("the end of a pipe that is read", |_, _| pipe(false, false)),
    ("the end of a pipe that is written", |_, _| {
        pipe(true, false)
    }),
    ("a pipe that is full", |_, _| pipe(true, true)),
    ("a pipe that nobody reads", |_, _| one(io::pipe()?.1)),
    ("a socket", |_, _| pair(UnixStream::pair()?)),
    ("a socket that is full", |_, _| full_socket()),
    ("a socket whose other end is closed", |_, _| {
        one(UnixStream::pair()?.0)
    }),
    ("a socket for datagrams", |_, _| pair(UnixDatagram::pair()?)),
    ("a socket that listens", |site, _| listener(site)),
    ("a TCP socket that listens", |_, _| {
        one(TcpListener::bind("127.0.0.1:0")?)
    }),
    ("a UDP socket", |_, _| one(UdpSocket::bind("127.0.0.1:0")?)),
    (OWN, |_, connection| one(connection.stream().try_clone()?)),
    ("a second connection to the same process", |site, _| {
        one(UnixStream::connect(&site.socket)?)
    }),
    ("an eventfd", |_, _| event(0, libc::EFD_NONBLOCK)),
    ("an eventfd that blocks and is full", |_, _| {
        event(u64::MAX - 1, 0)
    }),
    ("an eventfd that is full", |_, _| {
        event(u64::MAX - 1, libc::EFD_NONBLOCK)
    }),
    ("an eventfd that is a semaphore", |_, _| {
        event(1 << 40, libc::EFD_SEMAPHORE)
    }),
    ("an epoll instance", |_, _| epoll()),
    ("a signalfd", |_, _| signals()),
    ("a timer that ticks all the time", |_, _| timer()),
    ("an inotify instance", |_, _| {
        // SAFETY: an integer only.
        raw(unsafe { libc::inotify_init1(0) })
    }),
    ("a userfaultfd", |_, _| {
        // SAFETY: an integer only.
        call(unsafe { libc::syscall(libc::SYS_userfaultfd, 1) })
    }),
    ("a process", |_, _| {
        // SAFETY: integers only.
        call(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })
    }),
    ("an io_uring", |_, _| {
        let ring = io_uring::IoUring::new(8)?;
        // SAFETY: the ring keeps its own; this is a duplicate.
        raw(unsafe { libc::dup(ring.as_raw_fd()) })
    }),
    ("a memfd", |_, _| memfd(0, 1 << 20, 0)),
];

/// Kinds of memory, beside those above.
pub const MEMORIES: [(&str, Make); 6] = [
    ("an empty memfd", |_, _| memfd(0, 0, 0)),
    ("a memfd that cannot be written", |_, _| {
        memfd(0, 16 << 20, libc::F_SEAL_WRITE)
    }),
    (
        "a memfd that may not be mapped for writing again",
        |_, _| memfd(0, 16 << 20, libc::F_SEAL_FUTURE_WRITE),
    ),
    ("huge pages that there are not", |_, _| {
        memfd(libc::MFD_HUGETLB, 16 << 20, 0)
    }),
    ("huge pages that there are not, sealed", |_, _| {
        memfd(libc::MFD_HUGETLB, 16 << 20, libc::F_SEAL_SHRINK)
    }),
    ("memory of a gibibyte that is not there", |_, _| {
        memfd(0, 1 << 40, 0)
    }),
];

fn one(fd: impl Into<OwnedFd>) -> io::Result<Made> {
    Ok(Made {
        fd: fd.into(),
        _kept: Vec::new(),
    })
}

fn pair<T: Into<OwnedFd>>((one, other): (T, T)) -> io::Result<Made> {
    Ok(Made {
        fd: one.into(),
        _kept: vec![other.into()],
    })
}

fn raw(fd: libc::c_int) -> io::Result<Made> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh, and owned by nobody else.
    one(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(fd: libc::c_long) -> io::Result<Made> {
    raw(i32::try_from(fd).map_err(io::Error::other)?)
}

fn scratch(site: &Site, length: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(&site.files)?;
    file.set_len(length)?;
    Ok(file)
}

fn device(path: &str) -> io::Result<Made> {
    one(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)?)
}

fn path(path: &str) -> io::Result<Made> {
    one(OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?)
}

fn fill(mut to: impl io::Write) {
    while to.write(&[0x5a; 4096]).is_ok() {}
}

pub fn blocking(fd: &impl AsRawFd, on: bool) {
    let flags = if on { 0 } else { libc::O_NONBLOCK };
    // SAFETY: integers only.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
    assert_eq!(set, 0);
}

fn pipe(write: bool, full: bool) -> io::Result<Made> {
    let (reader, writer) = io::pipe()?;
    if full {
        blocking(&writer, false);
        fill(&writer);
        blocking(&writer, true);
    }
    let ends: (OwnedFd, OwnedFd) = (reader.into(), writer.into());
    pair(if write { (ends.1, ends.0) } else { ends })
}

fn full_socket() -> io::Result<Made> {
    let ends = UnixStream::pair()?;
    ends.0.set_nonblocking(true)?;
    fill(&ends.0);
    ends.0.set_nonblocking(false)?;
    pair(ends)
}

fn listener(site: &Site) -> io::Result<Made> {
    let path = site.files.join(format!("listener-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    one(UnixListener::bind(path)?)
}

fn event(count: u64, flags: libc::c_int) -> io::Result<Made> {
    let event = vmm_sys_util::eventfd::EventFd::new(flags)?;
    if count > 0 {
        event.write(count)?;
    }
    // SAFETY: a duplicate is nobody else's.
    raw(unsafe { libc::dup(event.as_raw_fd()) })
}

fn epoll() -> io::Result<Made> {
    // SAFETY: an integer only.
    let outer = raw(unsafe { libc::epoll_create1(0) })?;
    let ready = io::pipe()?;
    drop(ready.1);
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN.cast_unsigned(),
        u64: 0,
    };
    let fd = outer.fd.as_raw_fd();
    // SAFETY: the event is read for the time of the call.
    unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, ready.0.as_raw_fd(), &raw mut event) };
    Ok(Made {
        fd: outer.fd,
        _kept: vec![ready.0.into()],
    })
}

fn signals() -> io::Result<Made> {
    // SAFETY: zeros are an empty set, which is read only.
    let set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    raw(unsafe { libc::signalfd(-1, &raw const set, 0) })
}

fn timer() -> io::Result<Made> {
    // SAFETY: integers only.
    let timer = raw(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) })?;
    let often = libc::timespec {
        tv_sec: 0,
        tv_nsec: 1000,
    };
    let times = libc::itimerspec {
        it_interval: often,
        it_value: often,
    };
    let (fd, none) = (timer.fd.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: the times are read for the time of the call; nothing is written.
    let set = unsafe { libc::timerfd_settime(fd, 0, &raw const times, none) };
    assert_eq!(set, 0);
    Ok(timer)
}

pub fn memfd(flags: libc::c_uint, length: u64, seals: libc::c_int) -> io::Result<Made> {
    let flags = flags | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string, which the call only reads.
    let made = raw(unsafe { libc::memfd_create(c"hostile".as_ptr(), flags) })?;
    let file = File::from(made.fd.try_clone()?);
    file.set_len(length)?;
    if seals != 0 {
        // SAFETY: integers only.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        assert_eq!(sealed, 0);
    }
    Ok(made)
}
