//! What else may happen while a snapshot is made: no room on the file system, a
//! migration, a pause, and what other operators ask.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use front_end::codes::{feature, status};
use front_end::{Buffer, Op, limit};
use rig::attached::{Attached, DATA};
use rig::file_systems::{BTRFS, Made, Mounted, XFS, occupy, sync};
use rig::operator::wait_info;
use rig::program::run;

use crate::making::{disk, guest, next, refused, while_made};
use crate::rig::{Disk, IMAGE, extentctl, mounted};
use crate::stamps::{Stamps, assert_one_moment};

/// Bytes of what is cloned first, though nobody waits for it.
const FIRST: u64 = 64 << 10;

/// Nothing more can be written there that needs a place.
fn fill(host: &Mounted) {
    sync(host);
    drop(occupy(host, "filler"));
    sync(host);
}

fn make_room(host: &Mounted) {
    std::fs::remove_file(host.path("filler")).unwrap();
    sync(host);
}

/// Gives each block of an image that nobody uses an extent of its own.
fn cut_up(image: &Path) {
    let other = image.with_extension("other");
    let mut cp = Command::new("cp");
    run(cp.arg("--reflink=always").arg(image).arg(&other)).unwrap();
    let file = File::options().read(true).write(true).open(image).unwrap();
    for at in (4096..IMAGE).step_by(8192) {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, at).unwrap();
        file.write_all_at(&block, at).unwrap();
    }
    file.sync_all().unwrap();
    std::fs::remove_file(other).unwrap();
}

/// Sends a write of 4 KiB.
fn send(guest: &mut Attached, at: u64, byte: u8) {
    let memory = DATA + at % (1 << 20);
    guest.memory.fill(memory, 4096, byte).unwrap();
    let data = [Buffer::readable(memory, 4096)];
    assert!(guest.driver.submit(Op::Write, at / 512, &data, at));
    guest.driver.publish().unwrap();
}

/// The write at `at` is the next that ends, well.
fn ends(guest: &mut Attached, at: u64) {
    let done = guest.driver.wait(limit()).unwrap();
    assert_eq!((done.tag, done.status), (at, status::OK));
}

fn wait_held(disk: &Disk, count: u64) {
    wait_info(&disk.control, "held requests", |info| {
        info["disk"]["held_requests"] == count
    });
}

/// What is shared with the snapshot finds no other place: the write waits, all
/// else goes on, and when the snapshot is given up there is room.
fn a_write_without_room(made: Made) {
    let Some(mounted) = mounted(made) else { return };
    let disk = disk(&mounted);
    let mut guest = guest(&disk);
    let cancelled = while_made(&disk, || {
        wait_info(&disk.control, "the first piece", |info| {
            info["snapshot"]["cloned_bytes"].as_u64() >= Some(FIRST)
        });
        fill(&mounted);
        send(&mut guest, 0, 7);
        wait_held(&disk, 1);
        assert_eq!(guest.driver.pop().unwrap(), None);
        let making = &disk.json(&["info"])["snapshot"];
        assert_eq!(making["name"], "one", "it is not given up for that");
        assert_eq!(disk.extentctl(&["snapshot", "--cancel"]).status, Some(0));
        ends(&mut guest, 0);
        wait_held(&disk, 0);
    });
    refused(&cancelled, "an operator has cancelled it");
    assert!(disk.names().is_empty(), "{:?}", disk.names());
    assert_eq!(guest.read(0, 4096), [7; 4096]);
    // What was not cloned was never in the way.
    guest.write(IMAGE / 1024, &[8; 512]);
}

#[test]
fn a_write_that_finds_no_room_waits_and_is_done_once_the_snapshot_is_given_up() {
    a_write_without_room(XFS);
}

