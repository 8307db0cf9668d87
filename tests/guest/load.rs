//! Load with verification, and no load at all.

use std::process::Command;
use std::time::Duration;

use rig::program::run;
use rig::qemu::vm::Machine;
use rig::scratch::Scratch;
use serde_json::json;

use crate::daemon::Daemon;
use crate::host;

/// The value that the verifier printed after `name`.
pub fn printed<'a>(output: &'a str, name: &str) -> &'a str {
    let mut lines = output.lines().filter_map(|line| line.strip_prefix(name));
    lines
        .next()
        .unwrap_or_else(|| panic!("no {name} in: {output}"))
        .trim()
}

#[test]
fn sixteen_threads_on_four_queues_read_and_write_for_30_seconds_and_the_host_agrees() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 128);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &["--num-queues", "4"]);
    let mut guest = Machine::new(4, 512)
        .disk(&daemon, "vd0", 4)
        .boot(files, &scratch);
    assert_eq!(guest.run("ls /sys/block/vda/mq | wc -l"), "4");
    let output = guest.run("verifier random /dev/vda 16 30");
    let operations: u64 = printed(&output, "operations").parse().unwrap();
    assert!(operations > 1000, "only {operations} operations");
    // Each queue had its share: its interrupt came.
    let interrupts = guest.run("awk '/virtio.*-req/ { sum = 0; for (i = 2; i < 6; i++) sum += $i; print sum }' /proc/interrupts");
    let counts: Vec<u64> = interrupts
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(counts.len(), 4, "interrupts: {counts:?}");
    assert!(
        counts.iter().all(|&count| count > 50),
        "interrupts: {counts:?}"
    );
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::digest(&image), printed(&output, "digest"));
}

#[test]
fn two_disks_served_by_two_processes_keep_apart() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let images = [scratch.image("disk-a", 32), scratch.image("disk-b", 64)];
    let daemons = [
        Daemon::start(&scratch.path("a.sock"), &images[0], &["--serial", "a"]),
        Daemon::start(
            &scratch.path("b.sock"),
            &images[1],
            &["--serial", "b", "--num-queues", "2"],
        ),
    ];
    let machine = Machine::new(2, 384)
        .disk(&daemons[0], "vd0", 1)
        .disk(&daemons[1], "vd1", 2);
    let mut guest = machine.boot(files, &scratch);
    assert_eq!(
        guest.run("cat /sys/block/vda/serial /sys/block/vdb/serial"),
        "ab"
    );
    assert_eq!(
        guest.run("cat /sys/block/vda/size /sys/block/vdb/size"),
        "65536\n131072"
    );
    guest.spawn("a", "verifier random /dev/vda 4 5");
    guest.spawn("b", "verifier random /dev/vdb 4 5");
    let outputs = [guest.join("a"), guest.join("b")];
    guest.power_off();
    for ((daemon, image), output) in daemons.into_iter().zip(&images).zip(&outputs) {
        assert!(daemon.terminate().success());
        assert_eq!(host::digest(image), printed(output, "digest"));
    }
}

#[test]
fn vu_23_24_memory_is_plugged_and_unplugged_under_load() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let images = [scratch.image("disk-a", 64), scratch.image("disk-b", 288)];
    let content = scratch.path("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(
        content.join("file"),
        (0..224_u32 << 18)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>(),
    )
    .unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-d"])
        .arg(&content)
        .arg(&images[1]))
    .unwrap();
    let sum = host::md5(&content.join("file"));
    let daemons = [
        Daemon::start(&scratch.path("a.sock"), &images[0], &["--num-queues", "2"]),
        Daemon::start(&scratch.path("b.sock"), &images[1], &["--read-only"]),
    ];
    let machine = Machine::new(2, 256)
        .disk(&daemons[0], "vd0", 2)
        .disk(&daemons[1], "vd1", 1);
    // Movable, so that the guest can give it back.
    let mut guest = machine
        .kernel_arguments("memhp_default_state=online_movable")
        .boot(files, &scratch);
    let total = "awk '/^MemTotal:/ { print $2 }' /proc/meminfo";
    let before: u64 = guest.run(total).parse().unwrap();
    guest.spawn("load", "verifier random /dev/vda 8 600");

    let backend = json!({ "qom-type": "memory-backend-memfd", "id": "more", "size": 256_u64 << 20, "share": true });
    guest.qmp.execute("object-add", &backend);
    guest.qmp.execute(
        "device_add",
        &json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" }),
    );
    guest.wait_for(&format!("[ $({total}) -ge {} ]", before + (250 << 10)));
    guest.run("mount -o ro,noload /dev/vdb /mnt");
    // More than the memory it booted with can hold: the page cache, and so the requests, reach the
    // new one.
    assert_eq!(guest.run("md5sum </mnt/file | cut -d' ' -f1"), sum);
    let cached: u64 = guest
        .run("awk '/^Cached:/ { print $2 }' /proc/meminfo")
        .parse()
        .unwrap();
    assert!(
        cached > before,
        "the page cache holds {cached} kB and fits the {before} kB of before"
    );

    guest.qmp.unplug("dimm");
    guest.qmp.execute("object-del", &json!({ "id": "more" }));
    guest.run("touch /tmp/stop");
    let output = guest.join("load");
    guest.power_off();
    for daemon in daemons {
        assert!(daemon.terminate().success());
    }
    assert_eq!(host::digest(&images[0]), printed(&output, "digest"));
}

#[test]
fn an_idle_disk_costs_no_cpu_time() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 16);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &["--num-queues", "2"]);
    let mut guest = Machine::new(2, 256)
        .disk(&daemon, "vd0", 2)
        .boot(files, &scratch);
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=64 2>/dev/null");
    let completed = guest.run("cat /sys/block/vda/stat");
    let before = daemon.cpu_ticks();
    // The subject is what happens while time passes, so nothing can be awaited.
    std::thread::sleep(Duration::from_secs(6));
    let used = daemon.cpu_ticks() - before;
    assert_eq!(
        guest.run("cat /sys/block/vda/stat"),
        completed,
        "the guest was not idle"
    );
    assert!(used <= 1, "{used} ticks of 10 ms in 6 s");
    guest.power_off();
    assert!(daemon.terminate().success());
}
