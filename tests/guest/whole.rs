//! A guest saved whole by QEMU beside a snapshot of its disk, and restored
//! several times on clones of that. The guest knows what each sector holds, and
//! finds a disk of another instant at once.

use std::path::Path;
use std::process::Command;

use rig::file_systems::{Mounted, XFS};
use rig::files::create;
use rig::program::run;
use rig::qemu::vm::{Guest, Machine};
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;
use crate::load::printed;

/// Guests that are restored.
const COPIES: usize = 3;
/// Requests that the guest's disk has completed.
const DONE: &str = "awk '{ print $1 + $5 }' /sys/block/vda/stat";

fn machine(daemon: &Daemon) -> Machine {
    Machine::new(2, 192).disk(daemon, "vd0", 2)
}

/// The load has done much more.
fn proceed(guest: &mut Guest) {
    let before: u64 = guest.run(DONE).parse().unwrap();
    // It ends by itself where it found something wrong.
    let ended = "[ -e /tmp/load.status ]";
    guest.wait_for(&format!("{ended} || [ $({DONE}) -gt {} ]", before + 200));
}

/// Ends the load, which must have found nothing wrong, and the guest; the image
/// is what the load knows of it.
fn finish(mut guest: Guest, daemon: Daemon, image: &Path) -> String {
    guest.run("touch /tmp/stop");
    let output = guest.join("load");
    guest.power_off();
    assert!(daemon.terminate().success());
    let digest: String = printed(&output, "digest").to_owned();
    assert_eq!(host::digest(image), digest);
    digest
}

fn extentctl(arguments: &[&str]) {
    run(Command::new(rig::extentctl!()).args(arguments)).unwrap();
}

#[test]
fn a_guest_that_was_saved_beside_a_snapshot_goes_on_several_times() {
    let (Some(files), Some(disk)) = (host::boot_files(), Mounted::new(XFS)) else {
        return;
    };
    let scratch = Scratch::new();
    let (image, folder) = (disk.path("image"), disk.path("snapshots"));
    create(&image, 32 << 20).sync_all().unwrap();
    std::fs::create_dir(&folder).unwrap();
    let [socket, control, state] = ["socket", "control", "state"].map(|name| scratch.path(name));
    let [control, folder_text] = [&control, &folder].map(|path| path.to_str().unwrap());
    let arguments = [
        "--num-queues",
        "2",
        "--control-path",
        control,
        "--snapshot-dir",
        folder_text,
    ];
    let daemon = Daemon::start(&socket, &image, &arguments);
    let mut guest = machine(&daemon).boot(files, &scratch);
    guest.spawn("load", "verifier random /dev/vda 16 3600");
    proceed(&mut guest);

    guest.save(&state);
    extentctl(&["--control-path", control, "snapshot", "whole"]);
    guest.go_on();
    proceed(&mut guest);

    let snapshot = folder.join("whole");
    let mut copies = Vec::new();
    for number in 0..COPIES {
        let scratch = Scratch::new();
        let image = disk.path(&format!("clone{number}"));
        extentctl(&["clone", snapshot.to_str().unwrap(), image.to_str().unwrap()]);
        let daemon = Daemon::start(&scratch.path("socket"), &image, &["--num-queues", "2"]);
        let mut guest = machine(&daemon).await_guest(files, &scratch);
        guest.restore(&state);
        copies.push((guest, daemon, image, scratch));
    }
    proceed(&mut guest);
    let mut digests = vec![finish(guest, daemon, &image)];
    for (mut guest, daemon, image, _scratch) in copies {
        proceed(&mut guest);
        let digest = finish(guest, daemon, &image);
        assert!(!digests.contains(&digest), "each has its own");
        digests.push(digest);
    }
}
