//! The machine itself: what it has, and that the process serves a disk in it.

use crate::machine::{Bus, HostMachine};
use crate::served::Served;

#[test]
fn a_machine_of_its_own_has_disks_of_every_kind_and_the_process_serves_them() {
    let machine = HostMachine::new(384)
        .disk(Bus::Virtio, "plain", 96)
        .disk(Bus::Nvme, "fast", 320)
        .kernel_arguments("nvme.poll_queues=1")
        .storage_daemon();
    let Some(mut vm) = machine.boot() else {
        return;
    };
    assert_eq!(
        vm.run("grep -w CapEff /proc/self/status"),
        "CapEff:\t000001ffffffffff"
    );
    assert_eq!(vm.run("cat /sys/module/nvme/parameters/poll_queues"), "1");
    let version = vm.run("qemu-storage-daemon --version");
    assert!(
        version.starts_with("qemu-storage-daemon version"),
        "{version}"
    );
    let targets = vm.run("dmsetup targets");
    for target in ["delay", "flakey", "linear", "error"] {
        assert!(targets.contains(target), "{target} in {targets}");
    }
    let (plain, fast) = (vm.device("plain"), vm.device("fast"));
    for (name, kind, device) in [("ext4", "ext4", plain), ("xfs", "xfs", fast)] {
        let image = format!("{}/image", vm.mount(kind, &device));
        vm.run(&format!("truncate -s 32M {image}"));
        let served = Served::start(&mut vm, name, "", &image, "--io-path disk");
        let report = served.load(&mut vm, "--pattern randrw --depth 8 --verify --seconds 1");
        assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
        let info = served.ask(&mut vm, "info");
        let operations = &info["disk"]["operations"];
        assert!(
            operations["disk_operations"].as_u64().unwrap() > 0,
            "{info}"
        );
        served.terminate(&mut vm);
    }
    vm.power_off();
}
