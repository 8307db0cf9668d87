//! When writes become stable: seen by the flushes that the device carries out.

use std::fs::File;

use front_end::codes::{feature, status};
use front_end::{Like, Op, Segment, Wanted};
use rig::attached::{Attached, DATA, assert_ok, serve};
use rig::file_systems::{EXT4, Mounted, XFS};
use rig::scratch::folder;

use crate::lo::flushes;
use rig::devices::Loop;

/// Where the `writeback` byte of the configuration is.
const WRITEBACK: u32 = 32;

fn without(features: u64) -> Wanted {
    Wanted {
        features: feature::ALL & !features,
        ..Wanted::default()
    }
}

fn device(lo: &Loop) -> String {
    lo.path().to_str().unwrap().to_owned()
}

#[test]
fn blk_19_a_flush_reaches_the_device() {
    for made in [EXT4, XFS] {
        let Some(mounted) = Mounted::new(made) else {
            println!("SKIP: no {}", made.name);
            return;
        };
        let image = mounted.path("image");
        std::fs::write(&image, vec![7; 8 << 20]).unwrap();
        File::open(&image).unwrap().sync_all().unwrap();
        for path in ["file", "auto"] {
            let files = folder("durability");
            let socket = files.path().join("socket");
            let _daemon = serve(&rig::extentd!(), &socket, &image, &["--io-path", path]);
            let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
            for sector in 0..4 {
                front.write(sector * 8, &[1; 4096]);
                let before = flushes(mounted.device());
                assert_ok(front.driver.flush().unwrap(), 1);
                assert!(flushes(mounted.device()) > before, "{} {path}", made.name);
            }
        }
    }
}

#[test]
fn blk_19_22_writes_are_cached_until_a_flush() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let device = device(&lo);
    let _daemon = serve(&rig::extentd!(), &lo.file("socket"), lo.path(), &[]);
    // The default, also for a driver that cannot change it.
    for wanted in [Wanted::default(), without(feature::CONFIG_WCE)] {
        let mut front = Attached::new(&lo.file("socket"), Like::Qemu, wanted);
        let before = flushes(&device);
        for sector in 0..16 {
            front.write(sector * 8, &[2; 4096]);
        }
        assert_eq!(flushes(&device), before);
        // The sector of a flush means nothing.
        let done = front.driver.run(Op::Flush, u64::MAX, &[]).unwrap();
        assert_ok(done, 1);
        assert_eq!(flushes(&device), before + 1);
    }
}

#[test]
fn blk_20_21_without_a_cache_each_write_is_stable_when_it_ends() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let device = device(&lo);
    let _daemon = serve(&rig::extentd!(), &lo.file("socket"), lo.path(), &[]);
    let zeroes = Segment {
        sector: 64,
        sectors: 64,
        flags: 0,
    };
    let assert_stable = |front: &mut Attached, what: &str| {
        // Whole blocks, a part of one that is bounced, and zeros.
        for sector in 0..4 {
            let before = flushes(&device);
            front.write(sector * 8, &[3; 4096]);
            assert!(flushes(&device) > before, "{what}");
        }
        let before = flushes(&device);
        front.memory.write(DATA + 1, &[4; 512]).unwrap();
        assert_ok(front.driver.write(3, DATA + 1, 512).unwrap(), 1);
        assert!(flushes(&device) > before, "{what}, bounced");
        let before = flushes(&device);
        let done = front.driver.segments(Op::WriteZeroes, DATA, &[zeroes]);
        assert_eq!(done.unwrap().status, status::OK);
        assert!(flushes(&device) > before, "{what}, zeroes");
    };
    for features in [feature::FLUSH, feature::FLUSH | feature::CONFIG_WCE] {
        let mut front = Attached::new(&lo.file("socket"), Like::Qemu, without(features));
        assert_stable(&mut front, "FLUSH was not negotiated");
    }
    let mut front = Attached::new(&lo.file("socket"), Like::Qemu, Wanted::default());
    for _ in 0..2 {
        let connection = &front.session.connection;
        connection.set_config(WRITEBACK, &[0], 0).unwrap();
        assert_stable(&mut front, "writeback is 0");
        let connection = &front.session.connection;
        connection.set_config(WRITEBACK, &[1], 0).unwrap();
        let before = flushes(&device);
        front.write(0, &[5; 4096]);
        assert_eq!(flushes(&device), before);
    }
}

#[test]
fn blk_20_21_writes_to_a_file_are_stable_as_well() {
    let Some(mounted) = Mounted::new(EXT4) else {
        println!("SKIP: no ext4");
        return;
    };
    for (path, written) in [("file", true), ("auto", true), ("auto", false)] {
        let image = mounted.path(&format!("{path}-{written}"));
        // New blocks as well as old ones.
        let file = File::create(&image).unwrap();
        file.set_len(4 << 20).unwrap();
        if written {
            std::fs::write(&image, vec![7; 4 << 20]).unwrap();
            file.sync_all().unwrap();
        }
        let files = folder("durability");
        let socket = files.path().join("socket");
        let _daemon = serve(&rig::extentd!(), &socket, &image, &["--io-path", path]);
        let mut front = Attached::new(&socket, Like::Qemu, without(feature::FLUSH));
        for sector in 0..8 {
            let before = flushes(mounted.device());
            front.write(sector * 8, &[1; 4096]);
            assert!(flushes(mounted.device()) > before, "{path} {written}");
        }
    }
}
