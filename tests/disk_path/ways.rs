//! Ways in which others reach an image, each with what the lease says to it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::file_systems::Mounted;
use rig::program::run;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, XattrFlags, inotify};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::disturb;
use crate::frozen::Frozen;
use crate::raw_calls::{handle_of, mark, open_by_handle, open_by_ring, refused_swapon, truncate};
use crate::served::Served;

/// What becomes of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It is asked for: the disk path is left.
    Breaks,
    /// Nobody asks for it: the disk path stays in use.
    Passes,
}

/// An image in use.
pub struct Site<'a> {
    pub host: &'a Mounted,
    pub image: &'a Path,
    pub served: &'a Served,
}

/// Goes a way to the image and back; `None`, with the reason printed, where
/// the host has no such way.
pub type Go = fn(&Site<'_>) -> Option<()>;

/// All of them.
pub const WAYS: &[(&str, Lease, Go)] = &[
    ("an open for reading", Lease::Breaks, read),
    ("an open for writing", Lease::Breaks, write),
    ("an open that does not wait", Lease::Breaks, do_not_wait),
    (
        "a truncation that does not wait",
        Lease::Breaks,
        truncate_now,
    ),
    ("an open by io_uring", Lease::Breaks, ring),
    ("a place without an open (O_PATH)", Lease::Passes, place),
    ("that place, opened", Lease::Breaks, place_opened),
    ("a descriptor of extentd, opened", Lease::Breaks, descriptor),
    ("a descriptor of extentd, taken", Lease::Passes, taken),
    ("a handle", Lease::Passes, handle),
    ("that handle as a place", Lease::Passes, handle_place),
    ("that handle, opened", Lease::Breaks, handle_opened),
    ("truncate(2) to the same size", Lease::Breaks, same_size),
    ("looks at it", Lease::Passes, look),
    ("other times", Lease::Passes, times),
    ("another mode and owner", Lease::Passes, mode),
    ("an extended attribute", Lease::Passes, attribute),
    ("another name", Lease::Passes, link),
    ("a new name", Lease::Passes, rename),
    ("a bind mount", Lease::Passes, bind),
    ("a bind mount, opened", Lease::Breaks, bind_opened),
    (
        "a bind mount, truncated to the same size",
        Lease::Breaks,
        bind_truncated,
    ),
    ("swapon", Lease::Breaks, swap),
    ("a loop device", Lease::Breaks, attach),
    ("execve", Lease::Breaks, execute),
    ("a trim of the file system", Lease::Passes, trim),
    ("a freeze of the file system", Lease::Passes, freeze),
    ("an inotify watch", Lease::Passes, watch),
    ("a fanotify mark", Lease::Passes, marked),
];

fn read(site: &Site<'_>) -> Option<()> {
    File::open(site.image).unwrap();
    Some(())
}

fn write(site: &Site<'_>) -> Option<()> {
    OpenOptions::new().write(true).open(site.image).unwrap();
    Some(())
}

fn do_not_wait(site: &Site<'_>) -> Option<()> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(site.image);
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::WouldBlock);
    Some(())
}

fn truncate_now(site: &Site<'_>) -> Option<()> {
    disturb::try_truncate(site.image);
    Some(())
}

fn ring(site: &Site<'_>) -> Option<()> {
    open_by_ring(site.image).map(drop)
}

fn open_place(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .unwrap()
}

/// A descriptor of this process, opened once more.
fn reopen(fd: BorrowedFd<'_>) {
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
}

fn place(site: &Site<'_>) -> Option<()> {
    let place = open_place(site.image);
    assert_eq!(place.metadata().unwrap().len(), size(site));
    Some(())
}

fn place_opened(site: &Site<'_>) -> Option<()> {
    reopen(open_place(site.image).as_fd());
    Some(())
}

/// The process's descriptor of the image, as a file of /proc.
fn in_proc(site: &Site<'_>) -> PathBuf {
    let folder = format!("/proc/{}/fd", site.served.daemon.pid());
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|fd| std::fs::read_link(fd).is_ok_and(|path| path == site.image))
        .unwrap()
}

fn descriptor(site: &Site<'_>) -> Option<()> {
    File::open(in_proc(site)).unwrap();
    Some(())
}

/// The process's own description of the image.
pub fn own(site: &Site<'_>) -> OwnedFd {
    let fd = in_proc(site).file_name().unwrap().to_str().unwrap().parse();
    let pid = i32::try_from(site.served.daemon.pid()).unwrap();
    let process = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(&process, fd.unwrap(), PidfdGetfdFlags::empty()).unwrap()
}

fn taken(site: &Site<'_>) -> Option<()> {
    drop(own(site));
    Some(())
}

fn handle(site: &Site<'_>) -> Option<()> {
    handle_of(site.image);
    Some(())
}

fn by_handle(site: &Site<'_>, flags: libc::c_int) -> OwnedFd {
    let root = File::open(site.host.root()).unwrap();
    open_by_handle(&root, &handle_of(site.image), flags).unwrap()
}

