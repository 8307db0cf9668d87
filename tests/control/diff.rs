//! `diff`: what changed since a snapshot, of a file at rest and of a disk at
//! work.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::file_systems::XFS;
use rig::files::reflink;
use serde_json::{Value, json};

use crate::rig::{IMAGE, Rig, content};

/// A clone of the image as it is.
fn snapshot(rig: &Rig, name: &str) -> PathBuf {
    let path = rig.image.with_file_name(name);
    let (image, clone) = (File::open(&rig.image), File::create_new(&path));
    let clone = clone.unwrap();
    reflink(&image.unwrap(), &clone).unwrap();
    clone.sync_all().unwrap();
    path
}

/// extentctl without an extentd: its status, and what it says and complains of.
fn alone(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(rig::extentctl!())
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, error) = (text(output.stdout), text(output.stderr));
    (output.status.code(), out, error)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_a_guest_changed_since_a_snapshot_is_told_while_it_works() {
    let Some(rig) = Rig::on(XFS, &[]) else { return };
    let mut guest = rig.attach();
    guest.write(0, &content(7, 4096));
    let before = snapshot(&rig, "before");
    guest.write(8192, &content(3, 4096));
    guest.write(1 << 20, &content(4, 8192));
    let live = rig.json(&["diff", text(&before)]);
    let expected = json!([
        { "start": 8192, "len": 4096, "zeros": false },
        { "start": 1 << 20, "len": 8192, "zeros": false },
    ]);
    assert_eq!(live["ranges"], expected, "{live}");
    assert_eq!(live["from_bytes"], IMAGE);
    assert_eq!(live["to_bytes"], IMAGE);
    assert_eq!(live["different_bytes"], 4096 + 8192);
    assert_eq!(live["one_disk"], true);
    // It has gone on.
    assert_eq!(rig.json(&["info"])["held_ms"], Value::Null);
    guest.write(16384, &content(5, 4096));
    assert_eq!(guest.read(8192, 4096), content(3, 4096));

    let after = snapshot(&rig, "after");
    let (status, lines, said) = alone(&["diff", text(&before), text(&after)]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(
        lines,
        "8192 4096 data\n16384 4096 data\n1048576 8192 data\n"
    );
    assert!(said.contains("3 ranges, 16 KiB; A has 12 MiB"), "{said}");
    let (status, lines, _) = alone(&["--json", "diff", text(&after), text(&after)]);
    let none: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((status, &none["ranges"]), (Some(0), &json!([])));
}

#[test]
fn what_is_written_or_no_file_is_refused_in_one_line() {
    let Some(rig) = Rig::on(XFS, &[]) else { return };
    let before = snapshot(&rig, "before");
    let mut guest = rig.attach();
    guest.write(0, &content(0, 512));
    let missing = before.with_file_name("missing");
    for (to, says) in [
        (
            text(&rig.image),
            "extentd): give a snapshot of it, or the --control-path",
        ),
        (text(&missing), "No such file"),
        (rig.device(), "not a regular file"),
        ("/dev/null", "not a regular file"),
    ] {
        let (status, out, said) = alone(&["diff", text(&before), to]);
        assert_eq!((status, out.as_str()), (Some(1), ""), "{said}");
        assert!(said.contains(says) && said.lines().count() == 1, "{said}");
        assert!(said.contains(to), "{said}");
    }
    // Where extents are not told at all.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let there = folder.path().join("file");
    File::create(&there).unwrap().set_len(1 << 20).unwrap();
    let (status, _, said) = alone(&["diff", text(&there), text(&there)]);
    assert_eq!(status, Some(1));
    assert!(said.contains("snapshots need XFS or btrfs"), "{said}");
    let (status, _, said) = alone(&["diff", text(&before)]);
    assert_eq!(status, Some(2));
    assert!(said.contains("--control-path"), "{said}");
}

#[test]
fn a_comparison_that_the_disk_does_not_wait_for_fails() {
    let Some(rig) = Rig::on(XFS, &[]) else { return };
    let before = snapshot(&rig, "before");
    let _guest = rig.attach();
    rig.extentctl(&["quiesce", "--for", "60"]).text();
    let refused = rig.extentctl(&["diff", text(&before)]);
    assert!(
        !refused.ok && refused.error.contains("extentctl resume"),
        "{}",
        refused.error
    );
    // Whoever held it still does.
    assert!(rig.json(&["info"])["held_ms"].is_u64());
    rig.extentctl(&["resume"]).text();
}
