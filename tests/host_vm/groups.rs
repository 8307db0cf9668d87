//! A control group (version 2) with next to no memory to spare.

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;
use crate::stress::runner;

const GROUP: &str = "extentd-narrow";
const FOLDER: &str = "/sys/fs/cgroup/extentd-narrow";
/// What the group has beyond what it takes, in bytes.
const SPARE: u64 = 1 << 20;

/// What was seen of a process while the kernel took from its group what it could.
struct Seen {
    /// Bytes that the group might have.
    limit: u64,
    major_faults: u64,
    /// `memory.events` of the group.
    events: String,
}

/// Serves a disk in a group that may have `limit` bytes, or without one so many as it takes and
/// [`SPARE`].
fn served_in_a_narrow_group(
    vm: &mut HostVm,
    image: &str,
    left_out: &str,
    limit: Option<u64>,
) -> Seen {
    vm.group(GROUP, &[]);
    let before = format!("EXTENTD_TEST_WITHOUT={left_out} {}", runner(GROUP));
    let served = Served::start(vm, "narrow", &before, image, "--swap");
    // Page tables of the guest's memory count too, and are made as it is first used.
    let load = "--pattern randrw --depth 32 --verify --seconds";
    served.load(vm, &format!("{load} 1"));
    // Less than what was asked for counts as failure.
    vm.try_run(&format!("echo 1G >{FOLDER}/memory.reclaim"));
    let taken = vm.number(&format!("cat {FOLDER}/memory.current"));
    let limit = limit.unwrap_or(taken + SPARE);
    vm.run(&format!("echo {limit} >{FOLDER}/memory.max"));
    println!("without {left_out:?}: the group has {limit} bytes");
    let faults = served.major_faults(vm);
    vm.run("rm -f /tmp/enough");
    vm.spawn(
        "reclaim",
        &format!("until [ -e /tmp/enough ]; do echo 1G >{FOLDER}/memory.reclaim; sleep 0.02; done 2>/dev/null"),
    );
    for _ in 0..2 {
        let report = served.load(vm, &format!("{load} 3"));
        assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
        let holds = served.ask(vm, "info")["swap"]["holds"] == true;
        assert_eq!(holds, left_out.is_empty());
    }
    vm.run("touch /tmp/enough");
    vm.join("reclaim");
    let major_faults = served.major_faults(vm) - faults;
    let events = vm.run(&format!("cat {FOLDER}/memory.events"));
    served.terminate(vm);
    vm.run(&format!(
        "rm /tmp/reclaim.status; until rmdir {FOLDER} 2>/dev/null; do sleep 0.02; done"
    ));
    Seen {
        limit,
        major_faults,
        events,
    }
}

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
    let locked = served_in_a_narrow_group(&mut vm, &image, "", None);
    assert_eq!(locked.major_faults, 0);
    for event in ["max", "oom", "oom_kill"] {
        let line = format!("{event} 0");
        let events = &locked.events;
        assert!(events.lines().any(|one| one == line), "{events}");
    }
    // In the same room: without the lock it takes next to nothing, which is too little to end with.
    let unlocked = served_in_a_narrow_group(&mut vm, &image, "lock", Some(locked.limit));
    println!(
        "without the lock {} major faults, and {}",
        unlocked.major_faults, unlocked.events
    );
    assert!(unlocked.major_faults > 0);
    vm.power_off();
}
