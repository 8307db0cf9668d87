//! Every way in which others may reach an image while the disk path is in use.
//! Each either asks for the lease, and then has to wait until extentd has left
//! the path, or changes nothing that matters. After each the guest goes on.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::files::read_direct;
use rig::image::{FIRST, Image};
use rig::model::{SECTOR, Value};

use crate::break_time::BreakTime;
use crate::disturb::Others;
use crate::lane::{all, look};
use crate::served::{Guest, Info, Served};
use crate::ways::{Lease, Site, WAYS};

/// Bytes of the image, and its sectors.
const BYTES: usize = 4 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// Sectors that the guest writes after each way; the others stay as they are.
const WRITTEN: usize = 512;
/// After how many seconds the kernel gives the image away if extentd does not.
const BREAK: u64 = 300;

struct InUse {
    guest: Guest,
    served: Served,
    image: Image,
    others: Others,
    /// What the guest has written last.
    value: Value,
    /// Taken down last.
    host: Mounted,
}

/// Somebody has a write lease on a file, and nobody asks for it.
fn is_leased(path: &Path) -> bool {
    let stat = std::fs::metadata(path).unwrap();
    let device = stat.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let name = format!("{major:02x}:{minor:02x}:{}", stat.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, "LEASE", "ACTIVE", "WRITE", _, file, ..] if file == name)
    })
}

impl InUse {
    fn start(made: Made) -> Option<InUse> {
        let host = Mounted::new(made)?;
        let mut others = Others::default();
        others.write(host.path("before"), 1 << 20).unwrap();
        let image = Image::written(&host, BYTES);
        others.write(host.path("after"), 1 << 20).unwrap();
        let delay = [("EXTENTD_TEST_LEASE_DELAY", "50")];
        let served = Served::start(&image.path, &[], &delay);
        let guest = Guest::attach(&served);
        served.wait_disk();
        let mut in_use = InUse {
            host,
            image,
            served,
            guest,
            others,
            value: FIRST,
        };
        in_use.go_on("nothing");
        Some(in_use)
    }

    fn site(&self) -> Site<'_> {
        Site {
            host: &self.host,
            image: &self.image.path,
            served: &self.served,
        }
    }

    /// The path was not left, and will not be for what has been done.
    fn is_as_before(&self, before: &Info) {
        assert!(is_leased(&self.image.path));
        let now = self.served.info();
        assert!(now.on_disk && now.entries == before.entries, "{now:?}");
    }

    /// The guest writes and reads by the disk; what others have stays theirs.
    fn go_on(&mut self, after: &str) {
        self.value += 1;
        self.guest.load(&self.served, 0..SECTORS);
        let before = self.served.info();
        let mut lane = self.guest.lane(0);
        lane.fill(0..WRITTEN, self.value);
        lane.flush();
        assert_eq!(lane.see(0..WRITTEN), all(self.value, WRITTEN), "{after}");
        let rest = SECTORS - WRITTEN;
        assert_eq!(lane.see(WRITTEN..SECTORS), all(FIRST, rest), "{after}");
        let now = self.served.info();
        assert_eq!(now.entries, before.entries, "after {after}");
        assert_eq!(now.file_operations, before.file_operations, "after {after}");
        assert!(now.disk_operations > before.disk_operations);
        assert!(self.others.spoilt().is_empty(), "after {after}");
    }
}

fn the_guest_goes_on_after_all_of_them(made: Made) {
    let Some(mut in_use) = InUse::start(made) else {
        return;
    };
    let Some(_long) = BreakTime::seconds(BREAK) else {
        return;
    };
    let mut last = in_use.served.info();
    for &(name, lease, go) in WAYS {
        let before = in_use.served.wait_disk();
        assert_eq!(before.entries, last.entries, "before {name}");
        assert!(is_leased(&in_use.image.path));
        let start = Instant::now();
        if go(&in_use.site()).is_none() {
            eprintln!("{name} was left out");
            continue;
        }
        let took = start.elapsed();
        eprintln!("{name}: {lease:?}, {took:?}");
        match lease {
            Lease::Breaks => {
                assert!(took.as_secs() < BREAK, "{name} took {took:?}");
                in_use.served.wait_entries(before.entries + 1);
            }
            Lease::Passes => in_use.is_as_before(&before),
        }
        in_use.go_on(name);
        last = in_use.served.info();
    }
    drop(in_use.guest);
    let seen = read_direct(&in_use.image.path);
    assert_eq!(
        look(0, &seen[..WRITTEN * SECTOR]),
        all(in_use.value, WRITTEN)
    );
}

#[test]
fn the_guest_goes_on_whatever_way_others_reach_the_image_on_ext4() {
    the_guest_goes_on_after_all_of_them(EXT4);
}

#[test]
fn the_guest_goes_on_whatever_way_others_reach_the_image_on_xfs() {
    the_guest_goes_on_after_all_of_them(XFS);
}

/// The image loses its last name, and stays the guest's.
fn an_image_needs_no_name(made: Made) {
    let Some(mut in_use) = InUse::start(made) else {
        return;
    };
    let before = in_use.served.wait_disk();
    std::fs::remove_file(&in_use.image.path).unwrap();
    in_use.others.occupy(&in_use.host, "new");
    in_use.go_on("the last name has gone");
    let now = in_use.served.info();
    assert!(now.on_disk && now.entries == before.entries, "{now:?}");
}

#[test]
fn an_image_without_a_name_stays_the_guests_on_ext4() {
    an_image_needs_no_name(EXT4);
}

#[test]
fn an_image_without_a_name_stays_the_guests_on_xfs() {
    an_image_needs_no_name(XFS);
}
