//! Limits that cannot be kept are refused in one line.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use crate::rig;

/// The status and the line of a start that fails.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = rig::folder();
    let image = rig::image(folder.path());
    let output = Command::new(::rig::extentd!())
        .arg("--socket-path")
        .arg(folder.path().join("socket"))
        .arg("--blk-file")
        .arg(image)
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    (output.status.code(), error)
}

#[test]
fn a_limit_that_is_none_is_refused_with_what_may_be_meant() {
    for (limits, said) in [
        (&["iosp=1"][..], "'iosp' is no limit: did you mean iops?"),
        (&["bps-total=1"], "did you mean bytes?"),
        (&["iops=1,iops=2"], "iops is given twice"),
        (&["iops=1", "iops=2"], "--limit: iops is given twice"),
        (&["iops=fast"], "'fast' is no number of requests"),
        (
            &["burst-iops=5"],
            "there is no iops that this is the burst of: give both",
        ),
    ] {
        let arguments: Vec<&str> = limits.iter().flat_map(|limit| ["--limit", limit]).collect();
        let (status, error) = refused(&arguments);
        assert_eq!(status, Some(2), "{error}");
        assert!(error.contains("--limit") && error.contains(said), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_a_groups_is_refused() {
    let folder = rig::folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (text, other, link, fifo) = (path("text"), path("other"), path("link"), path("fifo"));
    fs::write(&text, "no group").unwrap();
    let newer = fs::File::create_new(&other).unwrap();
    newer.set_len(4096).unwrap();
    newer.write_all_at(b"extlim\0\x02", 0).unwrap();
    symlink(&text, &link).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let on_disk = ::rig::scratch::folder("limits");
    let on_disk = on_disk.path().join("group").to_str().unwrap().to_owned();
    for (file, said) in [
        (
            text,
            "is no group's file of this version: give an empty or new file",
        ),
        (
            other,
            "is no group's file of this version: give an empty or new file",
        ),
        (
            link,
            "give a file, or the name of a new one, that this user may read and write",
        ),
        (fifo, "is no regular file"),
        (path("no/folder"), "give a file, or the name of a new one"),
        (folder.path().to_str().unwrap().to_owned(), "give a file"),
        (
            on_disk,
            "lies on a disk, which could make requests wait: put it on a tmpfs",
        ),
    ] {
        let (status, error) = refused(&["--limit-group", &file]);
        assert_eq!(status, Some(1), "{error}");
        assert!(
            error.contains(&format!("--limit-group {file}: ")) && error.contains(said),
            "{error}"
        );
    }
}
