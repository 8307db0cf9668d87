//! Snapshots of a file system that a guest uses. `EXTENTD_TEST_GUEST_SNAPSHOTS`
//! says how many.

use std::path::{Path, PathBuf};
use std::process::Command;

use rig::file_systems::{Mounted, XFS};
use rig::files::create;
use rig::program::run;
use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;

/// How many, if the environment does not say.
const ROUNDS: u64 = 5;
/// Bytes of the disk.
const DISK: u64 = 64 << 20;

/// So that the guest changes much while one is made.
const SLOWLY: &[(&str, &str)] = &[("EXTENTD_TEST_CLONE_REST", "20")];

/// Writes files and removes them; what has been synced is counted on the disk,
/// and then in memory.
const LOAD: &str = "i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); \
    dd if=/dev/urandom of=/mnt/$((i % 24)) bs=4k count=$((i % 60 + 1)) 2>/dev/null; \
    rm -f /mnt/$(((i + 7) % 24)); \
    echo $i >/mnt/number.new; mv /mnt/number.new /mnt/number; sync; \
    echo $i >/tmp/synced.new; mv /tmp/synced.new /tmp/synced; done";

/// A copy of an image, mounted; unmounted when it is dropped.
struct Seen(PathBuf);

impl Seen {
    fn new(image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(&at))
        .unwrap();
        Self(at)
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.0));
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn snapshots_of_a_guests_file_system_under_load_are_as_after_a_power_failure() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let Some(disk) = Mounted::new(XFS) else {
        return;
    };
    let rounds = std::env::var("EXTENTD_TEST_GUEST_SNAPSHOTS");
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().unwrap());
    let scratch = Scratch::new();
    let image = disk.path("image");
    create(&image, DISK).sync_all().unwrap();
    let folder = disk.path("snapshots");
    std::fs::create_dir(&folder).unwrap();
    let [socket, control] = ["disk.sock", "control"].map(|name| scratch.path(name));
    let arguments = [
        "--num-queues",
        "2",
        "--control-path",
        control.to_str().unwrap(),
    ];
    let to = ["--snapshot-dir", folder.to_str().unwrap()];
    let arguments = [&arguments[..], &to].concat();
    let daemon = Daemon::start_with(&socket, &image, &arguments, SLOWLY);
    let mut guest = Machine::new(2, 256)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt");
    guest.spawn("load", LOAD);
    let mut last = 0;
    for round in 0..rounds {
        // It goes on between two.
        guest.wait_for(&format!(
            "[ $(cat /tmp/synced 2>/dev/null || echo 0) -gt {last} ]"
        ));
        let synced: u64 = guest.run("cat /tmp/synced").parse().unwrap();
        let name = format!("round{round}");
        run(Command::new(rig::extentctl!())
            .arg("--control-path")
            .arg(&control)
            .args(["snapshot", &name]))
        .unwrap();
        last = guest.run("cat /tmp/synced").parse().unwrap();
        let (snapshot, copy) = (folder.join(&name), disk.path("copy"));
        run(Command::new("cp")
            .arg("--reflink=always")
            .arg(&snapshot)
            .arg(&copy))
        .unwrap();
        // The journal is replayed.
        let seen = Seen::new(&copy, scratch.path("seen"));
        let number = std::fs::read_to_string(seen.0.join("number")).unwrap();
        drop(seen);
        let number: u64 = number.trim().parse().unwrap();
        assert!(
            number >= synced,
            "{number} is in it, {synced} was synced before"
        );
        // What follows the last one that was synced may be on its way.
        assert!(
            number <= last + 1,
            "{number} is in it, {last} was synced after"
        );
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&copy)).unwrap();
        for file in [snapshot, copy] {
            std::fs::remove_file(file).unwrap();
        }
    }
    guest.run("touch /tmp/stop");
    guest.join("load");
    guest.run("umount /mnt && e2fsck -fn /dev/vda");
    guest.power_off();
    assert!(daemon.terminate().success());
    run(Command::new("e2fsck").args(["-f", "-n"]).arg(&image)).unwrap();
}
