//! The file system is frozen, as for a snapshot of the disk below it. Raw
//! writes do not notice; an operator who takes the disk path away first has
//! all writes wait until the thaw.

use std::process::Command;
use std::time::Duration;

use extentd::operator::control::Request;
use extentd::options::config::IoPath;
use front_end::codes::status;
use front_end::{LIMIT, Op};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::Image;
use rig::model::{SECTOR, Value};
use rig::program::run;

use crate::lane::{STEP, all};
use crate::served::{Guest, Served};

/// Bytes of the image, and its sectors.
const BYTES: usize = 16 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// What the guest writes before the freeze and meanwhile.
const BEFORE: Value = 2;
const MEANWHILE: Value = 3;
/// Writes in flight over the freeze.
const WRITES: usize = 16;
/// What does not end in this time waits.
const A_WHILE: Duration = Duration::from_millis(700);

/// A file system that does not change until this is dropped.
pub struct Frozen<'a>(&'a Mounted);

impl<'a> Frozen<'a> {
    pub fn new(host: &'a Mounted) -> Frozen<'a> {
        run(Command::new("fsfreeze").arg("-f").arg(host.root())).unwrap();
        Frozen(host)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(self.0.root())).unwrap();
    }
}

fn writes_wait_for_the_thaw(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    let served = Served::start(&image.path, &[], &[]);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);
    guest.lane(0).fill(0..SECTORS, BEFORE);

    served.ask(&Request::IoPath { path: IoPath::File });
    assert!(!served.info().on_disk);
    let frozen = Frozen::new(&host);
    let mut lane = guest.lane(0);
    for slot in 0..WRITES {
        let first = slot * STEP;
        lane.put(slot, Op::Write, first..first + STEP, MEANWHILE);
    }
    lane.driver.publish().unwrap();
    assert!(lane.driver.wait(A_WHILE).is_err(), "a write did not wait");
    drop(frozen);
    for _ in 0..WRITES {
        assert_eq!(lane.driver.wait(LIMIT).unwrap().status, status::OK);
    }
    lane.flush();
    served.ask(&Request::IoPath { path: IoPath::Auto });
    served.wait_disk();
    let end = WRITES * STEP;
    let mut lane = guest.lane(0);
    assert_eq!(lane.see(0..end), all(MEANWHILE, end));
    assert_eq!(lane.see(end..SECTORS), all(BEFORE, SECTORS - end));
}

#[test]
fn with_the_disk_path_taken_away_writes_wait_until_ext4_is_thawed() {
    writes_wait_for_the_thaw(EXT4);
}

#[test]
fn with_the_disk_path_taken_away_writes_wait_until_xfs_is_thawed() {
    writes_wait_for_the_thaw(XFS);
}
