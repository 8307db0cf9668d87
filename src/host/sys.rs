//! System calls that no library of ours wraps, each in a safe function.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use rustix::fs::{AtFlags, StatxFlags};

/// Alignments that direct I/O on a file asks for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirectAlign {
    /// Of buffers in memory.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
    /// The same for reads, where less will do: a file system that puts what is
    /// written elsewhere writes whole blocks of its own.
    pub read_offset: u32,
}

impl DirectAlign {
    /// Everything is a multiple of `bytes`.
    pub(crate) fn all(bytes: u32) -> Self {
        Self {
            memory: bytes,
            offset: bytes,
            read_offset: bytes,
        }
    }
}

/// What a byte range is locked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Several may hold it.
    Shared,
    /// Nobody holds it.
    None,
}

const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<u64>(0x12, 114);
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// `STATX_DIOALIGN` and `STATX_DIO_READ_ALIGN`.
const DIOALIGN: u32 = 0x2000;
const DIO_READ_ALIGN: u32 = 0x2_0000;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Asks the kernel what direct I/O on `file` needs (`STATX_DIOALIGN`, since
/// 6.1); `None` where it does not say.
pub(crate) fn direct_align(file: &File) -> Option<DirectAlign> {
    let asked = StatxFlags::from_bits_retain(DIOALIGN | DIO_READ_ALIGN);
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, asked).ok()?;
    let offset = stat.stx_dio_offset_align;
    let told = stat.stx_mask & DIOALIGN != 0 && offset != 0;
    // Since 6.13, and only where it differs.
    let read_offset = match stat.stx_dio_read_offset_align {
        less if stat.stx_mask & DIO_READ_ALIGN != 0 && less != 0 => less.min(offset),
        _ => offset,
    };
    told.then_some(DirectAlign {
        memory: stat.stx_dio_mem_align,
        offset,
        read_offset,
    })
}

/// The size of a block device in bytes.
///
/// # Errors
/// What the ioctl says.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to the address given.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) })?;
    Ok(bytes)
}

/// A block device takes no writes, as it was told (`BLKROGET`).
///
/// # Errors
/// What the ioctl says.
pub(crate) fn is_read_only(device: &File) -> io::Result<bool> {
    const BLKROGET: libc::Ioctl = 0x125e;
    let mut read_only: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int to the address given.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut read_only) })?;
    Ok(read_only != 0)
}

/// The logical and the physical block size of a block device, in bytes.
///
/// # Errors
/// What the ioctls say.
pub(crate) fn device_blocks(file: &File) -> io::Result<(u32, u32)> {
    let mut logical: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int to the address given.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut logical) })?;
    let mut physical: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int to the address given.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKPBSZGET, &raw mut physical) })?;
    Ok((u32::try_from(logical).unwrap_or(512), physical))
}

/// The block size of the file system that `file` lies on, in bytes.
///
/// # Errors
/// What fstatfs(2) says.
pub(crate) fn filesystem_block(file: &File) -> io::Result<u32> {
    Ok(u32::try_from(filesystem(file)?.f_bsize).unwrap_or(4096))
}

/// Bytes that are free for everybody on the file system that `file` lies on.
///
/// # Errors
/// What fstatfs(2) says.
pub(crate) fn filesystem_free(file: &File) -> io::Result<u64> {
    let stat = filesystem(file)?;
    let block = u64::try_from(stat.f_bsize).unwrap_or(4096);
    Ok(stat.f_bavail.saturating_mul(block))
}

fn filesystem(file: &File) -> io::Result<libc::statfs> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open and `stat` has the size the kernel fills.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: zeroed, and filled by the kernel.
    Ok(unsafe { stat.assume_init() })
}

