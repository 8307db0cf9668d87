//! The examples do what they say, on real file systems.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use rig::file_systems::{EXT4, Mounted, XFS};
use rig::files::{fallocate, pattern};
use rig::program::run;

/// Cargo builds examples next to the tests, but not if asked for a single test (`--test examples`).
fn example(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name);
    if !path.exists() {
        eprintln!("skipped: {name} is not built: run cargo build --examples");
        return None;
    }
    Some(path)
}

#[test]
fn an_image_is_printed_and_copied_straight_from_the_disk() {
    let (Some(copy_by_map), Some(print_map)) = (example("copy_by_map"), example("print_map"))
    else {
        return;
    };
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let image = fs.create("image");
        image.set_len((8 << 20) + 1000).unwrap();
        image.write_all_at(&pattern(5, 0, 1 << 20), 0).unwrap();
        image
            .write_all_at(&pattern(5, 5 << 20, 70_000), 5 << 20)
            .unwrap();
        image
            .write_all_at(&pattern(5, 8 << 20, 1000), 8 << 20)
            .unwrap();
        fallocate(&image, 0, 2 << 20, 1 << 20).unwrap();
        image.sync_all().unwrap();
        drop(image);
        let said = run(Command::new(&copy_by_map)
            .arg(fs.path("image"))
            .arg(fs.path("copy")))
        .unwrap();
        assert!(
            said.contains("the copy reads the same as the image"),
            "{said}"
        );
        assert!(said.contains(" 0 through the file"), "{said}");
        assert_eq!(
            std::fs::read(fs.path("image")).unwrap(),
            std::fs::read(fs.path("copy")).unwrap()
        );
        let printed = run(Command::new(&print_map).arg(fs.path("image"))).unwrap();
        assert!(printed.contains(fs.device()), "{printed}");
        for kind in ["written", "unwritten", "hole"] {
            assert!(
                printed
                    .lines()
                    .any(|line| line.ends_with(&format!("  {kind}"))),
                "{kind}: {printed}"
            );
        }
        // Somebody has the image open for writing: no lease, no copy, and a clear word.
        let _open = std::fs::OpenOptions::new()
            .write(true)
            .open(fs.path("image"))
            .unwrap();
        let refused = run(Command::new(&copy_by_map)
            .arg(fs.path("image"))
            .arg(fs.path("copy2")));
        assert!(
            refused
                .unwrap_err()
                .contains("somebody else has the image open")
        );
    }
}
