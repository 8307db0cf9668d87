//! LVM's own programs at work on what a guest uses meanwhile.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::program::run;

use crate::inside::Stage;
use crate::layers::shell;
use crate::loaded::Loaded;
use crate::machine::{Bus, HostMachine};
use crate::mapped::IMAGE;

/// Of a disk here.
const MEBIBYTES: u64 = 200;
/// Nobody but LVM makes nodes in the machine, and none of its daemons runs.
const CONFIG: &str = "devices { scan=\"/dev\" obtain_device_list_from_udev=0 use_devicesfile=0 } \
    activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 } \
    global { use_lvmpolld=0 event_activation=0 thin_check_executable=\"\" }";

fn lvm(words: &str) -> Command {
    let mut command = Command::new("lvm");
    command
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .args(words.split(' '))
        .args(["--yes", "--config", CONFIG])
        .stdin(Stdio::null());
    command
}

fn do_lvm(words: &str) {
    run(&mut lvm(words)).unwrap();
}

/// The node of a volume of the group.
fn node(volume: &str) -> PathBuf {
    std::fs::canonicalize(format!("/dev/mapper/images-{volume}")).unwrap()
}

/// What a guest sees of a device.
fn content(device: &Path) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IMAGE);
    let first = File::open(device).unwrap().take(IMAGE as u64);
    { first }.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Takes a snapshot of the volume that is served, as docs/recipes.md has it: what it holds then.
fn snapshot(loaded: &mut Loaded, words: &str) -> Vec<u8> {
    let control = loaded.place.control.to_str().unwrap().to_owned();
    let ask = |words: &[&str]| {
        shell(
            "extentctl",
            &[&["--control-path", &control], words].concat(),
        )
    };
    ask(&["quiesce", "--for", "60", "--sync"]);
    do_lvm(words);
    let then = content(&loaded.place.image);
    ask(&["resume"]);
    loaded.lanes.proceed();
    loaded.lanes.proceed();
    assert!(content(&loaded.place.image) != then, "the guest went on");
    then
}

/// A snapshot comes and goes, and the volume moves to another disk; then a thin one and its
/// snapshot.
pub fn change(stage: &Stage) {
    let [first, second] = &stage.devices;
    std::fs::create_dir_all("/run/lock/lvm").unwrap();
    do_lvm(&format!("pvcreate {first} {second}"));
    do_lvm(&format!("vgcreate images {first} {second}"));
    do_lvm(&format!("lvcreate --name vm1 --size 32M images {first}"));
    let mut loaded = Loaded::new(&rig::extentd!(), &node("vm1"), "disk", &[]);

    let words = format!("lvcreate --snapshot --name monday --size 64M images/vm1 {first}");
    let then = snapshot(&mut loaded, &words);
    assert!(content(&node("monday")) == then, "the snapshot");
    do_lvm("lvremove images/monday");
    loaded.lanes.proceed();

    let mut moving = lvm(&format!("pvmove --interval 1 {first} {second}"));
    let mut moving = moving.spawn().unwrap();
    let status = loop {
        loaded.lanes.proceed();
        if let Some(status) = moving.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "pvmove: {status}");
    let table = shell("dmsetup", &["deps", "-o", "devname", "images-vm1"]);
    assert!(
        table.contains(second.trim_start_matches("/dev/")),
        "{table}"
    );
    loaded.lanes.proceed();
    loaded.end();
    do_lvm("lvremove images/vm1");

    do_lvm("lvcreate --type thin-pool --name pool --size 96M images");
    do_lvm("lvcreate --name vm2 --virtualsize 64M --thinpool pool images");
    let mut loaded = Loaded::new(&rig::extentd!(), &node("vm2"), "disk", &[]);
    let words = "lvcreate --snapshot --setactivationskip n --name tuesday images/vm2";
    let then = snapshot(&mut loaded, words);
    assert!(content(&node("tuesday")) == then, "the thin snapshot");
    loaded.end();
    do_lvm("vgremove images");
}

#[test]
fn volumes_are_served_right_while_lvm_changes_them() {
    let machine = HostMachine::new(768)
        .volumes()
        .disk(Bus::Virtio, "first", MEBIBYTES)
        .disk(Bus::Virtio, "second", MEBIBYTES);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    vm.run("mkdir -p /run");
    let devices = ["first", "second"].map(|name| vm.device(name));
    crate::inside::play_one(&mut vm, "LVM", &devices);
    vm.power_off();
}
