//! What `info` says of a disk is read back from the kernel, also where the
//! answer is not the usual one.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use front_end::codes::status;
use rig::attached::DATA;
use rig::devices::Loop;
use rig::file_systems::EXT4;

use crate::served::{Guest, IMAGE, Served, best_effort, mounted, operations};

#[test]
fn a_block_device_that_somebody_else_has_is_not_said_to_be_ours() {
    let Some(disk) = Loop::new(IMAGE >> 20, 512) else {
        return;
    };
    let path = disk.path();
    let served = Served::start(path, &best_effort(&[]));
    assert!(!served.holds("lease_held"), "it has no guest yet");
    let guest = Guest::attach(&served);
    assert!(served.holds("lease_held"));
    drop(guest);
    assert!(served.daemon.terminate().unwrap().success());

    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_EXCL);
    let _other = options.open(path).unwrap();
    let served = Served::start(path, &best_effort(&["--lock", "off"]));
    let _guest = Guest::attach(&served);
    assert!(!served.holds("lease_held"));
    assert_eq!(served.swap()["holds"], false);
}

#[test]
fn operations_by_a_buffer_in_between_are_counted() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let mut guest = Guest::attach(&served);
    served.wait_path("disk");
    let bounced = || operations(&served, "bounced_operations");
    guest.load(100);
    let before = bounced();
    guest.load(100);
    assert_eq!(bounced(), before);
    for number in 1..=5 {
        let done = guest.driver.write(8 * number, DATA + 4, 4096).unwrap();
        assert_eq!(done.status, status::OK);
        assert_eq!(bounced(), before + number);
    }
}