#[test]
fn where_there_is_no_room_for_the_clone_it_is_given_up_and_the_guest_goes_on() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    // So that it is cloned in the smallest pieces.
    cut_up(&disk.image);
    let mut guest = guest(&disk);
    let mut wrote = Vec::new();
    let failed = while_made(&disk, || {
        fill(&mounted);
        // Each piece is further away than one that was cloned, until the file
        // system has no room for what it keeps of them.
        for at in (1 << 20..IMAGE).step_by(256 << 10) {
            send(&mut guest, at, 9);
            wrote.push(at);
        }
        let start = Instant::now();
        while disk.json(&["info"])["snapshot"].is_object() {
            assert!(start.elapsed() < limit(), "{:#}", disk.json(&["info"]));
        }
    });
    refused(&failed, "make room on the file system");
    assert!(disk.names().is_empty(), "{:?}", disk.names());
    for _ in &wrote {
        let done = guest.driver.wait(limit()).unwrap();
        assert_eq!(done.status, status::OK);
    }
    for at in wrote {
        assert_eq!(guest.read(at / 512, 4096), [9; 4096]);
    }
}

#[test]
fn a_guest_that_migrates_takes_its_snapshot_along_and_its_pages_are_logged() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    let mut guest = guest(&disk);
    guest.write(0, &[1; 4096]);
    let log = tempfile::tempfile_in("/dev/shm").unwrap();
    log.set_len(4096).unwrap();
    let given_up = while_made(&disk, || {
        let connection = &guest.session.connection;
        connection.set_log_base(&log, 4096, 0).unwrap();
        let features = guest.session.features | feature::LOG_ALL;
        connection.set_features(features).unwrap();
        // A change of what is not cloned, and a read into a page of its own.
        guest.write(IMAGE / 1024, &[2; 4096]);
        let page = DATA + (1 << 20);
        let done = guest.driver.read(IMAGE / 1024, page, 4096).unwrap();
        assert_eq!(done.status, status::OK);
        let bits = rig::files::read_all(&log);
        let page = usize::try_from(page / 4096).unwrap();
        assert!(bits[page / 8] & (1 << (page % 8)) != 0, "it is marked");
        let base = guest.session.stop(1).unwrap()[0];
        assert_eq!(base, u32::from(guest.driver.ring().next_avail()));
    });
    refused(&given_up, "others may write the image now");
    assert!(disk.names().is_empty(), "{:?}", disk.names());
    // It failed there and goes on here.
    let rings = [guest.driver.ring()];
    guest.session.start(&guest.memory, &rings).unwrap();
    assert_eq!(guest.read(IMAGE / 1024, 4096), [2; 4096]);
    guest.write(0, &[3; 4096]);
}

#[test]
fn a_disk_that_is_held_still_leaves_a_snapshot_to_be_made() {
    for made in [XFS, BTRFS] {
        let Some(mounted) = mounted(made) else { return };
        let rests = &[("EXTENTD_TEST_CLONE_REST", "100")];
        let disk = Disk::without(&mounted, "vm", &[], rests);
        let stamps = Stamps::start(&disk.socket);
        stamps.go_on(20);
        let mut events = disk.events();
        let before = stamps.numbers();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| disk.json(&["snapshot", "one"]));
            assert_eq!(next(&mut events)["kind"], "snapshot-begun");
            let after = stamps.numbers();
            stamps.go_on(5);
            assert_eq!(disk.extentctl(&["quiesce"]).status, Some(0));
            let still = stamps.numbers();
            // Others ask meanwhile, and it is whole before the disk goes on.
            disk.json(&["stats"]);
            disk.json(&["map"]);
            asked.join().unwrap();
            assert_eq!(stamps.numbers(), still);
            assert!(disk.json(&["info"])["held_ms"].is_u64());
            assert_eq!(disk.extentctl(&["resume"]).status, Some(0));
            stamps.go_on(20);
            assert_one_moment(&disk.read("one"), &before, &after);
        });
    }
}

