//! Disks that come and go while the guest runs.

use rig::qemu::vm::{Guest, Machine};
use rig::scratch::Scratch;
use serde_json::json;

use crate::daemon::Daemon;
use crate::host;

fn plug(guest: &mut Guest, daemon: &Daemon) {
    let address = json!({ "type": "unix", "data": { "path": daemon.socket } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false, "reconnect-ms": 100 } });
    guest
        .qmp
        .execute("chardev-add", &json!({ "id": "hot", "backend": backend }));
    let disk = json!({ "driver": "vhost-user-blk-pci", "id": "vd0", "bus": "root-port", "chardev": "hot", "num-queues": 2 });
    guest.qmp.execute("device_add", &disk);
    guest.wait_for("[ -b /dev/vda ]");
}

fn unplug(guest: &mut Guest) {
    guest.qmp.unplug("vd0");
    guest.qmp.execute("chardev-remove", &json!({ "id": "hot" }));
    guest.wait_for("[ ! -e /sys/block/vda ]");
}

#[test]
fn vu_3_disk_is_plugged_and_unplugged_and_the_same_process_serves_it_again() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 32);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &["--num-queues", "2"]);
    let mut guest = Machine::new(2, 256).root_port().boot(files, &scratch);
    assert_eq!(guest.run("ls /sys/block | grep -c vd || true"), "0");

    plug(&mut guest, &daemon);
    guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null");
    let written = guest.run("md5sum </mnt/file && umount /mnt");
    unplug(&mut guest);

    plug(&mut guest, &daemon);
    assert_eq!(
        guest.run("mount /dev/vda /mnt && md5sum </mnt/file"),
        written
    );
    guest.run("umount /mnt && e2fsck -fn /dev/vda");
    // Pulled out in the middle of I/O: the guest's I/O fails, nothing else does.
    guest.spawn("load", "verifier flush /dev/vda 32768 1000 || true");
    guest.wait_for("[ $(awk '{ print $5 }' /sys/block/vda/stat) -gt 300 ]");
    unplug(&mut guest);
    guest.join("load");

    plug(&mut guest, &daemon);
    guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches");
    let seen = guest.run("md5sum </dev/vda | cut -d' ' -f1");
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::md5(&image), seen);
}
