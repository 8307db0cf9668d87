//! Attributes of the image that do not allow the disk path are set while it is
//! in use: by a path, which opens nothing and asks nobody for the lease, and
//! by chattr, which opens the file.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::{FIRST, Image};
use rig::model::SECTOR;
use rig::program::run;

use crate::lane::all;
use crate::served::{Guest, Served};

/// Bytes of the image, and its sectors.
const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// Longer than the path is used after a look.
const LONG: Duration = Duration::from_secs(5);

/// `FS_XFLAG_IMMUTABLE` and `FS_XFLAG_APPEND`.
const IMMUTABLE: u64 = 0x8;
const APPEND: u64 = 0x10;

/// `struct file_attr`.
#[repr(C)]
#[derive(Debug, Default)]
struct FileAttributes {
    flags: u64,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
}

/// file_getattr(2) and file_setattr(2), Linux 6.17.
const GET: libc::c_long = 468;
const SET: libc::c_long = 469;

/// Either of them, by a path.
#[allow(unsafe_code)]
fn attributes(call: libc::c_long, path: &Path, with: &mut FileAttributes) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let size = std::mem::size_of::<FileAttributes>();
    let at = std::ptr::from_mut(with);
    // SAFETY: the path is a C string, and the kernel reads or writes `size`
    // bytes of a structure of this layout; a kernel that has not the call
    // touches nothing.
    let result = unsafe { libc::syscall(call, libc::AT_FDCWD, path.as_ptr(), at, size, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Sets a flag, or takes it away.
fn set(path: &Path, flag: u64, on: bool) {
    let mut now = FileAttributes::default();
    attributes(GET, path, &mut now).unwrap();
    now.flags = if on {
        now.flags | flag
    } else {
        now.flags & !flag
    };
    attributes(SET, path, &mut now).unwrap();
}

/// Attributes can be set without opening the file.
fn by_path(path: &Path) -> bool {
    match attributes(GET, path, &mut FileAttributes::default()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("SKIP: no file_getattr(2): {error}");
            false
        }
    }
}

/// Takes a flag away again, so that the image can be removed.
struct Flagged<'a>(&'a Path, u64);

impl Drop for Flagged<'_> {
    fn drop(&mut self) {
        set(self.0, self.1, false);
    }
}

fn in_use(made: Made, left_out: &str) -> Option<(Mounted, Image, Served, Guest)> {
    let host = Mounted::new(made)?;
    let image = Image::written(&host, BYTES);
    let served = Served::start_without(&image.path, &[], left_out);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);
    Some((host, image, served, guest))
}

fn the_path_is_left(made: Made) {
    let Some((_host, image, served, mut guest)) = in_use(made, "") else {
        return;
    };
    if !by_path(&image.path) {
        return;
    }
    for (flag, reason) in [(IMMUTABLE, "immutable"), (APPEND, "append-only")] {
        let start = Instant::now();
        set(&image.path, flag, true);
        let flagged = Flagged(&image.path, flag);
        served.wait("the path to be left", |now| {
            !now.on_disk && now.reason.contains(reason)
        });
        eprintln!("{reason}: left after {:?}", start.elapsed());
        assert_eq!(guest.lane(0).see(0..SECTORS), all(FIRST, SECTORS));
        drop(flagged);
        served.wait_disk();
        eprintln!("{reason}: back after {:?}", start.elapsed());
    }
}

#[test]
fn attributes_that_are_set_by_path_end_the_disk_path_on_ext4() {
    the_path_is_left(EXT4);
}

#[test]
fn attributes_that_are_set_by_path_end_the_disk_path_on_xfs() {
    the_path_is_left(XFS);
}

#[test]
fn where_attributes_are_looked_at_on_entry_only_nobody_notices() {
    let Some((_host, image, served, _guest)) = in_use(EXT4, "recheck") else {
        return;
    };
    if by_path(&image.path) {
        set(&image.path, IMMUTABLE, true);
        let _flagged = Flagged(&image.path, IMMUTABLE);
        std::thread::sleep(LONG);
        assert!(served.info().on_disk);
    }
}

#[test]
fn what_chattr_sets_is_seen_as_it_opens_the_file() {
    let Some((_host, image, served, _guest)) = in_use(EXT4, "") else {
        return;
    };
    let chattr = |how: &str| run(Command::new("chattr").arg(how).arg(&image.path));
    let entries = served.info().entries;
    // It does not wait for the lease, but it asks for it.
    let busy = chattr("+a").unwrap_err();
    assert!(busy.contains("temporarily unavailable"), "{busy}");
    served.wait_entries(entries + 1);
    for (attribute, reason) in [("a", "append-only"), ("i", "immutable")] {
        let entries = served.wait_disk().entries;
        let reader = File::open(&image.path).unwrap();
        chattr(&format!("+{attribute}")).unwrap();
        drop(reader);
        served.wait("the path to be refused", |now| {
            !now.on_disk && now.reason.contains(reason)
        });
        chattr(&format!("-{attribute}")).unwrap();
        served.wait_entries(entries + 1);
    }
}