#[test]
fn a_guest_that_is_paused_leaves_a_snapshot_to_be_made() {
    let Some(mounted) = mounted(XFS) else { return };
    let rests = &[("EXTENTD_TEST_CLONE_REST", "100")];
    let disk = Disk::without(&mounted, "vm", &[], rests);
    let mut guest = guest(&disk);
    guest.write(0, &[1; 4096]);
    let mut events = disk.events();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| disk.json(&["snapshot", "one"]));
        assert_eq!(next(&mut events)["kind"], "snapshot-begun");
        guest.write(0, &[2; 4096]);
        guest.session.enable(false).unwrap();
        guest.session.connection.get_features().unwrap();
        asked.join().unwrap();
        guest.session.enable(true).unwrap();
        guest.write(0, &[3; 4096]);
    });
    assert_eq!(disk.read("one")[..4096], [1; 4096]);
    // Or it is taken of a guest that is paused, which goes on before it is whole.
    let middle = IMAGE / 1024;
    guest.write(middle, &[4; 4096]);
    guest.session.enable(false).unwrap();
    guest.session.connection.get_features().unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| disk.json(&["snapshot", "two"]));
        while next(&mut events)["name"] != "two" {}
        guest.session.enable(true).unwrap();
        guest.write(middle, &[5; 4096]);
        assert!(disk.json(&["info"])["snapshot"].is_object());
        assert_ne!(asked.join().unwrap()["demanded_clones"], 0);
    });
    let at = usize::try_from(middle * 512).unwrap();
    let bytes = disk.read("two");
    assert_eq!((bytes[0], bytes[at], bytes[at + 4095]), (3, 4, 4));
}

#[test]
fn on_a_full_file_system_none_begins_and_removing_one_lets_held_requests_go_on() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = Disk::new(&mounted, "vm", &[]);
    let mut guest = guest(&disk);
    guest.write(0, &[1; 4096]);
    disk.json(&["snapshot", "first"]);
    fill(&mounted);
    send(&mut guest, 0, 2);
    wait_held(&disk, 1);
    let none = disk.extentctl(&["snapshot", "second"]);
    refused(&none, "make room on the file system");
    assert_eq!(disk.names(), ["first"]);
    assert_eq!(guest.driver.pop().unwrap(), None);
    assert_eq!(disk.read("first")[..4096], [1; 4096]);
    std::fs::remove_file(disk.snapshots.join("first")).unwrap();
    ends(&mut guest, 0);
    assert_eq!(guest.read(0, 4096), [2; 4096]);
    make_room(&mounted);
    disk.json(&["snapshot", "second"]);
    assert_eq!(disk.read("second")[..4096], [2; 4096]);
}

#[test]
fn what_other_operators_ask_meanwhile_is_answered_or_refused() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(20);
    let cancelled = while_made(&disk, || {
        stamps.go_on(20);
        let image = disk.image.to_str().unwrap();
        let copy = disk.snapshots.join("copy");
        refused(&extentctl(&[], &["unshare", image]), "stop who uses it");
        let clone = extentctl(&[], &["clone", image, copy.to_str().unwrap()]);
        refused(&clone, "give a snapshot of it");
        assert_eq!(
            disk.extentctl(&["limits", "--iops", "100000"]).status,
            Some(0)
        );
        assert_eq!(disk.extentctl(&["retry"]).status, Some(0));
        assert_eq!(
            disk.extentctl(&["on-error", "--enospc", "report"]).status,
            Some(0)
        );
        assert_eq!(disk.extentctl(&["io-path", "file"]).status, Some(0));
        stamps.go_on(20);
        assert_eq!(disk.extentctl(&["io-path", "auto"]).status, Some(0));
        stamps.go_on(20);
        assert_eq!(disk.extentctl(&["snapshot", "--cancel"]).status, Some(0));
    });
    refused(&cancelled, "an operator has cancelled it");
    let end = stamps.end();
    assert_one_moment(&rig::files::read_direct(&disk.image), &end, &end);
}
