//! Guests, drivers and back-ends that end and begin again.

use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;
use crate::pattern;

#[test]
fn vu_29_driver_is_rebound_and_the_guest_rebooted() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 16);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &["--num-queues", "2"]);
    let mut guest = Machine::new(2, 256)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    let fill = "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null; md5sum </dev/vda | cut -d' ' -f1";
    let check = "echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda | cut -d' ' -f1";

    let mut written = guest.run(fill);
    for _ in 0..3 {
        guest.run("basename $(readlink /sys/block/vda/device) >/tmp/device");
        guest.run("cd /sys/bus/virtio/drivers/virtio_blk; cat /tmp/device >unbind; [ ! -e /sys/block/vda ]; cat /tmp/device >bind");
        guest.wait_for("[ -b /dev/vda ]");
        assert_eq!(guest.run(check), written);
    }
    for _ in 0..2 {
        written = guest.run(fill);
        guest.send("reboot -f");
        guest.wait_ready();
        assert_eq!(guest.run(check), written);
    }
    // The harshest one: the machine is reset with requests on their way.
    guest.spawn("load", "verifier flush /dev/vda 32768 1000");
    guest.wait_for("[ $(awk '{ print $5 }' /sys/block/vda/stat) -gt 500 ]");
    guest.qmp.execute("system_reset", &serde_json::json!({}));
    guest.wait_ready();
    written = guest.run(fill);
    assert_eq!(guest.run(check), written);
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::md5(&image), written);
}

#[test]
fn sigterm_under_load_loses_nothing_flushed_and_a_new_process_carries_on() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 16);
    let socket = scratch.path("disk.sock");
    let mut daemon = Daemon::start(&socket, &image, &["--num-queues", "2"]);
    let mut guest = Machine::new(2, 256)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    let (sectors, rounds) = (4096_u64, 150);
    guest.spawn(
        "load",
        &format!("verifier flush /dev/vda {sectors} {rounds}"),
    );
    let flushed = "tail -n 1 /tmp/load.log";
    for turn in 1..=3 {
        guest.wait_for(&format!(
            "[ \"$({flushed})\" -ge {} ] 2>/dev/null",
            turn * rounds / 5
        ));
        assert!(
            daemon.terminate().success(),
            "SIGTERM must end it with status 0"
        );
        // No back-end, so nothing moves any more: the last word of the guest is final.
        let promised: u64 = guest.run(flushed).parse().unwrap();
        assert!(promised < rounds, "the load ended too early");
        host::each_sector(&image, |sector, bytes| {
            if sector < sectors {
                let found = pattern::generation(bytes, sector).unwrap();
                assert!(
                    found >= promised,
                    "sector {sector} holds generation {found}, flushed was {promised}"
                );
            }
        });
        daemon = Daemon::start(&socket, &image, &["--num-queues", "2"]);
    }
    let output = guest.join("load");
    assert_eq!(output.lines().last(), Some(rounds.to_string().as_str()));
    guest.power_off();
    assert!(daemon.terminate().success());
    host::each_sector(&image, |sector, bytes| {
        let expected = if sector < sectors { rounds } else { 0 };
        assert_eq!(pattern::generation(bytes, sector), Ok(expected));
    });
}
