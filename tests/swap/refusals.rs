//! What cannot be made swap-grade is refused with the reason and the remedy.

use std::path::Path;
use std::process::Command;

use rig::file_systems::{BTRFS, BTRFS_COMPRESSED, EXT4, EXT4_JOURNAL, Made};

use crate::served::{Served, complaint, extentctl, extentd, has_sys_resource, mounted};

/// Both programs refuse an image there, which is left as it was.
fn refused(image: &Path, reasons: &[&str]) {
    let name = image.to_str().unwrap();
    let before = std::fs::metadata(image).unwrap().len();
    let text = complaint(&extentctl(&["prepare", name]));
    for reason in reasons {
        assert!(text.contains(reason), "{text}");
    }
    assert_eq!(std::fs::metadata(image).unwrap().len(), before);
}

fn refused_on(made: Made, reasons: &[&str]) {
    let Some(fs) = mounted(made) else { return };
    fs.create("disk").set_len(4 << 20).unwrap();
    refused(&fs.path("disk"), reasons);
    let new = fs.path("new");
    let output = extentctl(&["prepare", new.to_str().unwrap(), "--size", "4M"]);
    assert!(complaint(&output).contains(reasons[0]));
    assert!(!new.exists(), "what was made for nothing stays behind");
}

#[test]
fn btrfs_is_refused() {
    refused_on(
        BTRFS,
        &["btrfs writes everything to new blocks", "ext4 or XFS"],
    );
}

#[test]
fn compression_is_refused() {
    refused_on(BTRFS_COMPRESSED, &["btrfs"]);
}

#[test]
fn a_data_journal_is_refused() {
    refused_on(EXT4_JOURNAL, &["data=journal"]);
}

#[test]
fn tmpfs_is_refused() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    refused(&image, &["tmpfs is memory itself", "ext4 or XFS"]);
}

#[test]
fn too_little_space_is_refused_before_anything_is_written() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(1 << 30).unwrap();
    refused(
        &fs.path("disk"),
        &["needs 1 GiB more", "its file system has", "smaller image"],
    );
    let new = fs.path("new");
    let output = extentctl(&["prepare", new.to_str().unwrap(), "--size", "1G"]);
    assert!(complaint(&output).contains("needs 1 GiB more"));
    assert!(!new.exists());
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len((4 << 20) + 512).unwrap();
    refused(
        &fs.path("disk"),
        &["no multiple of 4096", "truncate -s %4096"],
    );
    let name = fs.path("disk");
    let output = extentctl(&["prepare", name.to_str().unwrap(), "--size", "1M"]);
    assert!(complaint(&output).contains("more than --size"));
    let none = fs.path("none");
    let output = extentctl(&["prepare", none.to_str().unwrap()]);
    assert!(complaint(&output).contains("give --size"));
}

#[test]
fn missing_privileges_are_each_named_with_what_they_need() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(4 << 20).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_resource,-ipc_lock"])
        .args(["--inh-caps", "-sys_resource,-ipc_lock"])
        .arg("prlimit")
        .arg("--memlock=65536")
        .arg(rig::extentd!())
        .arg("--swap")
        .arg("--socket-path")
        .arg(directory.path().join("socket"))
        .arg("--blk-file")
        .arg(fs.path("disk"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = complaint(&output);
    for part in [
        "I/O flusher",
        "AmbientCapabilities=CAP_SYS_RESOURCE",
        "out-of-memory killer",
        "OOMScoreAdjust=-1000",
        "lock its memory",
        "LimitMEMLOCK=infinity",
        "ulimit -l unlimited",
        "--swap=best-effort",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn an_image_that_cannot_be_prepared_is_served_by_best_effort_only() {
    let Some(fs) = mounted(BTRFS) else { return };
    fs.create("disk").set_len(crate::served::IMAGE).unwrap();
    let image = fs.path("disk");
    let output = extentd(&image, &["--swap"]);
    assert_eq!(output.status.code(), Some(1));
    if has_sys_resource() {
        assert!(complaint(&output).contains("btrfs"), "{output:?}");
    }
    let served = Served::best_effort(&image);
    assert!(!served.holds("extents_written"));
    assert!(!served.holds("map_pinned"));
    assert_eq!(served.swap()["holds"], false);
    crate::served::Guest::attach(&served).load(1000);
    let lines = served.daemon.stderr();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("not swap-grade") && line.contains("btrfs")),
        "{lines:?}"
    );
}
