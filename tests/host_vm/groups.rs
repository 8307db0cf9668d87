//! A control group (version 2) with next to no memory to spare.

use crate::machine::{Bus, HostMachine};
use crate::served::Served;
use crate::stress::runner;

const GROUP: &str = "extentd-narrow";
const FOLDER: &str = "/sys/fs/cgroup/extentd-narrow";
/// What the group has beyond what is locked, in bytes.
const SPARE: u64 = 1 << 20;

#[test]
fn a_group_with_one_mebibyte_to_spare_serves_while_the_kernel_takes_what_it_can() {
    let machine =
        HostMachine::new(320)
            .disk(Bus::Virtio, "disk", 96)
            .disk(Bus::Virtio, "swap", 128);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    vm.watch_for_stalls();
    let (device, swap) = (vm.device("disk"), vm.device("swap"));
    vm.run(&format!("mkswap {swap} && swapon {swap}"));
    let image = format!("{}/image", vm.mount("ext4", &device));
    vm.run(&format!("extentctl prepare --size 64M {image} 2>&1"));
    vm.group(GROUP, &[("memory.swap.max", "0")]);
    let before = runner(GROUP);
    let served = Served::start(&mut vm, "narrow", &before, &image, "--swap");
    // Page tables of the guest's memory count too, and are made as it is first used.
    let load = "--pattern randrw --depth 32 --verify --seconds";
    served.load(&mut vm, &format!("{load} 1"));
    // Less than what was asked for counts as failure.
    vm.try_run(&format!("echo 1G >{FOLDER}/memory.reclaim"));
    let limit = vm.number(&format!("cat {FOLDER}/memory.current")) + SPARE;
    vm.run(&format!("echo {limit} >{FOLDER}/memory.max"));
    vm.run(&format!("echo {limit} >{FOLDER}/memory.min"));
    println!("the group has {limit} bytes");
    let faults = served.major_faults(&mut vm);
    vm.spawn(
        "reclaim",
        &format!("until [ -e /tmp/enough ]; do echo 1G >{FOLDER}/memory.reclaim; sleep 0.02; done 2>/dev/null"),
    );
    for _ in 0..2 {
        let report = served.load(&mut vm, &format!("{load} 3"));
        assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(served.ask(&mut vm, "info")["swap"]["holds"], true);
    }
    vm.run("touch /tmp/enough");
    vm.join("reclaim");
    let events = vm.run(&format!("cat {FOLDER}/memory.events"));
    println!("{events}");
    for event in ["max", "oom", "oom_kill"] {
        let line = format!("{event} 0");
        assert!(events.lines().any(|one| one == line), "{events}");
    }
    assert_eq!(served.major_faults(&mut vm), faults);
    served.terminate(&mut vm);
    vm.power_off();
}
