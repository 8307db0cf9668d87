//! A user of its own with the privileges of the unit in docs/swap.md, and with one less.

use crate::machine::{Bus, HostMachine};
use crate::served::Served;

/// The group of disks, and a user and its group, by number: the machine has no names.
const DISK: u32 = 6;
const USER: u32 = 1000;

/// A program that runs another one as the unit does, with these capabilities and groups. Busybox
/// has a program of that name too, and prefers it.
fn unit(capabilities: &[&str], groups: &str) -> String {
    let listed: String = capabilities.iter().map(|one| format!(",+{one}")).collect();
    let listed = format!("-all{listed}");
    format!(
        "/tools/setpriv --reuid {USER} --regid {USER} {groups} --inh-caps {listed} --ambient-caps {listed} --bounding-set {listed}"
    )
}

#[test]
fn the_units_privileges_suffice_and_each_is_needed() {
    let machine = HostMachine::new(320).disk(Bus::Virtio, "disk", 64);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    let device = vm.device("disk");
    let image = format!("{}/image", vm.mount("ext4", &device));
    vm.run(&format!("truncate -s 16M {image}; chown {USER} {image}"));
    vm.run(&format!("chgrp {DISK} {device}; chmod 660 {device}"));
    vm.run("chmod 755 /; chmod 1777 /tmp");

    let both = ["ipc_lock", "sys_resource"];
    let disk = format!("--groups {DISK}");
    let served = Served::start(&mut vm, "unit", &unit(&both, &disk), &image, "--swap");
    let info = served.ask(&mut vm, "info");
    assert_eq!(info["swap"]["holds"], true, "{info}");
    let owner = vm.run(&format!("stat -c %u /proc/{}", served.pid));
    assert_eq!(owner, USER.to_string());
    served.terminate(&mut vm);

    for (name, before, needs, lost) in [
        (
            "without-ipc-lock",
            unit(&both[1..], &disk),
            &["lock its memory", "CAP_IPC_LOCK", "LimitMEMLOCK=infinity"][..],
            &["memory_locked"][..],
        ),
        (
            "without-sys-resource",
            unit(&both[..1], &disk),
            &[
                "I/O flusher",
                "out-of-memory killer",
                "AmbientCapabilities=CAP_SYS_RESOURCE",
                "OOMScoreAdjust=-1000",
            ],
            &["io_flusher", "oom_protected"],
        ),
        (
            "without-disk",
            unit(&both, "--clear-groups"),
            &[device.as_str()],
            &["lease_held", "map_pinned"],
        ),
    ] {
        let refused = Served::try_start(&mut vm, name, &before, &image, "--swap").unwrap_err();
        for part in needs {
            assert!(refused.contains(part), "{name}: {part:?} in {refused}");
        }
        let served = Served::start(&mut vm, name, &before, &image, "--swap=best-effort");
        for property in [
            "extents_written",
            "map_pinned",
            "lease_held",
            "memory_locked",
            "io_flusher",
            "oom_protected",
        ] {
            let held = served.holds(&mut vm, property);
            assert_eq!(held, !lost.contains(&property), "{name}: {property}");
        }
        let report = served.load(&mut vm, "--pattern randrw --verify --seconds 1 --warm-up 0");
        assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
        served.terminate(&mut vm);
    }

    // A manager that protects the process itself needs no right of it for that.
    let before = format!(
        "sh -c 'echo -1000 >/proc/self/oom_score_adj; exec \"$@\"' sh {}",
        unit(&both[..1], &disk)
    );
    let refused = Served::try_start(&mut vm, "manager", &before, &image, "--swap").unwrap_err();
    assert!(refused.contains("I/O flusher"), "{refused}");
    assert!(!refused.contains("out-of-memory"), "{refused}");
    vm.power_off();
}
