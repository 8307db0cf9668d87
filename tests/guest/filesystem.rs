//! File systems made, used and checked by guests.

use std::process::Command;

use rig::program::run;
use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;

/// VU-2, 10, 11, 22, 25, 28 and 29 in the order in which QEMU asks: without them the guest has no
/// disk.
#[test]
fn vu_2_10_11_25_28_29_guest_makes_uses_and_checks_file_systems() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 512);
    let daemon = Daemon::start(
        &scratch.path("disk.sock"),
        &image,
        &["--num-queues", "2", "--serial", "fs-0123456789abcdef"],
    );
    let mut guest = Machine::new(2, 384)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    assert_eq!(
        guest.run("cat /sys/block/vda/serial"),
        "fs-0123456789abcdef"
    );
    assert_eq!(guest.run("cat /sys/block/vda/size"), "1048576");
    assert_eq!(guest.run("ls /sys/block/vda/mq"), "0\n1");

    let work = "dd if=/dev/urandom of=/mnt/big bs=1M count=32 2>/dev/null
        mkdir /mnt/many; for n in $(seq 200); do echo file $n >/mnt/many/$n; done
        (cd /mnt; find . -type f | sort | xargs md5sum) >/tmp/written
        umount /mnt; echo 3 >/proc/sys/vm/drop_caches";
    let verify = "(cd /mnt; find . -type f | sort | xargs md5sum) >/tmp/read; cmp /tmp/written /tmp/read && rm -r /mnt/many && umount /mnt";

    for (make, check) in [
        ("mkfs.xfs -q -f", "xfs_repair -n"),
        ("mkfs.ext4 -q -F", "e2fsck -fn"),
    ] {
        guest.run(&format!("{make} /dev/vda && mount /dev/vda /mnt"));
        guest.run(work);
        guest.run("mount /dev/vda /mnt");
        guest.run(verify);
        guest.run(&format!("{check} /dev/vda"));
    }
    let written = guest.run("sed -n 's, .*/big$,,p' /tmp/written");
    guest.power_off();
    assert!(daemon.terminate().success());

    // The host's view of what the guest left behind.
    run(Command::new("e2fsck").args(["-f", "-n"]).arg(&image)).unwrap();
    let copy = scratch.path("big");
    run(Command::new("debugfs")
        .args(["-R", &format!("dump /big {}", copy.display())])
        .arg(&image))
    .unwrap();
    assert_eq!(host::md5(&copy), written);
}
