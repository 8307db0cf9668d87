//! What passes the lease: an overlay changes the files of the folder that it
//! writes to without asking for their leases. It keeps the disk path away
//! where extentd can see it. Where it cannot, an image that somebody has cut
//! is noticed by its length.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use front_end::codes::status;
use rig::file_systems::{EXT4, Made, Mounted, XFS, sync};
use rig::image::{FIRST, Image};
use rig::model::{SECTOR, Value};
use rig::program::run;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::disturb::Others;
use crate::lane::{STEP, all};
use crate::raw_calls::{own_mounts, truncate};
use crate::refusals::is_refused;
use crate::served::{Guest, Info, Served};
use crate::ways::{Site, own};

/// Bytes of the image, and of what is left of it.
const BYTES: usize = 16 << 20;
const LEFT: usize = 8 << 20;
/// Their sectors.
const SECTORS: usize = BYTES / SECTOR;
const END: usize = LEFT / SECTOR;
/// What the guest writes after the cut, and once it is mended.
const MEANWHILE: Value = 2;
const LATER: Value = 3;
/// Full soon.
const SMALL: Made = Made {
    megabytes: 64,
    ..EXT4
};

/// The folders of an overlay in a file system.
struct Folders {
    root: PathBuf,
}

impl Folders {
    fn new(host: &Mounted) -> Folders {
        let root = host.root();
        for folder in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(root.join(folder)).unwrap();
        }
        Folders { root }
    }

    /// The image as the overlay shows it.
    fn merged(&self) -> PathBuf {
        self.root.join("merged/image")
    }

    /// The program that mounts it.
    fn mount(&self) -> Command {
        self.mount_by(&self.root.display().to_string())
    }

    /// As [`mount`](Self::mount), with another name of the folder in which
    /// all of them are.
    fn mount_by(&self, name: &str) -> Command {
        let at = |folder| self.root.join(folder).display().to_string();
        let lower = at("lower");
        let (upper, work) = (format!("{name}/upper"), format!("{name}/work"));
        let mut mount = Command::new("mount");
        mount
            .current_dir(&self.root)
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(format!("lowerdir={lower},upperdir={upper},workdir={work}"))
            .arg(at("merged"));
        mount
    }
}

/// An overlay in this mount namespace.
struct Overlay(PathBuf);

impl Overlay {
    /// `None`, with the reason printed, where there are none.
    fn new(folders: &Folders) -> Option<Overlay> {
        Overlay::by(folders, &mut folders.mount())
    }

    fn by(folders: &Folders, mount: &mut Command) -> Option<Overlay> {
        match run(mount) {
            Ok(_) => Some(Overlay(folders.root.join("merged"))),
            Err(error) => {
                eprintln!("SKIP: no overlays here: {error}");
                None
            }
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0)).unwrap();
    }
}

fn an_overlay_is_refused(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let folders = Folders::new(&host);
    if let Some(_overlay) = Overlay::new(&folders) {
        is_refused(&host.path("upper/image"), "overlay");
    }
}

#[test]
fn the_disk_path_is_refused_in_a_folder_that_an_overlay_writes_to_on_ext4() {
    an_overlay_is_refused(EXT4);
}

#[test]
fn the_disk_path_is_refused_in_a_folder_that_an_overlay_writes_to_on_xfs() {
    an_overlay_is_refused(XFS);
}

/// The overlay names its folder otherwise than extentd does.
/// What makes the name hold is kept until the overlay has gone.
fn an_overlay_is_refused_by_another_name<T>(name: impl FnOnce(&Path) -> (String, T)) {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let folders = Folders::new(&host);
    let (name, _holds) = name(&host.root());
    if let Some(_overlay) = Overlay::by(&folders, &mut folders.mount_by(&name)) {
        is_refused(&host.path("upper/image"), "overlay");
    }
}

#[test]
fn an_overlay_whose_folder_is_named_from_where_it_was_mounted_is_seen() {
    an_overlay_is_refused_by_another_name(|_| (".".to_owned(), ()));
}

#[test]
fn an_overlay_whose_folder_is_named_on_a_detour_is_seen() {
    an_overlay_is_refused_by_another_name(|root| (format!("{}/lower/..", root.display()), ()));
}

#[test]
fn an_overlay_whose_folder_is_named_by_a_link_is_seen() {
    an_overlay_is_refused_by_another_name(|root| {
        let link = root.parent().unwrap().join("link");
        std::os::unix::fs::symlink(root, &link).unwrap();
        (link.display().to_string(), ())
    });
}

