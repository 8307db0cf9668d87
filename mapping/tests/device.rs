//! Finding and proving the device, and each refusal that a test machine can produce.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::sync::Arc;

use mapping::device::{BackingDevice, Refusal, admit};
use rig::file_systems::{EXT4, EXT4_JOURNAL, Made, Mounted, XFS};
use rig::files::{open_direct, pattern};
use rig::program::run;

fn image(fs: &Mounted, name: &str) -> Arc<File> {
    let file = fs.create(name);
    file.write_all_at(&pattern(9, 0, 3 << 20), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    Arc::new(open_direct(fs.path(name)))
}

#[test]
fn the_device_is_found_opened_in_the_files_mode_and_proved() {
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let file = image(&fs, "image");
        let device = BackingDevice::find(&file).unwrap();
        assert_eq!(device.path().unwrap().to_str(), Some(fs.device()));
        assert_eq!(device.number(), file.metadata().unwrap().dev());
        assert_eq!(device.size(), made.megabytes << 20);
        assert!([512, 4096].contains(&device.logical_block()));
        assert!(device.page_block() >= 512 && !device.is_image());
        let proof = device.prove(&file).unwrap();
        assert!(
            proof.blocks >= 3 && proof.nonzero == proof.blocks,
            "{proof:?}"
        );
        let read_only = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(fs.path("image"))
            .unwrap();
        let device = BackingDevice::find(&read_only).unwrap();
        let error = device.file().write_at(&[0; 512], 0).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(libc::EBADF),
            "the device of a read-only image cannot be written"
        );
    }
}

#[test]
fn an_image_that_is_a_device_is_its_own() {
    let Some(fs) = Mounted::new(EXT4) else { return };
    let file = Arc::new(
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(fs.device())
            .unwrap(),
    );
    let device = BackingDevice::find(&file).unwrap();
    assert!(device.is_image());
    assert_eq!(device.size(), fs.made.megabytes << 20);
    device.prove(&file).unwrap();
}

#[test]
fn the_proof_notices_a_device_that_is_not_the_files() {
    let (Some(one), Some(other)) = (Mounted::new(EXT4), Mounted::new(EXT4)) else {
        return;
    };
    let file = image(&one, "image");
    // Files made alike lie at the same places, so this one has other bytes.
    let decoy = other.create("decoy");
    decoy.write_all_at(&pattern(10, 0, 3 << 20), 0).unwrap();
    decoy.sync_all().unwrap();
    let wrong = BackingDevice::find(&decoy).unwrap();
    assert!(matches!(wrong.prove(&file), Err(Refusal::Mismatch { .. })));
}

#[test]
fn an_image_without_data_disproves_nothing() {
    let Some(fs) = Mounted::new(EXT4) else { return };
    fs.create("empty").set_len(64 << 20).unwrap();
    let file = Arc::new(open_direct(fs.path("empty")));
    assert_eq!(
        BackingDevice::find(&file)
            .unwrap()
            .prove(&file)
            .unwrap()
            .blocks,
        0
    );
}

#[test]
fn the_proof_wants_direct_io_and_an_empty_cache() {
    let Some(fs) = Mounted::new(EXT4) else { return };
    let file = image(&fs, "image");
    let device = BackingDevice::find(&file).unwrap();
    let buffered = Arc::new(File::open(fs.path("image")).unwrap());
    assert!(matches!(device.prove(&buffered), Err(Refusal::NotDirect)));
    // A page that somebody has mapped cannot be dropped.
    // SAFETY: a private read of a new mapping of one page, unmapped below.
    #[allow(unsafe_code)]
    let page = unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            buffered.as_raw_fd(),
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        page.cast::<u8>().read_volatile();
        page
    };
    let result = device.prove(&file);
    // SAFETY: mapped above, not used any more.
    #[allow(unsafe_code)]
    unsafe {
        libc::munmap(page, 4096)
    };
    assert!(matches!(result, Err(Refusal::Cached(_))), "{result:?}");
    device.prove(&file).unwrap();
}

#[test]
fn attributes_that_forbid_the_disk_path_are_named() {
    for (made, flag) in [
        (EXT4, "+i"),
        (EXT4, "+a"),
        (EXT4, "+j"),
        (XFS, "+i"),
        (XFS, "+a"),
    ] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let file = image(&fs, "image");
        admit(&file).unwrap();
        if let Err(reason) = run(Command::new("chattr").arg(flag).arg(fs.path("image"))) {
            eprintln!("skipped: {reason}");
            continue;
        }
        let refusal = admit(&file).unwrap_err();
        let _ = run(Command::new("chattr")
            .args(["-i", "-a"])
            .arg(fs.path("image")));
        let fits = match flag {
            "+i" => matches!(refusal, Refusal::Immutable),
            "+a" => matches!(refusal, Refusal::AppendOnly),
            _ => matches!(refusal, Refusal::DataJournal),
        };
        assert!(fits, "{flag} on {}: {refusal}", made.name);
    }
}

#[test]
fn mount_options_that_forbid_the_disk_path_are_named() {
    if let Some(fs) = Mounted::new(EXT4_JOURNAL) {
        let refusal = admit(&image(&fs, "image")).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::MountOption(_) | Refusal::DataJournal),
            "{refusal}"
        );
    }
    let nobarrier = Made {
        name: "ext4-nobarrier",
        options: "nobarrier",
        ..EXT4
    };
    if let Some(fs) = Mounted::new(nobarrier) {
        let refusal = admit(&image(&fs, "image")).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the file system is mounted with nobarrier"
        );
    }
    // Set as a default in the superblock: not among the options that mountinfo shows.
    if let Some(fs) = Mounted::new(Made {
        mkfs: &["mkfs.ext4", "-q", "-F", "-E", "mount_opts=nobarrier"],
        ..EXT4
    }) {
        assert!(admit(&image(&fs, "image")).is_err());
    }
}

#[test]
fn file_systems_without_a_device_are_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"x").unwrap();
    let refusal = BackingDevice::find(&File::open(path).unwrap()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the file system (tmpfs) is not ext4 or XFS, whose block addresses can be trusted"
    );
    let refusal = BackingDevice::find(&File::open(dir.path()).unwrap()).unwrap_err();
    assert!(matches!(refusal, Refusal::NotRegular));
}
