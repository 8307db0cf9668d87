//! A guest fills the file system of the host.

use std::fs::File;

use rig::file_systems::{EXT4, Mounted};
use rig::files::{create, fallocate};
use rig::operator::wait_info;
use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;
use crate::load::printed;

/// Bytes of the disk.
const DISK: u64 = 64 << 20;
/// Bytes that the guest has before the file system is full.
const LEFT: u64 = 4 << 20;

#[test]
fn a_guest_that_fills_the_hosts_file_system_sees_no_error_over_a_kill_and_all_lands() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let Some(disk) = Mounted::new(EXT4) else {
        return;
    };
    let scratch = Scratch::new();
    let image = disk.path("image");
    create(&image, DISK).sync_all().unwrap();
    let filler = disk.path("filler");
    let free = || {
        let stat = rustix::fs::statvfs(disk.root()).unwrap();
        stat.f_bfree * stat.f_frsize
    };
    let file = create(&filler, 0);
    let mut len = 0;
    while free() > LEFT && fallocate(&file, 0, len, 1 << 20).is_ok() {
        len += 1 << 20;
    }
    drop(file);
    let [socket, control] = ["disk.sock", "control"].map(|name| scratch.path(name));
    let arguments = [
        "--num-queues",
        "2",
        "--control-path",
        control.to_str().unwrap(),
    ];
    let start = || Daemon::start(&socket, &image, &arguments);
    let held = |wanted: bool| {
        wait_info(&control, "held requests", |info| {
            info["disk"]["held_requests"]
                .as_u64()
                .is_some_and(|count| (count > 0) == wanted)
        });
    };
    let mut daemon = start();
    let mut guest = Machine::new(2, 256)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    // Written before, so that it is the guest's whatever the host has left.
    guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct");
    guest.spawn("load", "verifier random /dev/vda 16 3600");
    held(true);
    // Others go on.
    guest.run("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct");
    daemon.kill();
    daemon = start();
    held(true);
    guest.run("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct");
    std::fs::remove_file(&filler).unwrap();
    File::open(disk.root()).unwrap().sync_all().unwrap();
    held(false);
    // And many more after them.
    let done = "awk '{ print $1 + $5 }' /sys/block/vda/stat";
    let before: u64 = guest.run(done).parse().unwrap();
    guest.wait_for(&format!("[ $({done}) -gt {} ]", before + 200));
    guest.run("touch /tmp/stop");
    let output = guest.join("load");
    let errors = guest.run("dmesg | grep -c -i 'i/o error' || true");
    assert_eq!(errors, "0", "the guest saw errors");
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::digest(&image), printed(&output, "digest"));
}
