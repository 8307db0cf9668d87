//! Discarding and zeroing on file systems and devices of all kinds.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use front_end::codes::status;
use front_end::{Like, Op, Segment, Wanted};
use rig::attached::{Attached, DATA, assert_ok, serve};
use rig::file_systems::{BTRFS, EXT4, Mounted, XFS};
use rig::scratch::folder;
use rig::small_image::{IMAGE, content};

use rig::devices::Loop;

fn segment(sector: u64, sectors: u32, flags: u32) -> Segment {
    Segment {
        sector,
        sectors,
        flags,
    }
}

/// Zeroes and discards parts of an image, and looks at what is left of it.
fn check(image: &Path, frees: bool) {
    let files = folder("durability");
    let socket = files.path().join("socket");
    let _daemon = serve(&rig::extentd!(), &socket, image, &[]);
    let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
    let mut expected = content(0, IMAGE);
    // Whole blocks and ragged ones; freed and not.
    for (sector, sectors, flags) in [
        (0, 256, 0),
        (512, 256, 1),
        (1001, 77, 0),
        (1303, 1, 1),
        (1503, 511, 1),
        (8191, 1, 0),
    ] {
        let segments = [segment(sector, sectors, flags)];
        let done = front.driver.segments(Op::WriteZeroes, DATA, &segments);
        assert_ok(done.unwrap(), 1);
        let start = usize::try_from(sector).unwrap() * 512;
        let length = sectors * 512;
        expected[start..start + length as usize].fill(0);
        assert_eq!(front.read(sector, length), vec![0; length as usize]);
    }
    // A write into zeros that may be a hole now.
    front.write(600, &[9; 512]);
    expected[600 * 512..601 * 512].fill(9);
    assert_ok(front.driver.flush().unwrap(), 1);
    for start in (0..IMAGE).step_by(1 << 20) {
        let sector = start as u64 / 512;
        let read = front.read(sector, 1 << 20);
        assert!(read == expected[start..start + (1 << 20)], "{start}");
    }

    let blocks = || std::fs::metadata(image).unwrap().blocks();
    let before = blocks();
    let done = front
        .driver
        .segments(Op::Discard, DATA, &[segment(4096, 2048, 0)]);
    assert_eq!(done.unwrap().status, status::OK);
    assert_ok(front.driver.flush().unwrap(), 1);
    if frees {
        std::fs::File::open(image).unwrap().sync_all().unwrap();
        assert!(blocks() + 1024 <= before, "{before} {}", blocks());
    }
    // Its neighbours are as they were.
    for sector in [4095, 6144] {
        let start = usize::try_from(sector).unwrap() * 512;
        assert_eq!(front.read(sector, 512), expected[start..start + 512]);
    }
}

#[test]
fn blk_26_27_zeros_are_zeros_and_blocks_are_freed_on_file_systems() {
    for made in [EXT4, XFS, BTRFS] {
        let Some(mounted) = Mounted::new(made) else {
            println!("SKIP: no {}", made.name);
            continue;
        };
        let image = mounted.path("image");
        std::fs::write(&image, content(0, IMAGE)).unwrap();
        std::fs::File::open(&image).unwrap().sync_all().unwrap();
        check(&image, true);
    }
}

#[test]
fn blk_26_27_zeros_are_zeros_and_blocks_are_freed_in_memory() {
    let files = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = files.path().join("image");
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    check(&image, true);
}

#[test]
fn blk_26_zeros_are_zeros_on_devices() {
    for block in [512, 4096] {
        let Some(lo) = Loop::new(IMAGE as u64 >> 20, block) else {
            return;
        };
        std::fs::write(lo.path(), content(0, IMAGE)).unwrap();
        check(lo.path(), false);
    }
}