/// Sets or drops this open file description's lock on one byte.
///
/// # Errors
/// Another open file description holds a lock that excludes it.
pub(crate) fn ofd_lock(file: &File, byte: i64, kind: LockKind) -> io::Result<()> {
    let type_ = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::None => libc::F_UNLCK,
    };
    let lock = byte_lock(type_, byte);
    // SAFETY: fcntl reads one flock struct, which outlives the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })?;
    Ok(())
}

/// Does another open file description hold any lock on this byte?
///
/// # Errors
/// What fcntl(2) says, as on file systems without locks.
pub(crate) fn ofd_locked_by_others(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = byte_lock(libc::F_WRLCK, byte);
    // SAFETY: fcntl reads and writes one flock struct, which outlives the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn byte_lock(type_: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(type_).unwrap_or(0),
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// fallocate(2).
///
/// # Errors
/// What the file system says.
pub(crate) fn fallocate(fd: RawFd, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: fallocate takes plain numbers.
    check(unsafe { libc::fallocate(fd, mode, offset, len) })?;
    Ok(())
}

/// Clones the first block of a file to the beginning of another one, or all of
/// it where it is shorter.
pub(crate) fn clone_start(to: &impl AsRawFd, from: &File) -> io::Result<()> {
    let meta = from.metadata()?;
    let block = std::os::unix::fs::MetadataExt::blksize(&meta);
    // 0 is all up to the end.
    let length = if meta.len() < block { 0 } else { block };
    clone_range(to, from, &(0..length))
}

/// Clones a range of a file to the same one of another.
///
/// # Errors
/// What `FICLONERANGE` says.
pub(crate) fn clone_range(
    to: &impl AsRawFd,
    from: &File,
    range: &std::ops::Range<u64>,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: range.start,
        src_length: range.end - range.start,
        dest_offset: range.start,
    };
    // SAFETY: the kernel reads one structure.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) }).map(drop)
}

/// fdatasync(2).
///
/// # Errors
/// What the disk says.
pub(crate) fn fdatasync(fd: RawFd) -> io::Result<()> {
    // SAFETY: fdatasync takes a plain number.
    check(unsafe { libc::fdatasync(fd) })?;
    Ok(())
}

/// preadv2(2) with `flags`; how many bytes were read.
///
/// # Safety
/// `iov` points to `count` entries, each of memory that is valid for writes.
///
/// # Errors
/// What the host says.
pub(crate) unsafe fn preadv(
    fd: RawFd,
    iov: *const libc::iovec,
    count: i32,
    offset: i64,
) -> io::Result<i32> {
    // SAFETY: the caller vouches for the buffers.
    let result = unsafe { libc::preadv(fd, iov, count, offset) };
    transferred(result)
}

/// pwritev2(2) with `flags`; how many bytes were written.
///
/// # Safety
/// `iov` points to `count` entries, each of memory that is valid for reads.
///
/// # Errors
/// What the host says.
pub(crate) unsafe fn pwritev2(
    fd: RawFd,
    iov: *const libc::iovec,
    count: i32,
    offset: i64,
    flags: i32,
) -> io::Result<i32> {
    // SAFETY: the caller vouches for the buffers.
    let result = unsafe { libc::pwritev2(fd, iov, count, offset, flags) };
    transferred(result)
}

fn transferred(result: isize) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel moves at most 0x7fff_f000 bytes in a call.
    Ok(i32::try_from(result).unwrap_or(i32::MAX))
}

fn signal_set(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initializes the set it is given.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: initialized by sigemptyset.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: the set is initialized.
        check(unsafe { libc::sigaddset(&raw mut set, signal) })?;
    }
    Ok(set)
}

/// A signal does nothing from now on, in any thread.
///
/// # Errors
/// There is no such signal.
pub(crate) fn ignore_signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no handler is installed.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Blocks `signals` in this thread and the threads it will start.
///
/// # Errors
/// One of them is no signal.
pub(crate) fn block_signals(signals: &[libc::c_int]) -> io::Result<()> {
    let set = signal_set(signals)?;
    // SAFETY: the set is initialized; no old mask is asked for.
    check(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) })?;
    Ok(())
}

