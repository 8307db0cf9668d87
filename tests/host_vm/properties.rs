//! Every property as `info` shows it, and as the kernel tells somebody else.

use serde_json::Value;

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;

/// `PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE`, which `PR_SET_IO_FLUSHER` sets.
const FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// The flags of each thread.
fn flags(vm: &mut HostVm, pid: u32) -> Vec<u64> {
    let lines = vm.run(&format!(
        "cat /proc/{pid}/task/*/stat | sed 's/.*) //' | cut -d' ' -f7"
    ));
    lines.lines().map(|line| line.parse().unwrap()).collect()
}

/// A figure of /proc/PID/status in KiB.
fn kibibytes(vm: &mut HostVm, pid: u32, name: &str) -> u64 {
    vm.number(&format!(
        "sed -n 's/^{name}:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status"
    ))
}

fn held(properties: &Value) -> Vec<(&str, bool)> {
    let properties = properties.as_object().unwrap();
    let held = |(name, property): (_, &Value)| (name, property["held"].as_bool().unwrap());
    properties
        .iter()
        .map(|(name, property)| held((name.as_str(), property)))
        .collect()
}

fn all_hold(vm: &mut HostVm, served: &Served) {
    let swap = &served.ask(vm, "info")["swap"];
    assert_eq!(swap["mode"], "demanded");
    assert_eq!(swap["holds"], true, "{swap}");
    assert!(held(&swap["properties"]).iter().all(|one| one.1), "{swap}");

    let flags = flags(vm, served.pid);
    assert!(flags.len() > 3, "{flags:?}");
    for one in flags {
        assert_eq!(one & FLUSHER, FLUSHER, "{one:#x}");
    }
    let score = vm.run(&format!("cat /proc/{}/oom_score_adj", served.pid));
    assert_eq!(score, "-1000");
    let locked = kibibytes(vm, served.pid, "VmLck");
    let own = kibibytes(vm, served.pid, "RssAnon") + kibibytes(vm, served.pid, "RssFile");
    assert!(locked >= own, "{locked} of {own} KiB are locked");
    assert_eq!(kibibytes(vm, served.pid, "VmSwap"), 0);
}

#[test]
fn every_property_holds_and_the_kernel_says_so_itself() {
    let machine =
        HostMachine::new(384)
            .disk(Bus::Virtio, "small", 64)
            .disk(Bus::Nvme, "large", 320);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    for (kind, disk) in [("ext4", "small"), ("xfs", "large")] {
        let device = vm.device(disk);
        let image = format!("{}/image", vm.mount(kind, &device));
        vm.run(&format!("truncate -s 32M {image}"));
        let served = Served::start(&mut vm, kind, "", &image, "--swap");
        all_hold(&mut vm, &served);
        let load = "--pattern randrw --depth 16 --verify --seconds 2";
        let report = served.load(&mut vm, load);
        assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
        all_hold(&mut vm, &served);
        // Ends with status 0 only if everything holds.
        let test = served.ask(&mut vm, "selftest");
        assert_eq!(test["holds"], true, "{test}");
        served.terminate(&mut vm);
    }
    vm.power_off();
}

#[test]
fn a_measure_that_is_left_out_is_shown_as_not_held() {
    let machine = HostMachine::new(320).disk(Bus::Virtio, "disk", 64);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    let device = vm.device("disk");
    let image = format!("{}/image", vm.mount("ext4", &device));
    vm.run(&format!("truncate -s 16M {image}"));
    for (measure, properties) in [
        // And so the disk path is not taken.
        (
            "prepare",
            &["extents_written", "map_pinned", "lease_held"][..],
        ),
        ("flusher", &["io_flusher"]),
        ("oom", &["oom_protected"]),
        ("lock", &["memory_locked"]),
        ("pin", &["map_pinned"]),
    ] {
        let before = format!("EXTENTD_TEST_WITHOUT={measure}");
        let served = Served::start(&mut vm, measure, &before, &image, "--swap");
        let swap = served.ask(&mut vm, "info")["swap"].clone();
        for (name, held) in held(&swap["properties"]) {
            assert_eq!(held, !properties.contains(&name), "{measure}: {swap}");
        }
        assert_eq!(swap["holds"], false);
        if measure == "flusher" {
            assert!(
                flags(&mut vm, served.pid)
                    .iter()
                    .all(|one| one & FLUSHER == 0)
            );
        }
        served.terminate(&mut vm);
    }
    vm.power_off();
}
