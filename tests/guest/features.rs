//! What the device offers, as Linux sees and uses it.

use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;

#[test]
fn blk_13_guest_cannot_write_to_a_read_only_disk() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.path("disk");
    std::fs::write(&image, vec![0x5a; 4 << 20]).unwrap();
    let before = host::md5(&image);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &["--read-only"]);
    let mut guest = Machine::new(1, 256)
        .disk(&daemon, "vd0", 1)
        .boot(files, &scratch);
    assert_eq!(guest.run("cat /sys/block/vda/ro"), "1");
    assert_eq!(guest.run("md5sum </dev/vda | cut -d' ' -f1"), before);
    let (status, _) = guest.try_run("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync");
    assert_ne!(status, 0, "a write to a read-only disk went through");
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::md5(&image), before);
}

#[test]
fn blk_26_discard_frees_blocks_of_the_image_and_write_zeroes_reads_as_zeroes() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 64);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &[]);
    let mut guest = Machine::new(1, 256)
        .disk(&daemon, "vd0", 1)
        .boot(files, &scratch);
    let full = 64 << 20;

    let pattern = "dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' z >/tmp/z
        for n in $(seq 64); do cat /tmp/z; done | dd of=/dev/vda bs=1M iflag=fullblock conv=fsync 2>/dev/null";
    guest.run(pattern);
    assert!(host::allocated(&image) >= full);
    guest.run("blkdiscard -o 1M -l 31M /dev/vda && sync");
    let freed = full.saturating_sub(host::allocated(&image));
    assert!(
        (30 << 20..34 << 20).contains(&freed),
        "discarding 31 MiB freed {freed} bytes"
    );
    // What is beside the discarded range is untouched.
    assert_eq!(
        guest.run("dd if=/dev/vda bs=1M count=1 2>/dev/null | tr -d z | wc -c"),
        "0"
    );
    assert_eq!(
        guest.run("dd if=/dev/vda bs=1M skip=32 2>/dev/null | tr -d z | wc -c"),
        "0"
    );

    // Not aligned to any block of the host's file system.
    guest.run(
        "/tools/blkdiscard -z -o 33554944 -l 16776704 /dev/vda && echo 3 >/proc/sys/vm/drop_caches",
    );
    assert_eq!(
        guest.run("dd if=/dev/vda bs=512 skip=65537 count=32767 2>/dev/null | tr -d '\\0' | wc -c"),
        "0"
    );
    assert_eq!(
        guest.run("dd if=/dev/vda bs=512 skip=65536 count=1 2>/dev/null | tr -d z | wc -c"),
        "0"
    );
    assert_eq!(
        guest.run("dd if=/dev/vda bs=512 skip=98304 2>/dev/null | tr -d z | wc -c"),
        "0"
    );

    // A file system's trim: what a deleted file held goes back to the host.
    guest.run(&format!(
        "{pattern}; mkfs.ext4 -q -F -E nodiscard /dev/vda && mount /dev/vda /mnt"
    ));
    guest.run(
        "dd if=/dev/urandom of=/mnt/file bs=1M count=16 2>/dev/null; sync; rm /mnt/file; sync",
    );
    let held = host::allocated(&image);
    guest.run("fstrim /mnt && umount /mnt");
    let freed = held.saturating_sub(host::allocated(&image));
    assert!(freed >= 48 << 20, "fstrim freed only {freed} bytes");
    guest.run("e2fsck -fn /dev/vda");
    guest.power_off();
    assert!(daemon.terminate().success());
}

#[test]
fn blk_23_guest_switches_between_write_back_and_write_through() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 16);
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &[]);
    let mut guest = Machine::new(1, 256)
        .disk(&daemon, "vd0", 1)
        .boot(files, &scratch);
    assert_eq!(guest.run("cat /sys/block/vda/cache_type"), "write back");
    for mode in ["write through", "write back", "write through"] {
        guest.run(&format!("echo {mode} >/sys/block/vda/cache_type"));
        // Read from the device's configuration, not from what the driver remembers.
        assert_eq!(guest.run("cat /sys/block/vda/cache_type"), mode);
        guest.run("dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null");
    }
    let seen = guest.run("md5sum </dev/vda | cut -d' ' -f1");
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::md5(&image), seen);
}

#[test]
fn blk_39_guest_uses_a_disk_with_4096_byte_blocks() {
    let Some(files) = host::boot_files() else {
        return;
    };
    let scratch = Scratch::new();
    let image = scratch.image("disk", 32);
    let daemon = Daemon::start(
        &scratch.path("disk.sock"),
        &image,
        &["--logical-block-size", "4096"],
    );
    let mut guest = Machine::new(1, 256)
        .disk(&daemon, "vd0", 1)
        .boot(files, &scratch);
    assert_eq!(
        guest.run("cat /sys/block/vda/queue/logical_block_size"),
        "4096"
    );
    assert_eq!(guest.run("cat /sys/block/vda/size"), "65536");
    guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && dd if=/dev/urandom of=/mnt/a bs=1M count=8 2>/dev/null; umount /mnt");
    guest.run("e2fsck -fn /dev/vda");
    let seen = guest.run("md5sum </dev/vda | cut -d' ' -f1");
    guest.power_off();
    assert!(daemon.terminate().success());
    assert_eq!(host::md5(&image), seen);
}
