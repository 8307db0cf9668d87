//! Disks of other kinds, and devices on devices: logical volumes, dm-crypt, partitions, multipath.
//! Each is served as it is, and under images on ext4 and XFS.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::model;
use serde_json::Value;

use crate::inside::{self, Stage};
use crate::layers::{Home, Layer, Stack, dmsetup, sectors};
use crate::loaded::{self, Loaded};
use crate::machine::{Bus, HostMachine};
use crate::mapped::IMAGE;

/// Of a disk here; XFS takes none that is much smaller.
const MEBIBYTES: u64 = 400;
/// Sectors of a MiB.
const MIB: u64 = 2048;
/// For dm-crypt: two keys of 256 bits.
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";

/// What a stack should be like.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// It takes requests without waiting: the disk path is there however slow it is.
    nowait: bool,
    /// Bytes of its logical blocks.
    block: u64,
}

const USUAL: Expected = Expected {
    nowait: true,
    block: 512,
};
const WAITS: Expected = Expected {
    nowait: false,
    ..USUAL
};
const LARGE: Expected = Expected {
    block: 4096,
    ..USUAL
};

/// Has a stack serve in all ways.
fn serves(name: &str, stack: &Stack, expected: Expected) {
    serves_itself(name, stack, expected);
    serves_homes(name, stack, expected);
}

/// Has it serve images on file systems on it.
fn serves_homes(name: &str, stack: &Stack, expected: Expected) {
    let device = stack.top();
    let waiting = waiting();
    for kind in ["ext4", "xfs"] {
        let home = Home::make(kind, &device);
        let image = home.folder().join("image");
        let by = |path, binary: &Path, arguments: &[&str]| {
            write_image(&image);
            let loaded = Loaded::new(binary, &image, path, arguments);
            let info = loaded.place.disk();
            let mut lanes = loaded.end();
            // And as it is on the disk.
            home.mount_again();
            loaded::check(&mut lanes, &image);
            say(&format!("{name}, {kind}, {arguments:?}"), &info);
            assert_eq!(count(&info, "disk_operations") > 0, path == "disk");
            // Whatever its device has.
            assert_eq!(info["logical_block_size"], 512);
            info
        };
        let extentd = rig::extentd!();
        let auto = by(expected.path(), &extentd, &[]);
        let said = auto["path_reason"].as_str().unwrap();
        assert_eq!(said.contains("no NOWAIT"), !expected.nowait, "{said}");
        if expected.nowait {
            assert_eq!(auto["device_io"], "queued");
            if kind == "ext4" {
                by("file", &extentd, &["--io-path", "file"]);
            }
        } else {
            is_refused(&image);
            let info = by("disk", &waiting, &["--io-path", "disk"]);
            assert_eq!(info["device_io"], "inline");
        }
    }
}

impl Expected {
    /// The way that requests take if nobody says anything.
    fn path(self) -> &'static str {
        if self.nowait { "disk" } else { "file" }
    }
}

/// Has it serve as it is.
fn serves_itself(name: &str, stack: &Stack, expected: Expected) {
    let device = PathBuf::from(stack.top());
    write_zeros(&device);
    let loaded = Loaded::new(&rig::extentd!(), &device, "disk", &[]);
    let info = loaded.place.disk();
    loaded.end();
    say(&format!("{name}, itself"), &info);
    assert_eq!(info["logical_block_size"], expected.block);
}

fn say(what: &str, info: &Value) {
    println!(
        "{what}: {}, {}, bounced {}: {}",
        info["path"],
        info["device_io"],
        count(info, "bounced_operations"),
        info["path_reason"]
    );
}

fn count(info: &Value, name: &str) -> u64 {
    info["operations"][name].as_u64().unwrap()
}

/// An image whose second half is a hole; durable.
fn write_image(image: &Path) {
    let _ = std::fs::remove_file(image);
    let mut file = File::create(image).unwrap();
    file.write_all(&vec![0; IMAGE / 2]).unwrap();
    file.set_len(IMAGE as u64).unwrap();
    file.sync_all().unwrap();
}

