//! All inotify instances of the user are taken, as on a host with a process
//! for each of many disks: the disk path is entered, left and entered again.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rig::file_systems::{EXT4, Mounted};
use rig::image::Image;
use rig::model::SECTOR;
use tempfile::TempDir;

use crate::disturb;
use crate::lane::all;
use crate::served::{Guest, Served, binary};

/// Bytes of the image, and its sectors.
const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;

/// A program that runs extentd in a user name space that may have no instance. `None`, with the
/// reason printed, where there can be none.
fn runner(files: &TempDir) -> Option<PathBuf> {
    let take = "echo 0 >/proc/sys/user/max_inotify_instances";
    let space = "unshare --user --map-root-user sh -ec";
    let mut probe = Command::new("sh");
    match probe.args(["-c", &format!("{space} '{take}'")]).status() {
        Ok(status) if status.success() => {}
        other => {
            eprintln!("SKIP: no user name space: {other:?}");
            return None;
        }
    }
    let path = files.path().join("extentd");
    let binary = binary().display().to_string();
    let text = format!("#!/bin/sh\nexec {space} '{take}; exec \"$@\"' sh {binary} \"$@\"\n");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Some(path)
}

#[test]
fn the_disk_path_comes_back_without_inotify() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let files = rig::scratch::folder("runner");
    let Some(runner) = runner(&files) else { return };
    let image = Image::written(&host, BYTES);
    let variables = [("RUST_LOG", "debug")];
    let served = Served::run(&runner, &image.path, &[], &variables, Stdio::piped());
    let mut guest = Guest::attach(&served);
    let before = served.wait_disk();
    let unwatched = "changes of the image are not watched";
    served
        .daemon
        .wait_stderr(|line| line.contains(unwatched))
        .unwrap();
    for round in 1..=3 {
        drop(disturb::cat(&image.path));
        served.wait_entries(before.entries + round);
        guest.load(&served, 0..SECTORS);
        let seen = guest.lane(0).see(0..SECTORS);
        assert_eq!(seen, all(rig::image::FIRST, SECTORS));
    }
    drop(guest);
    assert!(served.daemon.terminate().unwrap().success());
}
