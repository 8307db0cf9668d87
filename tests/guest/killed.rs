//! The process is killed under the load of a real guest, and QEMU goes on
//! with the next one. `EXTENTD_TEST_GUEST_KILLS` says how often.

use std::time::Duration;

use rig::file_systems::{EXT4, Mounted};
use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;
use crate::load::printed;

/// How often, if the environment does not say.
const KILLS: u64 = 12;

#[test]
fn vu_31_32_33_kills_under_load_lose_and_repeat_nothing() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let Some(disk) = Mounted::new(EXT4) else {
        return;
    };
    let kills = std::env::var("EXTENTD_TEST_GUEST_KILLS");
    let kills = kills.map_or(KILLS, |text| text.parse().unwrap());
    let scratch = Scratch::new();
    let image = disk.path("image");
    std::fs::write(&image, vec![0; 64 << 20]).unwrap();
    let socket = scratch.path("disk.sock");
    let start = || Daemon::start(&socket, &image, &["--num-queues", "2"]);
    let mut daemon = start();
    let mut guest = Machine::new(2, 256)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    guest.spawn("load", "verifier random /dev/vda 16 3600");
    let done = "awk '{ print $1 + $5 }' /sys/block/vda/stat";
    let mut again = 0;
    for kill in 0..kills {
        let before: u64 = guest.run(done).parse().unwrap();
        guest.wait_for(&format!("[ $({done}) -gt {} ]", before + 200));
        // The subject is the instant itself.
        std::thread::sleep(Duration::from_millis(kill * 7919 % 200));
        let said = daemon.stderr();
        again += usize::from(said.iter().any(|line| line.contains("carried out again")));
        daemon.kill();
        daemon = start();
    }
    let before: u64 = guest.run(done).parse().unwrap();
    guest.wait_for(&format!("[ $({done}) -gt {} ]", before + 200));
    guest.run("touch /tmp/stop");
    let output = guest.join("load");
    println!(
        "{kills} kills, requests carried out again after {again} of them or more, {} operations",
        printed(&output, "operations")
    );
    assert!(again > 0 || kills == 0, "no kill met a request in flight");
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::digest(&image), printed(&output, "digest"));
}
