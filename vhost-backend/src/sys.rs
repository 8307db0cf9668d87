//! The few system calls of this crate that the standard library does not
//! offer, each as a safe function.
#![allow(unsafe_code)]

mod kind;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::kind::{Kind, kind, known_of};

/// Nanoseconds of a clock that all processes of this host have in common.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel or its library writes to `time` only.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(time.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(time.tv_nsec))
}

/// The size of a page of this machine, in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf only returns a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The process and the user that have connected a socket.
pub(crate) fn peer(stream: &UnixStream) -> Option<(u32, u32)> {
    let mut who = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: the descriptor is open, and `who` is writable for as many bytes
    // as `len` says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut len,
        )
    };
    (result == 0).then(|| (u32::try_from(who.pid).unwrap_or(0), who.uid))
}

/// A connection can be accepted, or something read, without waiting.
pub(crate) fn is_readable(fd: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry is writable for the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Whoever is at the other end has closed it.
pub(crate) fn has_hung_up(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one entry is writable for the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Takes a connection. Whoever has the listening socket as well may let that
/// wait, by making it block and taking the connection first: then it fails.
pub(crate) fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let accepted = pulse::foreign(|| {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        Ok(rustix::net::accept_with(listener, flags)?)
    });
    accepted.map(UnixStream::from)
}

/// What can be read from a socket without taking it: `Some(true)` if there is
/// something, `Some(false)` if its other end is closed, `None` if there is
/// nothing yet.
pub(crate) fn has_sent(stream: &UnixStream) -> Option<bool> {
    let mut byte = [0_u8; 1];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: one byte is writable for the call.
    let count = unsafe { libc::recv(stream.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
    match count {
        0 => Some(false),
        1.. => Some(true),
        _ => match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
            _ => Some(false),
        },
    }
}

/// The type that statfs(2) gives hugetlbfs.
const HUGETLBFS: u64 = 0x9584_58f6;

/// The unit in which a file that [is memory](is_memory) can be mapped and
/// unmapped, in bytes: a huge page on hugetlbfs, a page elsewhere.
pub(crate) fn map_granule(file: &File) -> io::Result<u64> {
    let stat = rustix::fs::fstatfs(file)?;
    if u64::try_from(stat.f_type) == Ok(HUGETLBFS) {
        return u64::try_from(stat.f_bsize).map_err(io::Error::other);
    }
    Ok(page_size())
}

/// The file is memory: it lies on tmpfs or hugetlbfs, as a memfd does. Only
/// files there have seals, and the kernel asks nobody for them.
pub(crate) fn is_memory(file: &impl AsRawFd) -> bool {
    // SAFETY: F_GET_SEALS takes no argument and touches no memory of ours.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) >= 0 }
}

/// Memory of `len` zero bytes as a file that keeps its length.
pub(crate) fn sealed_memory(name: &CStr, len: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string, and a descriptor that comes is new.
    let file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Keeps a mapping of guest memory out of children and core dumps. Only a
/// courtesy: errors are of no consequence.
pub(crate) fn keep_private(addr: *mut u8, len: usize) {
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
        // SAFETY: both advices leave the mapping and its contents as they are
        // in this process, whatever the range.
        unsafe { libc::madvise(addr.cast(), len, advice) };
    }
}

/// Keeps a descriptor from other programs (VU-19). The crate that takes it
/// from the front-end leaves that out.
pub(crate) fn close_on_exec(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the host reclaim and swap a mapping of guest memory even if this
/// process has all of its own memory locked, future mappings included
/// (`MCL_FUTURE`; with `MCL_ONFAULT` nothing of it was touched yet). Without
/// such a lock it changes nothing.
pub(crate) fn leave_to_host(addr: *mut u8, len: usize) {
    // SAFETY: it leaves the mapping and its contents as they are, whatever
    // the range.
    let result = unsafe { libc::munlock(addr.cast(), len) };
    if result != 0 {
        let error = io::Error::last_os_error();
        log::warn!("guest memory may stay locked in the host's memory: {error}");
    }
}

/// Another descriptor of the same open file, kept from other programs.
pub(crate) fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and touches no memory of ours.
    let fd = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes reads and writes of a descriptor fail rather than wait.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: F_SETFL takes an integer and touches no memory of ours.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The shortest slice that the scheduler gives.
const SLICE_NS: u64 = 100_000;
/// `SCHED_FLAG_RESET_ON_FORK`.
const RESET_ON_FORK: u64 = 1;

/// Binds the calling thread to one host CPU.
pub(crate) fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all zeros is the empty set, and the CPU is within its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: the set is readable for the call; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks the scheduler for short slices for the calling thread, so that it has
/// the CPU soon when it wakes: the kernel's threads that write for it, and
/// whatever else is busy on its CPU, give it up for the moment (Linux 6.12 and
/// newer; no harm before). Threads that it makes, those of the kernel too, have
/// the usual ones.
pub(crate) fn ask_for_short_slices() -> io::Result<()> {
    let mut attributes = scheduling()?;
    if attributes.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        // Whoever gave it another policy knows better.
        return Ok(());
    }
    attributes.sched_flags = RESET_ON_FORK;
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the struct is readable for the call, and says how large it is.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How the calling thread is scheduled.
fn scheduling() -> io::Result<libc::sched_attr> {
    // SAFETY: all zeros is a valid value of plain numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of_val(&attributes)).unwrap_or(0);
    // SAFETY: the struct is writable for the call, which fills at most `size`
    // bytes; 0 is the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.size = size;
    Ok(attributes)
}

/// An eventfd that came from the front-end, made non-blocking: neither a full
/// counter nor a stolen event may hold a worker up. `None` if it is something
/// else, which might be readable for ever.
pub(crate) fn event_fd(file: File) -> io::Result<Option<EventFd>> {
    if kind(&file) != Kind::Event {
        return Ok(None);
    }
    set_nonblocking(&file)?;
    close_on_exec(&file)?;
    // SAFETY: the descriptor is open and handed over.
    Ok(Some(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }))
}

/// A descriptor of the process that has connected a socket, which is readable
/// once that has ended; `None` if the kernel does not tell.
pub(crate) fn peer_process(stream: &UnixStream) -> Option<OwnedFd> {
    /// `SO_PEERPIDFD` (Linux 6.5).
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of_val(&fd)).ok()?;
    // SAFETY: `fd` is writable for as many bytes as `len` says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    // SAFETY: a descriptor that comes is new and ours.
    (result == 0 && fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals an eventfd by one write, which is not made again where it was
/// interrupted.
pub(crate) fn signal(event: &EventFd) -> io::Result<()> {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: eight bytes are readable.
    let written = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// There is a limit on the memory of this process (`RLIMIT_DATA`, `RLIMIT_AS`).
pub(crate) fn memory_is_limited() -> bool {
    [libc::RLIMIT_DATA, libc::RLIMIT_AS]
        .into_iter()
        .any(|kind| {
            let mut limit = libc::rlimit {
                rlim_cur: libc::RLIM_INFINITY,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: getrlimit fills the struct it is given, or leaves it alone.
            unsafe { libc::getrlimit(kind, &raw mut limit) };
            limit.rlim_cur != libc::RLIM_INFINITY
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_asks_has_short_slices_and_keeps_its_niceness() {
        let before = scheduling().unwrap();
        ask_for_short_slices().unwrap();
        let after = scheduling().unwrap();
        assert_eq!(after.sched_nice, before.sched_nice);
        assert_eq!(after.sched_flags & RESET_ON_FORK, RESET_ON_FORK);
        if before.sched_runtime == 0 {
            eprintln!("skipped: this kernel knows no slices of threads (Linux 6.12)");
            return;
        }
        assert_eq!(after.sched_runtime, SLICE_NS);
        let of_another = std::thread::spawn(|| scheduling().unwrap()).join().unwrap();
        assert_eq!(of_another.sched_runtime, before.sched_runtime);
    }

    #[test]
    fn the_process_of_a_peer_is_readable_when_it_has_ended() {
        let (one, _other) = UnixStream::pair().unwrap();
        match peer_process(&one) {
            Some(process) => assert!(!is_readable(&process)),
            None => eprintln!("skipped: this kernel does not tell (Linux 6.5)"),
        }
    }

    #[test]
    fn only_an_eventfd_is_an_event() {
        let event = EventFd::new(0).unwrap();
        // SAFETY: a duplicate is owned by nobody else.
        let file = unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) };
        let ours = event_fd(file).unwrap().unwrap();
        assert_eq!(ours.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(
            event_fd(File::open("/dev/zero").unwrap())
                .unwrap()
                .is_none()
        );
    }
}