/// Zeros where a guest will be.
fn write_zeros(device: &Path) {
    let mut file = File::options().write(true).open(device).unwrap();
    file.write_all(&vec![0; IMAGE]).unwrap();
    file.sync_all().unwrap();
}

/// A program that runs extentd such that it waits for each request of devices that take none
/// without, also of slow ones, as here all are.
fn waiting() -> PathBuf {
    let path = PathBuf::from("/tmp/extentd-waits");
    let extentd = rig::extentd!();
    let text = format!(
        "#!/bin/sh\nexport EXTENTD_TEST_WITHOUT=inlinelimit\nexec {} \"$@\"\n",
        extentd.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Who demands the disk path is told in one line why it is not there.
fn is_refused(image: &Path) {
    let output = Command::new(rig::extentd!())
        .args(["--io-path", "disk", "--socket-path", "/tmp/refused"])
        .arg("--blk-file")
        .arg(image)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("--io-path disk") && text.contains("too slow to be waited for"),
        "{text}"
    );
}

/// Sectors among the first of a device that show what a guest has written.
fn readable(device: &str) -> usize {
    let mut bytes = Vec::new();
    let first = File::open(device).unwrap().take(2 * IMAGE as u64);
    { first }.read_to_end(&mut bytes).unwrap();
    let shows = |sector: &&[u8]| {
        let first = u64::from_le_bytes(sector[..8].try_into().unwrap());
        let number = usize::try_from(first & 0xffff_ffff).unwrap();
        model::value(number, sector).is_some_and(|value| value > 0)
    };
    bytes.chunks_exact(model::SECTOR).filter(shows).count()
}

/// Options of dm-crypt that have the thread that asks encrypt.
pub const WITHOUT_QUEUES: &str = "3 allow_discards no_read_workqueue no_write_workqueue";

/// The target of dm-crypt on all of a device.
pub fn crypt(under: &str, options: &str) -> String {
    format!("crypt aes-xts-plain64 {KEY} 0 {under} 0 {options}")
}

/// The volumes of LVM.
pub fn volumes(stage: &Stage) {
    let [first, second] = &stage.devices;
    // Two extents, the later one first.
    let half = sectors(first) / 2;
    let swapped = format!("0 {half} linear {first} {half}\n{half} {half} linear {first} 0");
    let stack = Stack::on(first).with(Layer::mapped("linear", &swapped));
    serves("linear", &stack, USUAL);
    drop(stack);

    let stack = Stack::on(first).map("striped", |disk| {
        format!("striped 2 128 {disk} 0 {disk} {half}")
    });
    serves("striped", &stack, USUAL);
    drop(stack);

    let mirror = |disk: &str| format!("mirror core 2 1024 nosync 2 {disk} 0 {second} 0");
    let stack = Stack::on(first).map("mirror", mirror);
    serves("mirror", &stack, WAITS);
    drop(stack);

    // A pool, whose records are on the other disk.
    write_zeros(Path::new(second));
    let pool = |disk: &str| format!("thin-pool {second} {disk} 128 0");
    let stack = Stack::on(first).map("pool", pool);
    dmsetup("pool", &["message", "0", "create_thin 0"]);
    let stack = stack.map_part("thin", MEBIBYTES * MIB, |pool| format!("thin {pool} 0"));
    serves("thin", &stack, WAITS);
    drop(stack);

    // A volume that has a snapshot, into which the old blocks go.
    let stack = Stack::on(first).map("origin", |disk| format!("snapshot-origin {disk}"));
    write_zeros(Path::new(second));
    let snapshot = Stack::on(first).map("snapshot", |disk| format!("snapshot {disk} {second} N 8"));
    serves("origin of a snapshot", &stack, WAITS);
    drop(snapshot);
}

/// What LVM does to a volume that is in use: a snapshot comes and goes (`lvcreate --snapshot`), and
/// its blocks move to another disk (`pvmove`).
pub fn changes(stage: &Stage) {
    let [first, second] = &stage.devices;
    let stack = Stack::on(first).map("volume", |disk| format!("linear {disk} 0"));
    let home = Home::make("ext4", &stack.top());
    let image = home.folder().join("image");
    write_image(&image);
    let mut loaded = Loaded::new(&rig::extentd!(), &image, "disk", &[]);
    for (what, target) in [
        ("a snapshot", format!("snapshot-origin {first}")),
        ("the snapshot gone", format!("linear {first} 0")),
        (
            "moving",
            format!("mirror core 1 1024 2 {first} 0 {second} 0"),
        ),
        ("moved", format!("linear {second} 0")),
    ] {
        let table = format!("0 {} {target}", sectors(first));
        dmsetup("volume", &["reload", "--table", &table]);
        dmsetup("volume", &["suspend"]);
        dmsetup("volume", &["resume"]);
        if what == "moving" {
            let done = |status: &str| status.contains(" 1 AA ");
            while !done(&dmsetup("volume", &["status"])) {
                loaded.lanes.proceed();
            }
        }
        let before = loaded.place.disk();
        loaded.lanes.proceed();
        loaded.lanes.proceed();
        let after = loaded.place.disk();
        say(what, &after);
        let more = |name| count(&after, name) - count(&before, name);
        let (raw, refused) = (more("disk_operations"), more("refused_operations"));
        // A target that would wait refuses what may not, and the file gets it. What was in flight
        // at the change may count the other way.
        if target.starts_with("linear") {
            assert!(raw > refused, "{what}: {raw}, {refused}");
        } else {
            assert!(refused > raw, "{what}: {raw}, {refused}");
        }
    }
    let mut lanes = loaded.end();
    home.mount_again();
    loaded::check(&mut lanes, &image);
}

/// Has an encrypted device serve in all ways; what the guest writes is not on the disk.
fn hides(name: &str, stack: &Stack, expected: Expected) {
    serves_itself(name, stack, expected);
    assert!(readable(&stack.top()) > 0);
    assert_eq!(readable(stack.disk()), 0, "{name} shows what it hides");
    serves_homes(name, stack, expected);
}

/// dm-crypt on a disk, and a volume on it.
pub fn encrypted(stage: &Stage) {
    let disk = &stage.devices[0];
    let stack = Stack::on(disk).with(Layer::luks("luks", disk));
    hides("LUKS", &stack, WAITS);
    drop(stack);
    let stack = Stack::on(disk).map("crypt", |disk| crypt(disk, "1 sector_size:4096"));
    let expected = Expected {
        block: 4096,
        ..WAITS
    };
    hides("dm-crypt in blocks of 4096", &stack, expected);
    drop(stack);
    let stack = Stack::on(disk)
        .map("crypt", |disk| crypt(disk, WITHOUT_QUEUES))
        .map("volume", |crypt| format!("linear {crypt} 0"));
    hides("a volume on dm-crypt", &stack, WAITS);
}

/// Partitions, one of which begins amid a block of the page cache.
pub fn partitions(stage: &Stage) {
    let [usual, emulated] = &stage.devices;
    for (kind, disk, start) in [
        ("partition", usual, 2048),
        ("partition", usual, 63),
        // Its blocks of 4096 bytes straddle the disk's.
        ("512e partition", emulated, 63),
    ] {
        let stack = Stack::on(disk).with(Layer::partition(disk, start));
        serves(&format!("{kind} from sector {start} on"), &stack, USUAL);
    }
}

/// Blocks of 4096 bytes.
pub fn large_blocks(stage: &Stage) {
    let [virtio, nvme] = &stage.devices;
    serves("4Kn, virtio", &Stack::on(virtio), LARGE);
    serves("4Kn, NVMe", &Stack::on(nvme), LARGE);
    let stack = Stack::on(virtio).map("linear", |disk| format!("linear {disk} 0"));
    serves("4Kn, linear", &stack, LARGE);
    drop(stack);
    let options = "2 allow_discards sector_size:4096";
    let stack = Stack::on(virtio).map("crypt", |disk| crypt(disk, options));
    let expected = Expected {
        nowait: false,
        ..LARGE
    };
    serves("4Kn, dm-crypt", &stack, expected);
}

/// One disk by two paths, one after the other of which fails.
pub fn paths(stage: &Stage) {
    let [one, two] = &stage.devices;
    let table = |_: &str| format!("multipath 0 0 1 1 round-robin 0 2 1 {one} 1000 {two} 1000");
    let stack = Stack::on(one).map("paths", table);
    serves("multipath", &stack, WAITS);
    let device = PathBuf::from(stack.top());
    write_zeros(&device);
    let mut loaded = Loaded::new(&rig::extentd!(), &device, "disk", &[]);
    for (fails, works) in [(one, two), (two, one)] {
        dmsetup("paths", &["message", "0", &format!("fail_path {fails}")]);
        let failed = major_minor(fails);
        let status = dmsetup("paths", &["status"]);
        assert!(status.contains(&format!("{failed} F")), "{status}");
        let before = requests(works);
        loaded.lanes.proceed();
        assert!(requests(works) > before, "{works} was not used");
        dmsetup(
            "paths",
            &["message", "0", &format!("reinstate_path {fails}")],
        );
    }
    loaded.end();
}

/// The number of a disk, as `MAJOR:MINOR`.
fn major_minor(disk: &str) -> String {
    attribute(disk, "dev")
}

/// Requests that a disk has ended so far: reads and writes.
fn requests(disk: &str) -> u64 {
    let text = attribute(disk, "stat");
    let fields: Vec<u64> = text
        .split_whitespace()
        .map(|f| f.parse().unwrap())
        .collect();
    fields[0] + fields[4]
}

fn attribute(disk: &str, name: &str) -> String {
    let disk = disk.trim_start_matches("/dev/");
    let text = std::fs::read_to_string(format!("/sys/block/{disk}/{name}")).unwrap();
    text.trim().to_owned()
}

fn play(scene: &str, machine: HostMachine, disks: [&str; 2]) {
    let Some(mut vm) = machine.tests().boot() else {
        return;
    };
    let devices = disks.map(|name| {
        if name.is_empty() {
            String::new()
        } else {
            vm.device(name)
        }
    });
    inside::play_one(&mut vm, scene, &devices);
    vm.power_off();
}

fn machine() -> HostMachine {
    HostMachine::new(768)
}

#[test]
fn volumes_of_every_kind_are_served_right() {
    let machine =
        machine()
            .disk(Bus::Virtio, "first", MEBIBYTES)
            .disk(Bus::Virtio, "second", MEBIBYTES);
    play("volumes", machine, ["first", "second"]);
}

#[test]
fn a_volume_that_is_snapshot_and_moved_is_served_right_meanwhile() {
    let machine =
        machine()
            .disk(Bus::Virtio, "first", MEBIBYTES)
            .disk(Bus::Virtio, "second", MEBIBYTES);
    play("volume changes", machine, ["first", "second"]);
}

#[test]
fn encrypted_disks_are_served_right_and_show_nothing() {
    let machine = machine().disk(Bus::Virtio, "disk", MEBIBYTES);
    play("encrypted", machine, ["disk", ""]);
}

#[test]
fn partitions_are_served_right_wherever_they_begin() {
    let machine = machine().disk(Bus::Virtio, "usual", MEBIBYTES).disk_with(
        Bus::Virtio,
        "emulated",
        MEBIBYTES,
        ",logical_block_size=512,physical_block_size=4096",
    );
    play("partitions", machine, ["usual", "emulated"]);
}

#[test]
fn disks_of_large_blocks_are_served_right() {
    const LARGE: &str = ",logical_block_size=4096,physical_block_size=4096";
    let machine = machine()
        .disk_with(Bus::Virtio, "virtio", MEBIBYTES, LARGE)
        .disk_with(Bus::Nvme, "nvme", MEBIBYTES, LARGE);
    play("large blocks", machine, ["virtio", "nvme"]);
}

#[test]
fn a_disk_by_two_paths_is_served_right_while_one_fails() {
    let machine = machine().disk_by_two(Bus::Virtio, ["one", "two"], MEBIBYTES);
    play("paths", machine, ["one", "two"]);
}