/// A folder that is mounted once more.
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn an_overlay_whose_folder_is_named_by_another_mount_is_seen() {
    an_overlay_is_refused_by_another_name(|root| {
        let at = root.parent().unwrap().join("bound");
        std::fs::create_dir(&at).unwrap();
        mount_bind(root, &at).unwrap();
        (at.display().to_string(), Bound(at))
    });
}

/// An image in a folder that an overlay may write to, on the disk path.
struct InUse {
    guest: Guest,
    served: Served,
    path: PathBuf,
    folders: Folders,
    /// Taken down last.
    host: Mounted,
}

impl InUse {
    fn start(made: Made) -> Option<InUse> {
        InUse::start_in(made, "upper")
    }

    /// With the image in a folder of an overlay.
    fn start_in(made: Made, folder: &str) -> Option<InUse> {
        let host = Mounted::new(made)?;
        let folders = Folders::new(&host);
        let image = Image::written(&host, BYTES);
        let path = host.path(folder).join("image");
        std::fs::rename(&image.path, &path).unwrap();
        let served = Served::start(&path, &[], &[("EXTENTD_TEST_LEASE_DELAY", "50")]);
        let mut guest = Guest::attach(&served);
        served.wait_disk();
        guest.load(&served, 0..SECTORS);
        Some(InUse {
            folders,
            path,
            served,
            guest,
            host,
        })
    }

    /// Waits until the path has been left for a reason, but not for long.
    fn is_left(&self, since: Instant, reason: &str) -> Info {
        let left = |now: &Info| !now.on_disk && now.reason.contains(reason);
        let info = self.served.wait("the path to be left", left);
        let took = since.elapsed();
        eprintln!("left after {took:?}: {}", info.reason);
        info
    }
}

#[test]
fn an_overlay_that_is_mounted_ends_the_disk_path_until_it_has_gone() {
    let Some(mut in_use) = InUse::start(EXT4) else {
        return;
    };
    let start = Instant::now();
    let Some(overlay) = Overlay::new(&in_use.folders) else {
        return;
    };
    let left = in_use.is_left(start, "overlay");
    let mut lane = in_use.guest.lane(0);
    lane.fill(0..STEP, MEANWHILE);
    assert_eq!(lane.see(0..STEP), all(MEANWHILE, STEP));
    assert_eq!(in_use.served.info().entries, left.entries);
    drop(overlay);
    in_use.served.wait_entries(left.entries + 1);
    assert_eq!(in_use.guest.lane(0).see(0..STEP), all(MEANWHILE, STEP));
}

/// Whoever opens the image through an overlay has to wait for it.
fn opening_asks_for_the_lease(folder: &str) {
    let Some(mut in_use) = InUse::start_in(EXT4, folder) else {
        return;
    };
    let entries = in_use.served.info().entries;
    let merged = in_use.folders.merged();
    let opens: [fn(&Path); 2] = [
        |path| drop(File::open(path).unwrap()),
        |path| drop(OpenOptions::new().append(true).open(path).unwrap()),
    ];
    for (opened, open) in (1..).zip(opens) {
        let hidden = || {
            own_mounts().unwrap();
            let _overlay = Overlay::new(&in_use.folders)?;
            open(&merged);
            Some(())
        };
        let done = std::thread::scope(|scope| scope.spawn(hidden).join().unwrap());
        if done.is_none() {
            return;
        }
        in_use.served.wait_entries(entries + opened);
        in_use.guest.load(&in_use.served, 0..SECTORS);
        assert_eq!(in_use.guest.lane(0).see(0..SECTORS), all(FIRST, SECTORS));
    }
}

#[test]
fn an_image_is_left_to_whoever_opens_it_in_the_upper_layer_of_an_overlay() {
    opening_asks_for_the_lease("upper");
}

#[test]
fn an_image_is_left_to_whoever_opens_it_in_the_lower_layer_of_an_overlay() {
    opening_asks_for_the_lease("lower");
}

/// Cuts an image past the lease; `None`, with the reason printed, where the
/// host has no such way.
type Cut = fn(&InUse) -> Option<()>;

/// Through an overlay that nobody else sees, as in a container: it goes with
/// the thread whose mounts are its own.
fn by_hidden_overlay(in_use: &InUse) -> Option<()> {
    let folders = &in_use.folders;
    let hidden = || {
        own_mounts().unwrap();
        cut_by_overlay(folders)
    };
    std::thread::scope(|scope| scope.spawn(hidden).join().unwrap())
}