/// Blocks `signals` in this thread and the threads it will start, and gives a
/// descriptor that reads as one `signalfd_siginfo` per signal.
///
/// # Errors
/// What signalfd(2) says.
pub(crate) fn signal_descriptor(signals: &[libc::c_int]) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    block_signals(signals)?;
    let set = signal_set(signals)?;
    // SAFETY: the set is initialized; -1 asks for a new descriptor.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Is this socket a listening one?
///
/// # Errors
/// It is no socket.
pub(crate) fn is_listening(fd: RawFd) -> io::Result<bool> {
    let mut value: libc::c_int = 0;
    let mut len: libc::socklen_t = 4;
    // SAFETY: getsockopt writes at most `len` bytes to `value`, and `len`.
    check(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value != 0)
}

/// The path that the socket `fd` is bound to, as it was given to bind(2).
pub(crate) fn bound_path(fd: RawFd) -> Option<std::path::PathBuf> {
    use std::os::fd::FromRawFd;
    // SAFETY: fcntl takes plain numbers, and fails for what is not open.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }).ok()?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { std::os::unix::net::UnixListener::from_raw_fd(copy) };
    let address = socket.local_addr().ok()?;
    address.as_pathname().map(std::path::Path::to_owned)
}

/// Takes over a descriptor that was inherited under a number.
///
/// # Errors
/// No such descriptor is open.
pub(crate) fn inherited(fd: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: fcntl takes plain numbers; F_SETFD fails for what is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by being named to us on the command line it is
    // ours; the process asks for it once.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// Lets the next program of this process find `file` under `number`; what was
/// there is closed.
///
/// # Errors
/// The number is out of range.
pub(crate) fn bequeath(file: &impl AsRawFd, number: RawFd) -> io::Result<()> {
    let fd = file.as_raw_fd();
    if fd == number {
        // SAFETY: fcntl takes plain numbers.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    } else {
        // SAFETY: dup2 takes plain numbers. It is called right before the
        // program is replaced, and nothing uses what had the number any more.
        check(unsafe { libc::dup2(fd, number) })?;
    }
    Ok(())
}

/// Another descriptor of the same open file, numbered `least` or higher, that
/// the next program of this process has too.
///
/// # Errors
/// There is none left.
pub(crate) fn inheritable_copy(file: &File, least: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: fcntl takes plain numbers.
    let copy = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, least) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(copy) })
}

/// Takes the only flock(2) on a file or directory, if nobody has one; closing
/// it unlocks.
///
/// # Errors
/// `WouldBlock`, or what flock(2) says, as on file systems without locks.
pub(crate) fn flock_exclusive(file: &File) -> io::Result<()> {
    // SAFETY: flock takes plain numbers.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
    Ok(())
}

/// Sets the process' umask, and gives the one before.
pub(crate) fn umask(mask: libc::mode_t) -> libc::mode_t {
    // SAFETY: umask takes a plain number and cannot fail.
    unsafe { libc::umask(mask) }
}

/// An event descriptor that never blocks.
///
/// # Errors
/// What eventfd(2) says.
pub(crate) fn event() -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: eventfd takes plain numbers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// Makes an event descriptor readable.
pub(crate) fn event_set(event: &impl AsRawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes are readable. It fails only if the counter is full,
    // and then the event is readable already.
    unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Makes an event descriptor silent; whether it was readable.
pub(crate) fn event_take(event: &impl AsRawFd) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes are writable.
    let read = unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    read == 8
}

/// Nanoseconds since the machine has started, those that it was suspended for
/// included.
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

/// Makes calls on an open file wait again that were to fail instead
/// (`O_NONBLOCK`): io_uring would not hand them to its threads.
///
/// # Errors
/// What fcntl(2) says.
pub(crate) fn set_blocking(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes a plain number.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) })?;
    Ok(())
}
