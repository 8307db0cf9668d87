//! An image in as many pieces as can be: requests over many of them do not go
//! through the file system either, and who prepares one is warned.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mapping::{ExtentSource, Fiemap};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::files::{fallocate, pattern, punch};
use rig::program::run;

use crate::served::{Guest, Served, extentctl, mounted, operations};

/// With smaller blocks the records of the file system lie beside the image's in
/// one page of the device, and prepare warns of that too.
const EXT4_4K: Made = Made {
    mkfs: &["mkfs.ext4", "-q", "-F", "-b", "4096"],
    ..EXT4
};

/// Bytes of the image, and of each of its pieces.
const BYTES: u64 = 8 << 20;
const PIECE: u64 = 4096;
/// Bytes of a request: many pieces.
const REQUEST: usize = 256 << 10;

/// Makes an image every other block of which is another file's.
fn fragment(fs: &Mounted) {
    if !fs.is_ext4() {
        // Blocks that are kept back lie together.
        let mut give = Command::new("xfs_io");
        run(give.args(["-x", "-c", "resblks 1"]).arg(fs.root())).unwrap();
    }
    let spacer = fs.create("spacer");
    let (mut end, mut step) = (0, 64 << 20);
    while step >= PIECE {
        match fallocate(&spacer, 0, end, step) {
            Ok(()) => end += step,
            Err(_) => step /= 2,
        }
    }
    // Twice what the image takes, as the file system needs room as well.
    for piece in 0..2 * BYTES / PIECE {
        punch(&spacer, 2 * piece * PIECE, PIECE);
    }
    spacer.sync_all().unwrap();
    let image = fs.create("disk");
    let bytes = pattern(1, 0, usize::try_from(BYTES).unwrap());
    image.write_all_at(&bytes, 0).unwrap();
    image.sync_all().unwrap();
    drop(spacer);
    let source = Fiemap::new(Arc::new(File::open(fs.path("disk")).unwrap()));
    let extents = source.count(0..BYTES).unwrap();
    assert!(extents > BYTES / PIECE / 2, "only {extents} extents");
}

fn nothing_goes_through_the_file_system(made: Made) {
    let Some(fs) = mounted(made) else { return };
    fragment(&fs);
    let path = fs.path("disk");
    let output = extentctl(&["prepare", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("fragment"), "no warning in {text:?}");

    let served = Served::best_effort(&path);
    let mut guest = Guest::attach(&served);
    served.wait_path("disk");
    while !served.holds("map_pinned") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = operations(&served, "file_operations");
    let bytes = pattern(2, 0, REQUEST);
    for number in 0..BYTES / REQUEST as u64 {
        let sector = number * REQUEST as u64 / 512;
        guest.write(sector, &bytes);
        assert!(guest.read(sector, REQUEST.try_into().unwrap()) == bytes);
    }
    assert_eq!(operations(&served, "file_operations"), before);
}

#[test]
fn requests_over_many_extents_do_not_go_through_ext4() {
    nothing_goes_through_the_file_system(EXT4_4K);
}

#[test]
fn requests_over_many_extents_do_not_go_through_xfs() {
    nothing_goes_through_the_file_system(XFS);
}

#[test]
fn who_prepares_an_image_in_one_piece_is_not_warned() {
    let Some(fs) = mounted(EXT4) else { return };
    let path = fs.path("disk");
    let output = extentctl(&["prepare", path.to_str().unwrap(), "--size", "8M"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("fragment"), "{text}");
}