/// Through an overlay that is mounted just before.
fn by_new_overlay(in_use: &InUse) -> Option<()> {
    cut_by_overlay(&in_use.folders)
}

fn cut_by_overlay(folders: &Folders) -> Option<()> {
    let _overlay = Overlay::new(folders)?;
    truncate(&folders.merged(), LEFT as u64).unwrap();
    Some(())
}

/// Through extentd's own description, as by whoever debugs it.
fn by_own_description(in_use: &InUse) -> Option<()> {
    let own = own(&Site {
        host: &in_use.host,
        image: &in_use.path,
        served: &in_use.served,
    });
    rustix::fs::ftruncate(&own, LEFT as u64).unwrap();
    Some(())
}

/// Makes the image and the disk as long as each other again.
type Mend = fn(&InUse);

fn lengthen(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(BYTES as u64).unwrap();
}

/// The image gets its old length, and extentd is told to look.
fn by_signal(in_use: &InUse) {
    lengthen(&in_use.path);
    in_use.served.daemon.signal(libc::SIGHUP).unwrap();
}

/// The disk follows the image, and then both get their old length.
fn by_resizing(in_use: &InUse) {
    in_use.served.resize(LEFT);
    in_use.served.wait_size(LEFT);
    in_use.served.resize(BYTES);
    in_use.served.wait_size(BYTES);
}

/// The statuses of writes all over a range.
fn write_all(guest: &mut Guest, sectors: std::ops::Range<usize>, value: Value) -> Vec<u8> {
    let mut lane = guest.lane(0);
    let parts = sectors.step_by(STEP);
    parts.map(|at| lane.write(at..at + STEP, value)).collect()
}

fn a_cut_is_noticed(made: Made, cut: Cut, mend: Mend) {
    let Some(mut in_use) = InUse::start(made) else {
        return;
    };
    let entries = in_use.served.info().entries;
    let start = Instant::now();
    if cut(&in_use).is_none() {
        return;
    }
    in_use.is_left(start, "shorter");
    assert_eq!(in_use.served.info().entries, entries);

    // What was cut off belongs to others now.
    let mut others = Others::default();
    sync(&in_use.host);
    others.occupy(&in_use.host, "new");
    let within = write_all(&mut in_use.guest, 0..END, MEANWHILE);
    assert!(within.iter().all(|&status| status == status::OK));
    let beyond = write_all(&mut in_use.guest, END..SECTORS, MEANWHILE);
    eprintln!("beyond the end: {:?}", &beyond[..2]);
    assert!(others.spoilt().is_empty());
    assert_eq!(in_use.guest.lane(0).see(0..END), all(MEANWHILE, END));

    others.remove_all();
    mend(&in_use);
    in_use.served.wait_entries(entries + 1);
    let written = write_all(&mut in_use.guest, 0..SECTORS, LATER);
    assert!(written.iter().all(|&status| status == status::OK));
    in_use.guest.lane(0).flush();
    in_use.guest.load(&in_use.served, 0..SECTORS);
    assert_eq!(in_use.guest.lane(0).see(0..SECTORS), all(LATER, SECTORS));
}

#[test]
fn an_image_that_a_hidden_overlay_has_cut_is_noticed_on_ext4() {
    a_cut_is_noticed(SMALL, by_hidden_overlay, by_signal);
}

#[test]
fn an_image_that_a_hidden_overlay_has_cut_is_noticed_on_xfs() {
    a_cut_is_noticed(XFS, by_hidden_overlay, by_resizing);
}

#[test]
fn an_image_that_a_new_overlay_has_cut_is_noticed() {
    a_cut_is_noticed(SMALL, by_new_overlay, by_resizing);
}

#[test]
fn an_image_that_was_cut_through_extentds_own_description_is_noticed() {
    a_cut_is_noticed(SMALL, by_own_description, by_resizing);
}

#[test]
fn reads_beyond_a_cut_fail_and_others_are_as_before() {
    let Some(mut in_use) = InUse::start(EXT4) else {
        return;
    };
    let start = Instant::now();
    by_own_description(&in_use);
    in_use.is_left(start, "shorter");
    let mut lane = in_use.guest.lane(0);
    assert_eq!(lane.see(0..END), all(FIRST, END));
    let at = crate::served::QUEUE_DATA;
    let done = lane.driver.read(END as u64, at, 4096).unwrap();
    assert_eq!(done.status, status::IOERR);
}
