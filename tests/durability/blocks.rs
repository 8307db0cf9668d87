//! Devices with blocks of 4096 bytes, and requests of 512.

use std::path::Path;

use front_end::{Buffer, Like, Op, Wanted, limit};
use rig::attached::{Attached, DATA, assert_ok, serve};
use rig::scratch::folder;
use rig::small_image::{IMAGE, content};

use rig::devices::Loop;

/// Writes single sectors, many at a time in the same blocks.
fn check(image: &Path, arguments: &[&str], shown: u32) {
    std::fs::write(image, content(0, IMAGE)).unwrap();
    let files = folder("durability");
    let socket = files.path().join("socket");
    let daemon = serve(&rig::extentd!(), &socket, image, arguments);
    let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
    let config = front.session.connection.get_config(20, 4).unwrap();
    assert_eq!(config, shown.to_le_bytes());
    let mut expected = content(0, IMAGE);
    for round in 0..20_u8 {
        for part in 0..16_u64 {
            let sector = u64::from(round) * 40 + part;
            let at = DATA + part * 512;
            front.memory.fill(at, 512, round + 1).unwrap();
            let data = [Buffer::readable(at, 512)];
            assert!(front.driver.submit(Op::Write, sector, &data, part));
            let start = usize::try_from(sector).unwrap() * 512;
            expected[start..start + 512].fill(round + 1);
        }
        front.driver.publish().unwrap();
        for _ in 0..16 {
            assert_ok(front.driver.wait(limit()).unwrap(), 1);
        }
    }
    // Begins and ends within blocks.
    front.write(1003, &[0xa5; 11 * 512]);
    expected[1003 * 512..1014 * 512].fill(0xa5);
    assert_eq!(front.read(1001, 8192), expected[1001 * 512..1017 * 512]);
    assert_ok(front.driver.flush().unwrap(), 1);
    drop(front);
    assert!(daemon.terminate().unwrap().success());
    assert!(std::fs::read(image).unwrap() == expected);
}

#[test]
fn blk_39_devices_of_large_blocks_take_single_sectors() {
    let Some(lo) = Loop::new(IMAGE as u64 >> 20, 4096) else {
        return;
    };
    check(lo.path(), &[], 4096);
    check(lo.path(), &["--logical-block-size", "512"], 512);
}

/// The next process has the device at once, though the kernel lets go of the
/// rings of the last one only some time after it.
#[test]
fn a_device_is_served_by_one_process_after_the_other() {
    let Some(lo) = Loop::new(IMAGE as u64 >> 20, 512) else {
        return;
    };
    for _ in 0..10 {
        let daemon = serve(&rig::extentd!(), &lo.file("socket"), lo.path(), &[]);
        let mut front = Attached::new(&lo.file("socket"), Like::Qemu, Wanted::default());
        front.write(0, &[1; 4096]);
        drop(front);
        let said = daemon.stderr();
        assert!(!said.iter().any(|line| line.contains("in use")), "{said:?}");
        assert!(daemon.terminate().unwrap().success());
    }
}

#[test]
fn blk_39_files_on_devices_of_large_blocks_take_single_sectors() {
    let Some(lo) = Loop::new(160, 4096) else {
        return;
    };
    let files = folder("durability");
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        rig::program::run(std::process::Command::new(program).args(arguments))
    };
    run("mkfs.ext4", &["-q".as_ref(), lo.path().as_os_str()]).unwrap();
    let target = files.path().as_os_str();
    run("mount", &[lo.path().as_os_str(), target]).unwrap();
    let checked = std::panic::catch_unwind(|| {
        for path in ["file", "auto"] {
            check(&files.path().join(path), &["--io-path", path], 512);
        }
    });
    // The kernel ends an io_uring some time after its process, and tells nobody.
    let start = std::time::Instant::now();
    while let Err(reason) = run("umount", &[target]) {
        assert!(start.elapsed() < limit(), "{reason}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    checked.unwrap();
}
