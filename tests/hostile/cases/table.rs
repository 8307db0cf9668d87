//! Chains of descriptors as an attacker writes them.

use std::time::{Duration, Instant};

use front_end::Descriptor;
use front_end::codes::descriptor::{INDIRECT, NEXT, WRITE};
use rig::attached::{Attached, DATA};

/// Where the header, the status byte, an indirect table and data are.
pub const HEADER: u64 = DATA;
pub const STATUS: u64 = DATA + 0x100;
pub const TABLE: u64 = DATA + 0x1000;
pub const BUFFER: u64 = DATA + 0x10_0000;

pub fn part(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

/// A read of the first sector.
pub fn good() -> Vec<Descriptor> {
    vec![
        part(HEADER, 16, NEXT, 1),
        part(BUFFER, 512, NEXT | WRITE, 2),
        part(STATUS, 1, WRITE, 0),
    ]
}

/// As they lie in memory.
pub fn bytes(table: &[Descriptor]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in table {
        bytes.extend(one.address.to_le_bytes());
        bytes.extend(one.length.to_le_bytes());
        bytes.extend(one.flags.to_le_bytes());
        bytes.extend(one.next.to_le_bytes());
    }
    bytes
}

/// One of them.
pub fn entry(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    bytes(&[part(address, length, flags, next)])
}

/// Has every entry of the ring point to the table, and offers them all.
pub fn offer_all(front: &mut Attached, table: u64, length: u32) {
    for head in 0..front.driver.ring().memory().size() {
        let indirect = part(table, length, INDIRECT, 0);
        front.driver.ring().memory().set_descriptor(head, indirect);
        front.driver.ring_mut().offer(head);
    }
    front.driver.publish().unwrap();
}

/// A header of so many bytes at most.
pub fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// Writes descriptors from 0 on as they are, and offers the first.
pub fn offer(front: &mut Attached, table: &[Descriptor]) {
    let ring = front.driver.ring_mut();
    for (index, descriptor) in (0..).zip(table) {
        ring.memory().set_descriptor(index, *descriptor);
    }
    ring.offer(0);
    ring.publish().unwrap();
    ring.kick().unwrap();
}

/// Waits for the device to return something, as long as an honest one could
/// take; whether it has.
pub fn returned(front: &mut Attached) -> bool {
    let start = Instant::now();
    loop {
        if front.driver.ring_mut().pop_raw().is_some() {
            return true;
        }
        if start.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Offers a chain that must come back, failed, like all that is malformed.
pub fn fails(front: &mut Attached, table: &[Descriptor]) {
    front.memory.write(STATUS, &[0xff]).unwrap();
    offer(front, table);
    assert!(returned(front), "it never came back: {table:x?}");
    let status = front.memory.read(STATUS, 1).unwrap();
    assert_ne!(status, [0], "it succeeded: {table:x?}");
}
