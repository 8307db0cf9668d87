//! While one is being made: what is told, what is refused, and what gives it up.

use std::time::Duration;

use extentd::protocol::client::Client;
use front_end::{Like, Wanted, limit};
use rig::attached::Attached;
use rig::file_systems::{Mounted, XFS};

use crate::rig::{Disk, Done, IMAGE, mounted};
use crate::stamps::{Numbers, Stamps, assert_one_moment};

/// Nothing is cloned but what is demanded, for longer than any test takes.
const STANDS: &[(&str, &str)] = &[("EXTENTD_TEST_CLONE_REST", "600000")];

pub fn disk(mounted: &Mounted) -> Disk {
    Disk::without(mounted, "vm", &[], STANDS)
}

pub fn guest(disk: &Disk) -> Attached {
    Attached::new(&disk.socket, Like::Qemu, Wanted::default())
}

pub fn next(events: &mut Client) -> serde_json::Value {
    events.next_event(Some(limit())).unwrap().unwrap()
}

/// Calls `act` while a snapshot named "one" is being made; what came of that.
pub fn while_made(disk: &Disk, act: impl FnOnce()) -> Done {
    let mut events = disk.events();
    let done = std::thread::scope(|scope| {
        let asked = scope.spawn(|| disk.extentctl(&["snapshot", "one"]));
        let begun = next(&mut events);
        assert_eq!(
            (&begun["kind"], &begun["name"]),
            (&"snapshot-begun".into(), &"one".into())
        );
        act();
        asked.join().unwrap()
    });
    if let Ok(Some(ended)) = events.next_event(Some(Duration::from_secs(5))) {
        assert_eq!(ended["kind"], "snapshot-failed");
        assert_eq!(ended["name"], "one");
    }
    done
}

pub fn refused(done: &Done, says: &str) {
    assert_eq!((done.status, done.out.as_str()), (Some(1), ""));
    assert!(done.error.contains(says), "{}", done.error);
    assert_eq!(done.error.lines().count(), 1, "{}", done.error);
}

#[test]
fn one_that_is_being_made_is_told_of_keeps_others_away_and_can_be_cancelled() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    let stamps = Stamps::start(&disk.socket);
    let cancelled = while_made(&disk, || {
        // What is demanded is cloned, and everything else is answered.
        stamps.go_on(200);
        let making = &disk.json(&["info"])["snapshot"];
        assert_eq!(
            (&making["name"], &making["size_bytes"]),
            (&"one".into(), &IMAGE.into())
        );
        let cloned = making["cloned_bytes"].as_u64().unwrap();
        assert!((64 << 10..IMAGE).contains(&cloned), "{cloned}");
        assert!(making["waited_requests"].as_u64().unwrap() > 0);
        let text = disk.extentctl(&["snapshots"]).out;
        assert!(text.contains("one is being made"), "{text}");
        refused(&disk.extentctl(&["snapshot", "two"]), "one is being made");
        let less = (IMAGE / 2).to_string();
        refused(
            &disk.extentctl(&["resize", &less]),
            "cannot become shorter while a snapshot is made",
        );
        let more = (2 * IMAGE).to_string();
        assert_eq!(disk.extentctl(&["resize", &more]).status, Some(0));
        let done = disk.extentctl(&["snapshot", "--cancel"]);
        assert_eq!(
            (done.status, done.out.as_str()),
            (Some(0), "one is given up\n")
        );
    });
    refused(
        &cancelled,
        "snapshot one: given up: an operator has cancelled it",
    );
    refused(
        &disk.extentctl(&["snapshot", "--cancel"]),
        "none is being made",
    );
    assert!(disk.names().is_empty());
    assert!(disk.json(&["info"])["snapshot"].is_null());
    stamps.go_on(10);
    assert_eq!(
        disk.extentctl(&["resize", &IMAGE.to_string()]).status,
        Some(0)
    );
}

/// It ends early, and nothing is left of it but the disk.
fn is_given_up(disk: &Disk, end: impl FnOnce(), says: &str) {
    let done = while_made(disk, end);
    refused(&done, says);
    assert!(disk.names().is_empty(), "{:?}", disk.names());
}

