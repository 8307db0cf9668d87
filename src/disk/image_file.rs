//! Opening an image, and what direct I/O on it takes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mapping::lease::LeaseError;

use crate::engine::bounce::Pool;
use crate::host::sys::{self, DirectAlign};
use crate::path::Obstacle;

/// How often an image is asked for that a previous process has not let go of.
const STILL_BUSY: Duration = Duration::from_millis(50);
/// How long a device or an image may stay in use: the kernel ends the io_uring
/// of a process some time after the process.
const SOON_FREE: Duration = Duration::from_secs(2);

/// What to open: the image that was handed over, or else what has its name.
pub(super) fn source(path: &Path, handed: Option<&OwnedFd>) -> PathBuf {
    let Some(handed) = handed else {
        return path.to_owned();
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", handed.as_raw_fd()));
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let same = matches!((identity(&source), identity(path)), (Ok(one), Ok(other)) if one == other);
    if !same {
        log::warn!(
            "{} is another file by now, or none: the disk stays the image that it was",
            path.display()
        );
    }
    source
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

/// Enters the disk path by `enter`, once a previous process has let go of the
/// image: one that was killed has it open until its last I/O has ended.
pub(super) fn enter_soon(enter: impl Fn() -> Result<(), Obstacle>) -> Result<(), Obstacle> {
    let start = Instant::now();
    loop {
        match enter() {
            Err(Obstacle::Lease(LeaseError::InUse)) if start.elapsed() < SOON_FREE => {
                std::thread::sleep(STILL_BUSY);
            }
            result => return result,
        }
    }
}

/// Finds the smallest alignment that direct reads take, where the kernel does
/// not tell.
pub(super) fn probe_align(image: &File) -> io::Result<DirectAlign> {
    let mut pool = Pool::new(1, 4096)?;
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
