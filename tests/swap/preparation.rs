//! `extentctl prepare`: what it writes, and what it leaves alone.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mapping::Fiemap;
use mapping::path::Survey;
use rig::file_systems::{EXT4, EXT4_1K, Made, Mounted, XFS};
use rig::files::{fallocate, pattern, punch, read_all, reflink};

use crate::served::{IMAGE, complaint, extentctl, mounted};

fn survey(path: &Path) -> Survey {
    let file = Arc::new(std::fs::File::open(path).unwrap());
    Survey::of(&Fiemap::new(file)).unwrap()
}

/// Every kind of extent: data, a hole, blocks never written, data again.
fn mixed(fs: &Mounted, name: &str) -> Vec<u8> {
    let file = fs.create(name);
    file.set_len(IMAGE).unwrap();
    file.write_all_at(&pattern(1, 0, 3 << 20), 0).unwrap();
    fallocate(&file, 0, 8 << 20, 4 << 20).unwrap();
    file.write_all_at(&pattern(1, 9 << 20, 64 << 10), 9 << 20)
        .unwrap();
    // Holes of single blocks between data.
    file.write_all_at(&pattern(1, 16 << 20, 1 << 20), 16 << 20)
        .unwrap();
    file.sync_all().unwrap();
    for block in 0..64 {
        punch(&file, (16 << 20) + block * 8192, 4096);
    }
    file.sync_all().unwrap();
    read_all(&file)
}

fn prepared_keeps_data(made: Made) {
    let Some(fs) = mounted(made) else { return };
    let before = mixed(&fs, "disk");
    let path = fs.path("disk");
    let found = survey(&path);
    assert!(found.holes > 0 && found.unwritten > 0, "{found}");
    let output = extentctl(&["prepare", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let found = survey(&path);
    assert_eq!((found.unfit(), found.written), (0, IMAGE), "{found}");
    let file = std::fs::File::open(&path).unwrap();
    assert!(read_all(&file) == before, "data were touched");
    drop(file);
    let again = extentctl(&["prepare", path.to_str().unwrap()]);
    let text = String::from_utf8(again.stdout).unwrap();
    assert!(text.contains("nothing was left to do"), "{text}");
    // What cannot be helped is told each time.
    let text = String::from_utf8(again.stderr).unwrap();
    assert!(
        text.lines().all(|line| line.contains("warning: ")),
        "{text}"
    );
}

#[test]
fn mixed_images_become_written_and_keep_their_data_on_ext4() {
    prepared_keeps_data(EXT4);
}

#[test]
fn mixed_images_become_written_and_keep_their_data_on_ext4_with_small_blocks() {
    prepared_keeps_data(EXT4_1K);
}

#[test]
fn mixed_images_become_written_and_keep_their_data_on_xfs() {
    prepared_keeps_data(XFS);
}

#[test]
fn reflinked_extents_are_unshared_and_the_other_file_is_left_alone() {
    let Some(fs) = mounted(XFS) else { return };
    let before = mixed(&fs, "disk");
    let (path, other) = (fs.path("disk"), fs.create("other"));
    reflink(&std::fs::File::open(&path).unwrap(), &other).unwrap();
    assert!(survey(&path).shared > 0);
    let output = extentctl(&["prepare", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(survey(&path).unfit(), 0);
    assert!(read_all(&std::fs::File::open(&path).unwrap()) == before);
    assert!(read_all(&other) == before);
}

#[test]
fn an_image_is_made_from_nothing_and_made_longer() {
    for made in [EXT4, XFS] {
        let Some(fs) = mounted(made) else { return };
        let path = fs.path("disk");
        let name = path.to_str().unwrap();
        assert!(
            extentctl(&["prepare", name, "--size", "8M"])
                .status
                .success()
        );
        assert_eq!(survey(&path).written, 8 << 20);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&pattern(3, 0, 8 << 20), 0).unwrap();
        drop(file);
        assert!(
            extentctl(&["prepare", name, "--size", "20M"])
                .status
                .success()
        );
        let found = survey(&path);
        assert_eq!((found.written, found.unfit()), (20 << 20, 0));
        let bytes = read_all(&std::fs::File::open(&path).unwrap());
        assert!(bytes[..8 << 20] == pattern(3, 0, 8 << 20));
        assert!(bytes[8 << 20..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_is_interrupted_goes_on_where_it_ended() {
    let Some(fs) = mounted(EXT4) else { return };
    let before = mixed(&fs, "disk");
    let path = fs.path("disk");
    let whole = survey(&path).unfit();
    for signal in ["INT", "TERM"] {
        let left = survey(&path).unfit();
        let mut child = Command::new(rig::extentctl!())
            .args(["prepare", path.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Something is done, and something is left.
        lines.next().unwrap().unwrap();
        lines.next().unwrap().unwrap();
        let pid = child.id().to_string();
        let _ = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap();
        let status = child.wait().unwrap();
        let last = lines.last().unwrap().unwrap();
        if status.success() {
            // It was faster than the signal: nothing is shown by this run.
            println!("done before the signal came");
            continue;
        }
        assert_eq!(status.code(), Some(130));
        assert!(
            last.contains("interrupted: what is done stays done"),
            "{last}"
        );
        assert!(survey(&path).unfit() < left);
    }
    let output = extentctl(&["prepare", path.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{output:?}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        result["changed_bytes"].as_u64().unwrap() < whole,
        "the whole was done again: {result}"
    );
    assert_eq!(survey(&path).unfit(), 0);
    assert!(read_all(&std::fs::File::open(&path).unwrap()) == before);
}

#[test]
fn an_image_that_somebody_has_open_is_refused() {
    let Some(fs) = mounted(EXT4) else { return };
    mixed(&fs, "disk");
    let path = fs.path("disk");
    let reader = std::fs::File::open(&path).unwrap();
    let before = survey(&path);
    let output = extentctl(&["prepare", path.to_str().unwrap()]);
    assert!(!output.status.success());
    let text = complaint(&output);
    assert!(text.contains("somebody else has the image open"), "{text}");
    assert_eq!(survey(&path), before);
    drop(reader);
}