fn handle_place(site: &Site<'_>) -> Option<()> {
    drop(by_handle(site, libc::O_PATH));
    Some(())
}

fn handle_opened(site: &Site<'_>) -> Option<()> {
    drop(by_handle(site, libc::O_RDONLY));
    Some(())
}

fn size(site: &Site<'_>) -> u64 {
    std::fs::metadata(site.image).unwrap().len()
}

fn same_size(site: &Site<'_>) -> Option<()> {
    truncate(site.image, size(site)).unwrap();
    Some(())
}

fn look(site: &Site<'_>) -> Option<()> {
    let mut room = [0; 64];
    rustix::fs::access(site.image, rustix::fs::Access::WRITE_OK).unwrap();
    rustix::fs::listxattr(site.image, &mut room).unwrap();
    rustix::fs::statfs(site.image).unwrap();
    std::fs::canonicalize(site.image).unwrap();
    Some(())
}

fn times(site: &Site<'_>) -> Option<()> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    rustix::fs::utimensat(CWD, site.image, &times, AtFlags::empty()).unwrap();
    Some(())
}

fn mode(site: &Site<'_>) -> Option<()> {
    let now = std::fs::metadata(site.image).unwrap();
    std::fs::set_permissions(site.image, Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(site.image, now.permissions()).unwrap();
    std::os::unix::fs::chown(site.image, Some(now.uid()), Some(now.gid())).unwrap();
    Some(())
}

fn attribute(site: &Site<'_>) -> Option<()> {
    let (name, value) = ("user.test", b"value");
    rustix::fs::setxattr(site.image, name, value, XattrFlags::CREATE).unwrap();
    rustix::fs::removexattr(site.image, name).unwrap();
    Some(())
}

fn link(site: &Site<'_>) -> Option<()> {
    let other = site.host.path("other");
    std::fs::hard_link(site.image, &other).unwrap();
    std::fs::remove_file(other).unwrap();
    Some(())
}

fn rename(site: &Site<'_>) -> Option<()> {
    let other = site.host.path("other");
    std::fs::rename(site.image, &other).unwrap();
    std::fs::rename(other, site.image).unwrap();
    Some(())
}

/// The image, mounted beside the file system.
struct Bound(PathBuf);

impl Bound {
    fn new(site: &Site<'_>) -> Bound {
        let at = site.host.root().parent().unwrap().join("bound");
        File::create(&at).unwrap();
        mount_bind(site.image, &at).unwrap();
        Bound(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn bind(site: &Site<'_>) -> Option<()> {
    drop(Bound::new(site));
    Some(())
}

fn bind_opened(site: &Site<'_>) -> Option<()> {
    let bound = Bound::new(site);
    File::open(&bound.0).unwrap();
    Some(())
}

fn bind_truncated(site: &Site<'_>) -> Option<()> {
    let bound = Bound::new(site);
    truncate(&bound.0, size(site)).unwrap();
    Some(())
}

fn swap(site: &Site<'_>) -> Option<()> {
    let error = refused_swapon(site.image);
    if error.raw_os_error() == Some(libc::EINVAL) {
        // It is opened before it is found to be no swap area.
        return Some(());
    }
    eprintln!("SKIP: no swapon: {error}");
    None
}

/// A loop device on a file.
struct Attached(String);

impl Drop for Attached {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.0])).unwrap();
    }
}

fn attach(site: &Site<'_>) -> Option<()> {
    let mut losetup = Command::new("losetup");
    let device = run(losetup.args(["--find", "--show"]).arg(site.image)).unwrap();
    let attached = Attached(device.trim().to_owned());
    let entries = site.served.info().entries;
    site.served.wait("the image to be a loop device's", |now| {
        !now.on_disk && now.reason.contains("open")
    });
    assert_eq!(site.served.info().entries, entries);
    drop(attached);
    Some(())
}

fn execute(site: &Site<'_>) -> Option<()> {
    let before = std::fs::metadata(site.image).unwrap().permissions();
    std::fs::set_permissions(site.image, Permissions::from_mode(0o700)).unwrap();
    let error = Command::new(site.image).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy);
    std::fs::set_permissions(site.image, before).unwrap();
    Some(())
}

fn trim(site: &Site<'_>) -> Option<()> {
    run(Command::new("fstrim").arg(site.host.root())).unwrap();
    Some(())
}

fn freeze(site: &Site<'_>) -> Option<()> {
    drop(Frozen::new(site.host));
    Some(())
}

fn watch(site: &Site<'_>) -> Option<()> {
    let watches = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let events = inotify::WatchFlags::ALL_EVENTS;
    inotify::add_watch(&watches, site.image, events).unwrap();
    // It stays over what goes by the file.
    std::fs::metadata(site.image).unwrap();
    Some(())
}

fn marked(site: &Site<'_>) -> Option<()> {
    match mark(site.image) {
        Ok(marks) => {
            drop(marks);
            Some(())
        }
        Err(error) => {
            eprintln!("SKIP: no fanotify: {error}");
            None
        }
    }
}
