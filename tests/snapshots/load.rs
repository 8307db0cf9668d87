//! Snapshots under load: each is one moment's, stays what it is, and the disk
//! goes on by the disk path.

use std::time::Duration;

use mapping::difference::Comparison;
use rig::file_systems::{BTRFS, Made, XFS};
use rig::files::pattern;
use rig::operator::wait_path;

use crate::rig::{Disk, mounted};
use crate::stamps::{Stamps, USED, assert_one_moment, is_one_moment};

fn rounds() -> usize {
    let typed = std::env::var("EXTENTD_TEST_SNAPSHOTS").ok();
    typed.map_or(20, |typed| typed.parse().unwrap())
}

fn are_of_one_moment(made: Made, by_disk: bool) {
    let Some(mounted) = mounted(made) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(100);
    let mut taken = Vec::new();
    for round in 0..rounds() {
        if by_disk {
            // So that the next one finds the map in use.
            wait_path(&disk.control, "disk");
        }
        stamps.go_on(5);
        let name = format!("snapshot-{round:03}");
        let one = disk.snapshot(&name, &stamps);
        assert_eq!(one.done.status, Some(0), "{}", one.done.error);
        stamps.go_on(5);
        let bytes = disk.read(&name);
        assert_one_moment(&bytes, &one.before, &one.after);
        let quiet = usize::try_from(USED).unwrap();
        assert_eq!(bytes[quiet..], pattern(5, USED, quiet), "{name}");
        taken.push((name, bytes));
        // Most of them are in nobody's way any more.
        if taken.len() > 6 {
            let (oldest, _) = taken.remove(1);
            std::fs::remove_file(disk.snapshots.join(oldest)).unwrap();
        }
    }
    // What was written since has changed none.
    for (name, bytes) in &taken {
        assert!(disk.read(name) == *bytes, "{name} has changed");
    }
    let listed = disk.json(&["snapshots"]);
    let listed = listed["snapshots"].as_array().unwrap();
    let names: Vec<&str> = listed
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    let expected: Vec<&str> = taken.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, expected);
    assert_eq!(disk.names(), expected, "and nothing beside them");
    // Two of them differ where the guest wrote, and nowhere else.
    let open = |name: &str| {
        let file = std::fs::File::open(disk.snapshots.join(name)).unwrap();
        std::sync::Arc::new(file)
    };
    let ends = [taken.first(), taken.last()].map(|one| open(&one.unwrap().0));
    let comparison = Comparison::new(&ends[0], &ends[1]).unwrap();
    for one in comparison.differences() {
        assert!(one.unwrap().end() <= USED);
    }
    // And the disk has all that was acknowledged.
    let end = stamps.end();
    assert!(end.iter().all(|lane| lane.acknowledged == lane.sent));
    disk.daemon.signal(libc::SIGTERM).unwrap();
    disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
    assert_one_moment(&crate::rig::bytes(&disk.image), &end, &end);
}

#[test]
fn snapshots_by_the_disk_path_are_each_one_moments() {
    are_of_one_moment(XFS, true);
}

#[test]
fn snapshots_on_btrfs_are_each_one_moments() {
    are_of_one_moment(BTRFS, false);
}

#[test]
fn the_guest_waits_and_sees_no_error_and_the_answer_says_how_long() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(10);
    let done = disk.extentctl(&["snapshot", "one"]);
    assert!(
        done.out.starts_with("one: 8 MiB; requests waited for "),
        "{}",
        done.out
    );
    let answer = disk.json(&["snapshot", "two"]);
    let us = |key: &str| answer[key].as_u64().unwrap();
    assert!(us("drained_us") <= us("paused_us") && us("paused_us") <= us("took_us"));
    assert!(us("demanded_clones") + us("other_clones") > 0);
    assert_eq!(answer["size_bytes"], crate::rig::IMAGE);
    let text = disk.extentctl(&["snapshots"]).out;
    assert_eq!(text.lines().count(), 3, "{text}");
    // Whoever holds the disk keeps it.
    disk.extentctl(&["quiesce"]);
    let before = stamps.numbers();
    disk.json(&["snapshot", "three"]);
    assert!(disk.json(&["info"])["held_ms"].is_u64());
    assert_eq!(stamps.numbers(), before);
    disk.extentctl(&["resume"]);
    stamps.go_on(10);
}

/// Snapshots that have what came after their moment, with this measure left out.
fn are_torn_without(measure: &'static str) {
    let Some(mounted) = mounted(XFS) else { return };
    let left_out = [("EXTENTD_TEST_WITHOUT", measure)];
    let disk = Disk::without(&mounted, "vm", &[], &left_out);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(100);
    let mut torn = 0;
    for round in 0..rounds() {
        wait_path(&disk.control, "disk");
        stamps.go_on(5);
        let name = format!("snapshot-{round:03}");
        let one = disk.snapshot(&name, &stamps);
        assert_eq!(one.done.status, Some(0), "{}", one.done.error);
        stamps.go_on(5);
        torn += usize::from(!is_one_moment(&disk.read(&name), &one.before, &one.after));
        std::fs::remove_file(disk.snapshots.join(name)).unwrap();
    }
    println!("{torn} of {} are torn without {measure}", rounds());
    assert!(torn > 0);
}

#[test]
fn without_clone_before_write_snapshots_have_what_came_later() {
    are_torn_without("clonefirst");
}

#[test]
fn where_the_map_does_not_forget_what_is_cloned_snapshots_have_what_came_later() {
    are_torn_without("cloneforget");
}
