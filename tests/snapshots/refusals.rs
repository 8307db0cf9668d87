//! What is refused, and what is said.

use std::process::Command;

use rig::file_systems::{EXT4, XFS};

use crate::rig::{Disk, IMAGE, extentd, mounted};
use crate::stamps::Stamps;

/// A start that ends at once: its status, and what it says.
fn start(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(extentd())
        .arg("--socket-path")
        .arg(folder.path().join("socket"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let last = text.lines().last().unwrap_or_default();
    (output.status.code(), last.to_owned())
}

#[test]
fn what_is_no_name_or_taken_is_refused_and_the_disk_goes_on() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    disk.json(&["snapshot", "monday"]);
    let long = "x".repeat(201);
    for (name, says) in [
        (
            "monday",
            "there is a monday already: give another name, or remove",
        ),
        ("../image", "is no name for one"),
        (".hidden", "is no name for one"),
        ("a\nb", "is no name for one"),
        ("", "is no name for one"),
        (&long, "is no name for one"),
    ] {
        let refused = disk.extentctl(&["snapshot", name]);
        assert_eq!(
            (refused.status, refused.out.as_str()),
            (Some(1), ""),
            "{name}"
        );
        assert!(refused.error.contains(says), "{}", refused.error);
        assert_eq!(refused.error.lines().count(), 1, "{}", refused.error);
    }
    assert_eq!(disk.names(), ["monday"]);
    stamps.go_on(10);
}

#[test]
fn where_snapshots_are_impossible_the_start_says_so() {
    let (Some(xfs), Some(ext4)) = (mounted(XFS), mounted(EXT4)) else {
        return;
    };
    let folder = |path: std::path::PathBuf| {
        std::fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let image = |path: std::path::PathBuf| {
        drop(rig::files::create(&path, IMAGE));
        path.to_str().unwrap().to_owned()
    };
    let (there, here) = (image(xfs.path("image")), image(ext4.path("image")));
    let (good, bad) = (
        folder(xfs.path("snapshots")),
        folder(ext4.path("snapshots")),
    );
    let missing = format!("{good}/missing");
    for (image, folder, says) in [
        (here.as_str(), bad.as_str(), "cannot be cloned to there"),
        (
            &there,
            &bad,
            "have both on one XFS (made with reflink=1) or one btrfs",
        ),
        (&there, &missing, "No such file or directory"),
        (&there, &there, "Not a directory"),
        (
            ext4.device(),
            &good,
            "a block device, which cannot be cloned",
        ),
    ] {
        let (status, line) = start(&[
            "--blk-file",
            image,
            "--snapshot-dir",
            folder,
            "--lock",
            "off",
        ]);
        assert_eq!(status, Some(1), "{line}");
        assert!(
            line.contains("--snapshot-dir") && line.contains(says),
            "{line}"
        );
    }
    let (status, line) = start(&["--blk-file", &there, "--snapshot-dir", &good, "--swap"]);
    assert_eq!(status, Some(2));
    assert!(
        line.contains("--swap and --snapshot-dir exclude each other"),
        "{line}"
    );
    assert_eq!(
        std::fs::read_dir(&good).unwrap().count(),
        0,
        "no trial is left"
    );
}

#[test]
fn without_the_option_there_are_none() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let [image, socket, control] =
        ["image", "socket", "control"].map(|name| folder.path().join(name));
    drop(rig::files::create(&image, IMAGE));
    let arguments = ["--control-path", control.to_str().unwrap()];
    let _daemon = rig::attached::serve(&extentd(), &socket, &image, &arguments);
    for command in [&["snapshot", "one"][..], &["snapshots"]] {
        let refused = crate::rig::extentctl(&[&control], command);
        assert_eq!(refused.status, Some(1));
        assert!(
            refused.error.contains("started without --snapshot-dir"),
            "{}",
            refused.error
        );
    }
}
