//! A guest whose own memory the host swaps out.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;
use crate::stress::within;

/// 50 MiB of guest memory, all of it in use.
const LOAD: &str = "--pattern randrw --size 256K --depth 200 --verify --seconds";
const GUEST: &str = "extentd-guest";
const TRACING: &str = "/sys/kernel/tracing";

fn prepared(vm: &mut HostVm) -> String {
    let (device, swap) = (vm.device("disk"), vm.device("swap"));
    vm.run(&format!("mkswap {swap} && swapon {swap}"));
    let image = format!("{}/image", vm.mount("ext4", &device));
    vm.run(&format!("extentctl prepare --size 128M {image} 2>&1"));
    image
}

fn machine() -> HostMachine {
    HostMachine::new(256)
        .disk(Bus::Virtio, "disk", 200)
        .disk(Bus::Virtio, "swap", 512)
}

#[test]
fn a_guest_that_is_swapped_out_gets_every_byte_right() {
    let Some(mut vm) = machine().boot() else {
        return;
    };
    vm.watch_for_stalls();
    let image = prepared(&mut vm);
    let served = Served::start(&mut vm, "swapped", "", &image, "--swap");
    vm.strain(240);
    vm.wait_swapped(20_000);
    // Besides what the host lacks, half of it is more than it should have.
    vm.group(GUEST, &[("memory.high", "24M")]);
    let load = within(GUEST, &served.load_command(&format!("{LOAD} 10")));
    let report: Value = serde_json::from_str(&vm.run(&load)).unwrap();
    println!("{report}");
    assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
    vm.relax();
    // More than the front-end has of its own.
    let out = vm.number(&format!("cat /sys/fs/cgroup/{GUEST}/memory.swap.peak"));
    let faults = served.major_faults(&mut vm);
    println!("{out} bytes were out; extentd had {faults} major faults");
    assert!(out > 8 << 20, "only {out} bytes were out");
    assert!(faults > 0, "the guest's pages were never needed");
    for property in [
        "memory_locked",
        "no_allocations",
        "map_pinned",
        "lease_held",
    ] {
        assert!(served.holds(&mut vm, property), "{property}");
    }
    assert_eq!(vm.counter("oom_kill"), 0);
    served.terminate(&mut vm);
    vm.power_off();
}

/// How the kernel looked for memory on behalf of the process, as flags of allocations, while all of
/// the guest's memory does not fit into its group.
fn looked_for(vm: &mut HostVm, image: &str, left_out: &str) -> BTreeSet<String> {
    let before = format!("EXTENTD_TEST_WITHOUT={left_out}");
    let served = Served::start(vm, "traced", &before, image, "--swap");
    vm.run(&format!(
        "cd {TRACING} && echo >trace && (cd /proc/{}/task && echo *) >set_event_pid && echo 1 >events/vmscan/mm_vmscan_memcg_reclaim_begin/enable",
        served.pid
    ));
    let load = served.load_command(&format!("{LOAD} 2 --warm-up 0"));
    // It may be ended for a lack of memory: see docs/swap.md.
    let (status, output) = vm.try_run(&within(GUEST, &load));
    println!("without {left_out:?}: status {status}: {output}");
    let flags = vm.run(&format!(
        "echo 0 >{TRACING}/events/vmscan/mm_vmscan_memcg_reclaim_begin/enable; sed -n 's/.*gfp_flags=//p' {TRACING}/trace | sort -u"
    ));
    assert!(served.lives(vm));
    served.terminate(vm);
    flags.lines().map(str::to_owned).collect()
}

#[test]
fn a_flusher_never_waits_for_the_hosts_swap_and_another_does() {
    let Some(mut vm) = machine().boot() else {
        return;
    };
    vm.watch_for_stalls();
    let image = prepared(&mut vm);
    vm.run(&format!("mount -t tracefs tracefs {TRACING}"));
    vm.group(GUEST, &[("memory.max", "24M")]);
    let with = looked_for(&mut vm, &image, "");
    let without = looked_for(&mut vm, &image, "flusher");
    println!("{with:?} as a flusher, {without:?} else");
    assert!(!with.is_empty() && !without.is_empty());
    let waits = |flags: &String| !flags.starts_with("GFP_NOIO");
    assert!(!with.iter().any(waits), "{with:?}");
    assert!(without.iter().any(waits), "{without:?}");
    vm.power_off();
}
