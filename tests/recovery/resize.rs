//! The image gets another size behind the process's back, which is told to
//! look: the disk follows, and the front-end is told.

use std::path::Path;

use front_end::codes::{feature, status};
use front_end::{Driver, GuestMemory, Like, Session};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::model::{SECTOR, content};
use rig::place::{Place, QUEUE_DATA, guest};
use rig::program::run;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;
const MIB: u64 = 1 << 20;

/// The disk's size in bytes, as the configuration space says.
fn capacity(session: &Session) -> u64 {
    let bytes = session.connection.get_config(0, 8).unwrap();
    u64::from_le_bytes(bytes.try_into().unwrap()) * SECTOR as u64
}

/// The answer to a write of one sector, and to reading it again.
fn try_sector(driver: &mut Driver, memory: &GuestMemory, sector: u64) -> (u8, u8) {
    let at = usize::try_from(sector).unwrap();
    let bytes = content(7, at..at + 1);
    memory.write(QUEUE_DATA, &bytes).unwrap();
    let write = driver.write(sector, QUEUE_DATA, 512).unwrap().status;
    memory.fill(QUEUE_DATA, SECTOR, 0).unwrap();
    let read = driver.read(sector, QUEUE_DATA, 512).unwrap().status;
    if read == status::OK {
        assert_eq!(memory.read(QUEUE_DATA, SECTOR).unwrap(), bytes);
    }
    (write, read)
}

/// Changes sizes by `change`, and looks at the disk after each.
fn follows(image: &Path, sizes: &[u64], change: impl Fn(u64)) {
    let place = Place::new(&rig::extentd!(), image, &[]);
    let daemon = place.start();
    let (memory, mut drivers) = guest();
    let mut session = place.connect(Like::Qemu, feature::ALL).unwrap();
    let rings: Vec<_> = drivers.iter().map(Driver::ring).collect();
    session.start(&memory, &rings).unwrap();
    for &size in sizes {
        change(size);
        daemon.signal(libc::SIGHUP).unwrap();
        let told = session.back_channel.as_ref().unwrap().receive().unwrap();
        assert_eq!(told.request, CONFIG_CHANGE);
        assert_eq!(capacity(&session), size);
        let last = size / SECTOR as u64 - 1;
        let driver = &mut drivers[0];
        assert_eq!(try_sector(driver, &memory, last), (status::OK, status::OK));
        assert_eq!(
            try_sector(driver, &memory, last + 1),
            (status::IOERR, status::IOERR)
        );
    }
    // What is no change is not told.
    daemon.signal(libc::SIGHUP).unwrap();
    assert!(daemon.terminate().unwrap().success());
    let back_channel = session.back_channel.as_ref().unwrap();
    assert!(back_channel.receive().is_err());
}

fn an_image_is_grown_and_cut(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let path = host.path("image");
    std::fs::write(&path, vec![1; 8 << 20]).unwrap();
    let sizes = [16 * MIB, 12 * MIB, 4 * MIB, 20 * MIB];
    follows(&path, &sizes, |size| {
        // The open waits until the process has stepped back.
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.unwrap().set_len(size).unwrap();
    });
}

#[test]
fn blk_35_an_image_that_is_grown_and_cut_is_followed_on_ext4() {
    an_image_is_grown_and_cut(EXT4);
}

#[test]
fn blk_35_an_image_that_is_grown_and_cut_is_followed_on_xfs() {
    an_image_is_grown_and_cut(XFS);
}

#[test]
fn blk_35_a_device_that_grows_is_followed() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let path = host.path("backing");
    std::fs::write(&path, vec![1; 8 << 20]).unwrap();
    let attached = run(std::process::Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&path));
    let device = attached.unwrap().trim().to_owned();
    follows(Path::new(&device), &[16 * MIB, 6 * MIB], |size| {
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.unwrap().set_len(size).unwrap();
        run(std::process::Command::new("losetup").args(["-c", &device])).unwrap();
    });
    run(std::process::Command::new("losetup").args(["-d", &device])).unwrap();
}
