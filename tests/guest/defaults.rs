//! Guests of a QEMU that was told as little as possible, and of one that asks for as much as it
//! can.

use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;

#[test]
fn guests_have_their_disks_with_the_defaults_of_both_sides_and_with_the_largest_rings() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let serve = |name: &str| {
        let socket = scratch.path(&format!("{name}.sock"));
        Daemon::start(&socket, &scratch.image(name, 16), &[])
    };
    let daemons = ["plain", "large"].map(serve);
    // As libvirt writes it without `queues`, on a machine of two CPUs.
    let mut guest = Machine::new(2, 256)
        .disk_with(daemons[0].socket(), "vd0", "")
        .disk_with(daemons[1].socket(), "vd1", ",queue-size=1024,num-queues=3")
        .boot(files, &scratch);
    assert_eq!(guest.run("ls /sys/block/vda/mq"), "0\n1");
    // Rings that are too large for one side would keep the guest waiting for its partition table.
    for disk in ["vda", "vdb"] {
        guest.run(&format!(
            "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; dd if=/tmp/data of=/dev/{disk} bs=1M conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; head -c 8388608 /dev/{disk} | cmp - /tmp/data"
        ));
    }
    guest.power_off();
    for daemon in daemons {
        assert!(daemon.terminate().success());
    }
}
