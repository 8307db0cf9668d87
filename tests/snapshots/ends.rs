//! What is left where it ends early.

use std::time::{Duration, Instant};

use rig::file_systems::XFS;

use crate::rig::{Disk, mounted};
use crate::stamps::{Stamps, assert_one_moment};

/// Kills it at times from before a snapshot is asked for until it was mostly answered.
fn survive_kills(variables: &[(&'static str, &'static str)]) {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::without(&mounted, "vm", &[], variables);
    let (mut whole, mut none) = (0, 0);
    let stamps = Stamps::start(&disk.socket);
    let begun = Instant::now();
    disk.json(&["snapshot", "first"]);
    let usual = begun.elapsed();
    drop(stamps);
    for round in 0..20_u32 {
        let stamps = Stamps::start_at(&disk.socket, u64::from(round + 1) << 32);
        stamps.go_on(20);
        let name = format!("snapshot-{round}");
        let before = stamps.numbers();
        let asking = std::thread::scope(|scope| {
            let asking = scope.spawn(|| disk.extentctl(&["snapshot", &name]));
            // The subject is the instant.
            std::thread::sleep(usual * round / 16);
            disk.daemon.signal(libc::SIGKILL).unwrap();
            asking.join().unwrap()
        });
        disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
        let after = stamps.numbers();
        stamps.lose();
        // What was acknowledged is there, whatever was shared when it was written.
        assert_one_moment(&rig::files::read_direct(&disk.image), &after, &after);
        let there = disk.names().contains(&name);
        assert!(there || asking.status != Some(0), "{}", asking.out);
        if there {
            whole += 1;
            assert_one_moment(&disk.read(&name), &before, &after);
        } else {
            none += 1;
        }
        disk.start_again();
        // What was not finished has gone.
        let left = disk.names();
        assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    }
    println!("{whole} whole, {none} none");
}

#[test]
fn a_kill_at_any_time_leaves_a_whole_snapshot_or_none() {
    survive_kills(&[]);
}

#[test]
fn a_kill_while_most_is_not_cloned_yet_leaves_a_whole_snapshot_or_none() {
    survive_kills(&[("EXTENTD_TEST_CLONE_REST", "40")]);
}

#[test]
fn what_another_process_makes_is_left_alone_and_what_was_left_is_removed() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let left = disk.snapshots.join(".left.part");
    std::fs::write(&left, b"half").unwrap();
    let made = disk.snapshots.join(".made.part");
    std::fs::write(&made, b"half").unwrap();
    let other = std::fs::File::open(&made).unwrap();
    other.lock().unwrap();
    let mine = disk.snapshots.join(".mine");
    std::fs::write(&mine, b"a file of the operator's").unwrap();
    disk.daemon.signal(libc::SIGTERM).unwrap();
    disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
    disk.start_again();
    assert_eq!(disk.names(), [".made.part", ".mine"]);
    let refused = disk.extentctl(&["snapshot", "made"]);
    assert_eq!(refused.status, Some(1));
    drop(other);
    // Whoever made it has gone: the name is free.
    disk.json(&["snapshot", "made"]);
    assert_eq!(disk.names(), [".mine", "made"]);
}
