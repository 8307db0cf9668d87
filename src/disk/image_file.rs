//! Opening an image, and what direct I/O on it takes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mapping::lease::LeaseError;

use super::holders::Identity;
use crate::engine::bounce::Pool;
use crate::host::limits;
use crate::host::sys::{self, DirectAlign};
use mapping::path::Obstacle;

/// How often an image is asked for that a previous process has not let go of.
const STILL_BUSY: Duration = Duration::from_millis(50);
/// How long an image may stay in use: the kernel ends the io_uring
/// of a process some time after the process.
const SOON_FREE: Duration = Duration::from_secs(2);

/// What to open: the image that was handed over, or else what has its name.
pub(super) fn source(path: &Path, handed: Option<&OwnedFd>) -> PathBuf {
    let Some(handed) = handed else {
        return path.to_owned();
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", handed.as_raw_fd()));
    let identity = |path: &Path| fs::metadata(path).map(|meta| Identity::from(&meta));
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
/// killed has one until its last raw I/O has ended.
pub(crate) fn open_file(path: &Path, read_only: bool, flags: i32) -> io::Result<File> {
    let mut told = false;
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
            Err(error) => return Err(error),
        }
    }
}

/// Formats that people give by mistake, by what their files begin with.
const FORMATS: [(&str, usize, &[u8]); 9] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHDX", 0, b"vhdxfile"),
    ("VHD", 0, b"conectix"),
    ("VDI", 64, b"\x7f\x10\xda\xbe"),
    ("gzip", 0, b"\x1f\x8b\x08"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
];

fn format_of(begin: &[u8]) -> Option<&'static str> {
    let fits = |at: usize, magic: &[u8]| begin.get(at..).is_some_and(|it| it.starts_with(magic));
    let found = FORMATS.iter().find(|(_, at, magic)| fits(*at, magic));
    found.map(|(name, ..)| *name)
}

/// Says so if an image looks as if it were not raw. It is served all the same:
/// a guest may write such bytes to its own disk.
pub(super) fn warn_of_format(image: &File, path: &Path) {
    let Ok(begin) = first_block(image) else {
        return;
    };
    let Some(format) = format_of(&begin) else {
        return;
    };
    let remedy = match format {
        "gzip" => "unpack it first (gunzip)",
        "xz" => "unpack it first (unxz)",
        "zstd" => "unpack it first (unzstd)",
        _ => "convert it first (qemu-img convert -O raw)",
    };
    log::warn!(
        "{} looks like a {format} file, and is served as a raw disk: if that is not meant, {remedy}",
        path.display()
    );
}

/// Says so if the process may not write all of an image.
///
/// # Errors
/// What fstat(2) says.
pub(super) fn warn_of_limit(image: &File, path: &Path) -> io::Result<()> {
    let length = image.metadata()?.len();
    if let Some(limit) = limits::file_length().filter(|limit| *limit < length) {
        log::warn!(
            "{} is {length} bytes long, and the limit on the length of files is {limit}: writes beyond fail; raise it (LimitFSIZE=, ulimit -f)",
            path.display()
        );
    }
    Ok(())
}

/// The first bytes of an image, up to 4096, aligned for direct I/O.
fn first_block(image: &File) -> io::Result<Vec<u8>> {
    let mut pool = Pool::new(1, 4096)?;
    let buffer = pool.take().ok_or(io::ErrorKind::OutOfMemory)?;
    let moved = pool.read_at(image.as_raw_fd(), buffer, pool.size(), 0)?;
    Ok(pool.bytes(buffer, moved))
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

/// The same file once more, by the page cache; says so if that is not possible.
pub(super) fn open_buffered(image: &File, path: &Path, read_only: bool) -> Option<File> {
    let name = format!("/proc/self/fd/{}", image.as_raw_fd());
    open_file(Path::new(&name), read_only, 0)
        .inspect_err(|error| {
            log::warn!(
                "{} cannot be opened again for its last sectors: {error}",
                path.display()
            );
        })
        .ok()
}

/// Finds the smallest alignment that direct reads take, where the kernel does
/// not tell.
pub(super) fn probe_align(image: &File) -> io::Result<DirectAlign> {
    let mut pool = Pool::new(1, 4096)?;
    let Some(buffer) = pool.take() else {
        return Err(io::ErrorKind::OutOfMemory.into());
    };
    for size in [512u32, 1024, 2048, 4096] {
        // A read elsewhere than at 0 shows whether offsets of `size` are taken.
        match pool.read_at(image.as_raw_fd(), buffer, size as usize, i64::from(size)) {
            Ok(_) => {
                return Ok(DirectAlign::all(size));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(DirectAlign::all(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_what_they_begin_with_and_raw_disks_are_none() {
        assert_eq!(format_of(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        let mut vdi = [0; 512];
        vdi[64..68].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert_eq!(format_of(&vdi), Some("VDI"));
        assert_eq!(format_of(b"\xfd7zXZ\0"), Some("xz"));
        let mut boot = [0; 512];
        boot[510..].copy_from_slice(b"\x55\xaa");
        assert_eq!(format_of(&boot), None);
        assert_eq!(format_of(b""), None);
    }
}
