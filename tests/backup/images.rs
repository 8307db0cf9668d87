//! Clones of a snapshot, and the end of sharing.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mapping::{ExtentSource, Fiemap, Kind};
use rig::file_systems::{BTRFS, EXT4, XFS};
use rig::files::{open_direct, pattern, read_direct, write_direct};

use crate::rig::{SIZE, Served, extentctl, image, mounted, run, snapshot, text};

/// Bytes that a file shares with others.
fn shared(path: &Path) -> u64 {
    let mut bytes = 0;
    let source = Fiemap::new(Arc::new(File::open(path).unwrap()));
    source
        .fill(0..SIZE, &mut |extent| {
            if extent.kind == Kind::Shared {
                bytes += extent.len;
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    bytes
}

#[test]
fn a_clone_is_a_disk_of_its_own_that_shares_what_nobody_has_written() {
    for made in [XFS, BTRFS] {
        let Some(mounted) = mounted(made) else { return };
        image(&mounted);
        let golden = snapshot(&mounted, "golden");
        let before = read_direct(&golden);
        let new = mounted.path("new");
        let told = extentctl(&["--json", "clone", text(&golden), text(&new)]).json();
        assert_eq!(told["size_bytes"], SIZE);
        assert!(read_direct(&new) == before);
        assert!(shared(&new) > 2 << 20);
        write_direct(&open_direct(&new), &pattern(9, 0, 4096), 0);
        assert!(read_direct(&golden) == before);
        let said = extentctl(&["clone", text(&golden), text(&new)]).refusal();
        assert!(said.contains("there is such a file already"), "{said}");
        assert!(read_direct(&new)[..4096] == pattern(9, 0, 4096));
    }
}

#[test]
fn what_cannot_be_cloned_is_refused_with_the_remedy_and_nothing_is_left() {
    let (Some(xfs), Some(ext4)) = (mounted(XFS), mounted(EXT4)) else {
        return;
    };
    let there = image(&ext4);
    let here = image(&xfs);
    for (from, to, says) in [
        (
            &there,
            ext4.path("new"),
            "have it on XFS (mkfs.xfs -m reflink=1)",
        ),
        (&here, ext4.path("new"), "it is on another file system"),
        (&xfs.path("missing"), xfs.path("new"), "No such file"),
        (&here, xfs.path("missing/new"), "cannot make it"),
    ] {
        let said = extentctl(&["clone", text(from), text(&to)]).refusal();
        assert!(said.contains(says), "{said}");
        assert!(!to.exists() && !to.with_file_name(".new.part").exists());
    }
}

#[test]
fn an_image_that_is_unshared_has_all_its_blocks_for_itself() {
    let Some(mounted) = mounted(XFS) else { return };
    let image = image(&mounted);
    let golden = snapshot(&mounted, "golden");
    let before = read_direct(&image);
    let all = shared(&image);
    assert!(all > 2 << 20);
    let told = extentctl(&["--json", "unshare", text(&image), "--rate", "1G"]).json();
    assert_eq!(told["unshared_bytes"], all);
    assert_eq!((shared(&image), shared(&golden)), (0, 0));
    assert!(read_direct(&image) == before && read_direct(&golden) == before);
    let told = extentctl(&["--json", "unshare", text(&image)]).json();
    assert_eq!(told["unshared_bytes"], 0);
}

#[test]
fn unsharing_stops_when_it_is_asked_to_and_keeps_what_is_done() {
    let Some(mounted) = mounted(XFS) else { return };
    let image = image(&mounted);
    let golden = snapshot(&mounted, "golden");
    let all = shared(&image);
    // At this rate the second piece is due in years.
    let mut child = Command::new(rig::extentctl!())
        .args(["unshare", text(&image), "--rate", "1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while shared(&image) == all {
        std::thread::yield_now();
    }
    rig::process::signal(child.id(), "INT");
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    let said: Vec<String> = said.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        said.len() == 1 && said[0].contains("stopped as asked"),
        "{said:?}"
    );
    assert!(shared(&image) > 0);
    assert!(read_direct(&image) == read_direct(&golden));
}

#[test]
fn what_cannot_be_unshared_is_refused_with_the_remedy() {
    let (Some(xfs), Some(btrfs)) = (mounted(XFS), mounted(BTRFS)) else {
        return;
    };
    let there = image(&btrfs);
    snapshot(&btrfs, "golden");
    let said = extentctl(&["unshare", text(&there)]).refusal();
    assert!(said.contains("only XFS can"), "{said}");
    let here = image(&xfs);
    let served = Served::new(&here, &[]);
    let said = extentctl(&["unshare", text(&here)]).refusal();
    assert!(said.contains("extentd-nbd"), "{said}");
    assert!(said.contains("stop who uses it first"), "{said}");
    served.stop();
    let said = extentctl(&["unshare", text(&here), "--rate", "0"]).refusal();
    assert!(said.contains("nothing would be copied"), "{said}");
    let loose = run(Command::new(rig::extentctl!()).args(["unshare", "/dev/null"]));
    assert!(loose.refusal().contains("not a regular file"));
}
