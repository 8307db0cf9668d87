//! What an image that is served has moved, when its sharing was ended: where it
//! is read afterwards, and what of it is there after a crash.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use front_end::Op;
use rig::attached::{Attached, DATA, assert_ok};
use rig::file_systems::{Made, Mounted, XFS};
use rig::files::{pattern, reflink};
use rig::operator::wait_path;
use rig::program::run;

use crate::making::guest;
use crate::rig::{Disk, IMAGE, mounted, remove};
use crate::stamps::USED;

/// Bytes of a request.
const STEP: u64 = 64 << 10;

fn operations(disk: &Disk) -> [u64; 2] {
    let stats = disk.json(&["stats"]);
    ["disk_operations", "file_operations"].map(|key| stats[key].as_u64().unwrap())
}

/// Requests that go by the disk, each of them: until then what `act` does goes
/// partly by the file, as the map has still to find out.
fn by_disk(disk: &Disk, mut act: impl FnMut()) {
    for _ in 0..500 {
        wait_path(&disk.control, "disk");
        let before = operations(disk);
        act();
        let after = operations(disk);
        if after[1] == before[1] && after[0] > before[0] {
            return;
        }
    }
    panic!("some go by the file for ever");
}

/// Reads all that the guest has not used; how many steps of it are wrong.
fn wrong(guest: &mut Attached) -> usize {
    let is_wrong = |&at: &u64| {
        let expected = pattern(5, at, usize::try_from(STEP).unwrap());
        guest.read(at / 512, u32::try_from(STEP).unwrap()) != expected
    };
    (USED..IMAGE)
        .step_by(usize::try_from(STEP).unwrap())
        .filter(is_wrong)
        .count()
}

/// Ends the sharing of what is read by the disk path, and gives the places where
/// that was away; how much is read wrong afterwards.
fn read_after(variables: &[(&'static str, &'static str)]) -> Option<usize> {
    let mounted = mounted(XFS)?;
    let disk = Disk::without(&mounted, "vm", &[], variables);
    let mut guest = guest(&disk);
    disk.json(&["snapshot", "one"]);
    by_disk(&disk, || assert_eq!(wrong(&mut guest), 0));
    let ended = disk.json(&["unshare", "--wait"]);
    assert_eq!(ended["left_bytes"], 0);
    // The only one that still has the old places: they are emptied.
    remove(&mounted, &disk.snapshots.join("one"), IMAGE);
    run(Command::new("fstrim").arg(mounted.root())).unwrap();
    let mut found = 0;
    by_disk(&disk, || found = wrong(&mut guest));
    Some(found)
}

#[test]
fn what_has_moved_is_read_where_it_is_and_not_where_it_was() {
    if let Some(wrong) = read_after(&[]) {
        assert_eq!(wrong, 0);
    }
}

#[test]
fn where_pieces_are_not_held_what_has_moved_is_read_where_it_was() {
    let without = [("EXTENTD_TEST_WITHOUT", "unsharehold")];
    if let Some(wrong) = read_after(&without) {
        println!("{wrong} of {} are wrong", (IMAGE - USED) / STEP);
        assert!(wrong > 0);
    }
}

/// A copy of a disk that is mounted.
struct Copied {
    device: String,
    root: PathBuf,
}

impl Copied {
    /// Of the disk under `host`, as it is at this instant: its file is in another
    /// XFS, which clones it.
    fn of(host: &Mounted) -> Self {
        let copy = host.backing().with_file_name("copy");
        let disk = File::open(host.backing()).unwrap();
        reflink(&disk, &File::create(&copy).unwrap()).unwrap();
        let mut losetup = Command::new("losetup");
        let device = run(losetup.args(["--find", "--show"]).arg(&copy)).unwrap();
        let copied = Self {
            device: device.trim().to_owned(),
            root: copy.with_extension("mnt"),
        };
        std::fs::create_dir_all(&copied.root).unwrap();
        // The original with the same UUID is mounted too.
        let mut mount = Command::new("mount");
        mount.args(["-o", "nouuid", &copied.device]);
        run(mount.arg(&copied.root)).unwrap();
        copied
    }

    fn read(&self, path: &Path) -> Vec<u8> {
        std::fs::read(self.root.join(path)).unwrap()
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.root));
        let _ = run(Command::new("losetup").args(["--detach", &self.device]));
    }
}

/// Writes raw where something has moved to, flushes, and crashes; how much of what
/// was flushed is lost.
fn lost_after(variables: &[(&'static str, &'static str)]) -> Option<usize> {
    let outer = mounted(Made {
        megabytes: 1024,
        ..XFS
    })?;
    let host = Mounted::new_in(XFS, &outer.root(), false)?;
    let disk = Disk::without(&host, "vm", &[], variables);
    let mut guest = guest(&disk);
    disk.json(&["snapshot", "one"]);
    assert_ok(guest.driver.flush().unwrap(), 1);
    let ended = disk.json(&["unshare", "--wait"]);
    assert_eq!(ended["left_bytes"], 0);
    // Only reads until all is known to the map, as a write by the file would be synced too.
    by_disk(&disk, || assert_eq!(wrong(&mut guest), 0));
    let before = operations(&disk);
    guest.memory.fill(DATA, 4096, 7).unwrap();
    for at in (USED..IMAGE).step_by(usize::try_from(STEP).unwrap()) {
        assert_ok(guest.driver.write(at / 512, DATA, 4096).unwrap(), 1);
    }
    assert_eq!(operations(&disk)[1], before[1], "by the file");
    assert_ok(guest.driver.run(Op::Flush, 0, &[]).unwrap(), 1);
    let bytes = Copied::of(&host).read(Path::new("vm/image"));
    let steps = (USED..IMAGE).step_by(usize::try_from(STEP).unwrap());
    let lost = steps.filter(|&at| {
        let at = usize::try_from(at).unwrap();
        bytes[at..at + 4096] != [7; 4096]
    });
    Some(lost.count())
}

#[test]
fn what_was_flushed_where_something_moved_to_is_there_after_a_crash() {
    if let Some(lost) = lost_after(&[]) {
        assert_eq!(lost, 0);
    }
}

#[test]
fn where_a_flush_does_not_know_of_moves_a_crash_loses_what_was_flushed() {
    let without = [("EXTENTD_TEST_WITHOUT", "unsharecount")];
    if let Some(lost) = lost_after(&without) {
        println!("{lost} of {} are lost", (IMAGE - USED) / STEP);
        assert!(lost > 0);
    }
}
