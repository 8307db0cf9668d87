//! A guest that swaps on a disk of ours, while the process that serves it has no memory to spare.

use std::path::Path;
use std::process::Command;

use rig::file_systems::{Made, Mounted};
use rig::pressure::{Group, major_faults};
use rig::program::run;
use rig::qemu::vm::Machine;
use rig::scratch::Scratch;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::host;

const EXT4: Made = Made {
    name: "ext4",
    mkfs: &["mkfs.ext4", "-q", "-F"],
    options: "",
    megabytes: 800,
    sector: 512,
};

/// What the group has beyond what is locked, in bytes: for the kernel's own memory, and for what it
/// takes to be asked for the properties.
const SPARE: u64 = 1 << 20;

/// What the process says of its properties.
pub fn swap_info(control: &Path) -> Value {
    let info = Command::new(rig::extentctl!())
        .arg("--control-path")
        .arg(control)
        .args(["info", "--json"])
        .output()
        .unwrap();
    serde_json::from_slice::<Value>(&info.stdout).unwrap()["swap"].clone()
}

#[test]
fn a_guest_with_192_mebibytes_uses_600_several_times_while_the_back_end_has_none_to_spare() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let Some(fs) = Mounted::new(EXT4) else {
        println!("SKIP: no ext4 on a loop device");
        return;
    };
    let Some(group) = Group::new("extentd-guest") else {
        return;
    };
    let image = fs.path("swap");
    // Ahead of time and by another process, so that none of it is charged to the group.
    let mut prepare = Command::new(rig::extentctl!());
    run(prepare
        .args(["prepare", "--size", "640M"])
        .arg(image.as_os_str()))
    .unwrap();
    let scratch = Scratch::new();
    let control = scratch.path("control");
    let binary = group.runner(&scratch.path(""), &rig::extentd!());
    let arguments = [
        "--swap=best-effort",
        "--control-path",
        control.to_str().unwrap(),
    ];
    let daemon = Daemon::run(&binary, &scratch.path("disk.sock"), &image, &arguments);
    // All of the guest's memory is QEMU's from the start: what extentd touches first, its group
    // pays.
    let mut guest = Machine::new(2, 192)
        .preallocated()
        .disk(&daemon, "vd0", 1)
        .kernel_arguments("hung_task_panic=1")
        .boot(files, &scratch);
    guest.run("echo 30 >/proc/sys/kernel/hung_task_timeout_secs");
    guest.run("mkswap /dev/vda && swapon /dev/vda");
    let pages = || "awk '/^pswp/ { sum += $2 } END { print sum }' /proc/vmstat";
    assert_eq!(guest.run(pages()), "0");
    // Page tables of the guest's memory count too, and are made as it is first used.
    guest.run("verifier memory 600 0");
    group.squeeze(SPARE);
    let before = major_faults(daemon.pid());
    let allocations = swap_info(&control)["worker_allocations"].clone();
    let reclaim = group.reclaim();
    let output = guest.run("verifier memory 600 2");
    assert!(output.contains("round 2"), "{output}");
    drop(reclaim);
    let swapped: u64 = guest.run(pages()).parse().unwrap();
    println!("{swapped} pages were swapped out and in");
    // Far more than the memory that there is went out and came back.
    assert!(swapped > 300_000, "only {swapped} pages were swapped");
    let info = swap_info(&control);
    for name in [
        "extents_written",
        "map_pinned",
        "lease_held",
        "memory_locked",
        "no_allocations",
        "no_major_faults",
        "no_discard",
    ] {
        let property = &info["properties"][name];
        assert_eq!(property["held"], true, "{name}: {property}");
    }
    assert_eq!(major_faults(daemon.pid()), before);
    assert_eq!(info["worker_allocations"], allocations);
    guest.run("swapoff /dev/vda");
    guest.power_off();
    assert!(daemon.terminate().success());
}
