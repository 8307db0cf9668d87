//! Regions of guest memory beside that of the driver, which are to be lost.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use front_end::codes::request;
use front_end::{Place, Region};
use rig::attached::{Attached, MEMORY};

/// Bytes of a region beside the driver's memory.
pub const SIZE: u64 = 1 << 20;

/// A region above the memory of the driver.
pub fn place(number: u64) -> Place {
    Place {
        guest: MEMORY + number * SIZE,
        user: 0x1000_0000_0000 + number * 3 * SIZE,
        size: SIZE,
    }
}

/// A region as a message has it, for files that cannot be mapped here.
pub fn add_region(front: &Attached, place: Place, fd: RawFd) -> u64 {
    let fields = [0, place.guest, place.size, place.user, 0];
    let payload = fields.map(u64::to_ne_bytes).concat();
    let connection = &front.session.connection;
    connection
        .acknowledge(request::ADD_MEM_REG, &payload, &[fd])
        .unwrap()
}

/// The driver knows the region as well.
pub fn share(front: &mut Attached, place: Place, file: &File) {
    let region = Region::in_file(place, file.try_clone().unwrap(), 0).unwrap();
    front.memory.add(region);
    assert_eq!(add_region(front, place, file.as_raw_fd()), 0);
}

/// A file in memory.
pub fn memfd(size: u64, flags: rustix::fs::MemfdFlags) -> File {
    let file = File::from(rustix::fs::memfd_create("lost", flags).unwrap());
    file.set_len(size).unwrap();
    file
}