fn all_is_there(disk: &Disk, end: &[Numbers]) {
    assert_one_moment(&rig::files::read_direct(&disk.image), end, end);
}

#[test]
fn a_guest_that_goes_takes_its_snapshot_along() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(10);
    let mut end = Vec::new();
    let says = "others may write the image now";
    is_given_up(&disk, || end = stamps.end(), says);
    all_is_there(&disk, &end);
}

#[test]
fn where_the_file_system_refuses_there_is_none_and_the_guest_goes_on() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    let mut guest = guest(&disk);
    let at = (IMAGE / 2 + (1 << 20)) / 512;
    let refusal = while_made(&disk, || {
        // Somebody cuts what is still to be cloned.
        let image = std::fs::File::options()
            .write(true)
            .open(&disk.image)
            .unwrap();
        image.set_len(IMAGE / 2).unwrap();
        drop(image);
        // It waits for its part, and then for nothing any more.
        guest.write(at, &[7; 4096]);
    });
    refused(&refusal, "snapshot one: Invalid argument");
    assert!(disk.names().is_empty(), "{:?}", disk.names());
    assert_eq!(guest.read(at, 4096), [7; 4096]);
    guest.write(0, &[8; 512]);
}

#[test]
fn a_stop_leaves_nothing_of_one() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = disk(&mounted);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(10);
    let mut events = disk.events();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| disk.extentctl(&["snapshot", "one"]));
        next(&mut events);
        disk.daemon.signal(libc::SIGTERM).unwrap();
        assert_ne!(asked.join().unwrap().status, Some(0));
    });
    disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
    let end = stamps.numbers();
    stamps.lose();
    assert!(disk.names().is_empty(), "{:?}", disk.names());
    all_is_there(&disk, &end);
}

#[test]
fn a_new_binary_has_nothing_of_one() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = disk(&mounted);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(10);
    let mut events = disk.events();
    let pid = disk.json(&["info"])["pid"].clone();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| disk.extentctl(&["snapshot", "one"]));
        next(&mut events);
        disk.daemon.signal(libc::SIGUSR2).unwrap();
        assert_ne!(asked.join().unwrap().status, Some(0));
    });
    stamps.lose();
    let taken = |line: &str| line.contains("taken over after");
    disk.daemon.wait_stderr(taken).unwrap();
    let info = rig::operator::info(&disk.control);
    assert!(info["snapshot"].is_null());
    assert_eq!(info["pid"], pid);
    assert!(disk.names().is_empty(), "{:?}", disk.names());
    // Without a guest all of it is cloned at once.
    let done = disk.json(&["snapshot", "one"]);
    assert_eq!(
        (&done["demanded_clones"], &done["other_clones"]),
        (&0.into(), &0.into())
    );
    assert_eq!(disk.names(), ["one"]);
}

#[test]
fn an_image_of_any_length_may_grow_while_it_is_cloned() {
    let Some(mounted) = mounted(XFS) else { return };
    for odd in [512, 4096, 65536] {
        let length = IMAGE - odd;
        let name = format!("vm-{odd}");
        let rests = &[("EXTENTD_TEST_CLONE_REST", "100")];
        let mut disk = Disk::without(&mounted, &name, &[], rests);
        disk.daemon.signal(libc::SIGTERM).unwrap();
        disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
        let image = std::fs::File::options()
            .write(true)
            .open(&disk.image)
            .unwrap();
        image.set_len(length).unwrap();
        drop(image);
        let before = rig::files::read_all(&std::fs::File::open(&disk.image).unwrap());
        disk.start_again();
        let mut guest = guest(&disk);
        let mut events = disk.events();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| disk.json(&["snapshot", "one"]));
            assert_eq!(next(&mut events)["kind"], "snapshot-begun");
            let more = (IMAGE + (1 << 20)).to_string();
            assert_eq!(disk.extentctl(&["resize", &more]).status, Some(0));
            // What was there, across the old end, and behind it.
            for at in [0, length - 512, length, IMAGE] {
                guest.write(at / 512, &[7; 1024]);
            }
            assert_eq!(asked.join().unwrap()["size_bytes"], length);
        });
        let snapshot = std::fs::read(disk.snapshots.join("one")).unwrap();
        assert!(snapshot == before, "{odd}");
        drop(guest);
    }
}
