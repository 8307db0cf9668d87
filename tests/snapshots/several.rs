//! Several disks at one moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use front_end::{Like, Wanted};
use rig::attached::Attached;
use rig::file_systems::XFS;

use crate::rig::{Disk, extentctl, mounted};

/// The number at the beginning of a snapshot.
fn number(disk: &Disk, name: &str) -> u64 {
    let bytes = disk.read(name);
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn snapshots_of_several_disks_are_of_one_moment() {
    let Some(mounted) = mounted(XFS) else { return };
    let disks = ["first", "second"].map(|name| Disk::new(&mounted, name, &[]));
    let mut guests = disks
        .each_ref()
        .map(|disk| Attached::new(&disk.socket, Like::Qemu, Wanted::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
    // Each number goes to the first, and when that has it to the second.
    let guest = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let next = counted.load(Ordering::Relaxed) + 1;
            for guest in &mut guests {
                guest.write(0, &next.to_le_bytes().repeat(64));
            }
            counted.store(next, Ordering::Release);
        }
    });
    let controls = disks.each_ref().map(|disk| disk.control.as_path());
    for round in 0..10 {
        let before = done.load(Ordering::Acquire);
        let name = format!("snapshot-{round}");
        let taken = extentctl(&controls, &["snapshot", &name]);
        assert_eq!(taken.status, Some(0), "{}", taken.error);
        let [first, second] = disks.each_ref().map(|disk| number(disk, &name));
        assert!(second >= before, "{second} of {before}");
        assert!(first == second || first == second + 1, "{first} {second}");
    }
    // One that cannot: none is taken, and all go on.
    let nowhere = std::path::Path::new("/nonexistent/control");
    let refused = extentctl(&[controls[0], nowhere, controls[1]], &["snapshot", "none"]);
    assert_eq!(
        (refused.status, refused.out.as_str()),
        (Some(3), ""),
        "{}",
        refused.error
    );
    for disk in &disks {
        assert!(!disk.names().contains(&"none".to_owned()));
        assert!(disk.json(&["info"])["held_ms"].is_null());
    }
    // One that somebody else holds: likewise, and it stays so.
    assert_eq!(disks[1].extentctl(&["quiesce"]).status, Some(0));
    let refused = extentctl(&controls, &["snapshot", "none"]);
    assert_eq!((refused.status, refused.out.as_str()), (Some(1), ""));
    assert!(disks[0].json(&["info"])["held_ms"].is_null());
    assert!(disks[1].json(&["info"])["held_ms"].is_u64());
    assert_eq!(disks[1].extentctl(&["resume"]).status, Some(0));
    let before = done.load(Ordering::Acquire);
    while done.load(Ordering::Acquire) < before + 10 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    guest.join().unwrap();
}
