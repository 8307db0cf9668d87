//! Rings as drivers should not fill them, and when each side wakes the other.

use std::os::fd::AsRawFd;

use front_end::codes::descriptor::{INDIRECT, NEXT, WRITE};
use front_end::codes::{feature, request, status};
use front_end::{Buffer, Descriptor, Like, Op, Session, Wanted, limit};
use vmm_sys_util::eventfd::EventFd;

use crate::disk::{Attached, DATA, Disk, assert_ok, content};

/// Where headers, data, status bytes and indirect tables are.
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const TABLE: u64 = DATA + 0x1000;
const BUFFER: u64 = DATA + 0x2000;

fn attached(disk: &Disk, without: u64) -> Attached {
    let wanted = Wanted {
        features: feature::ALL & !without,
        ..Wanted::default()
    };
    Attached::new(&disk.socket, Like::Qemu, wanted)
}

fn part(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

/// A read of the first sector, in descriptors 0 to 2.
fn good() -> [Descriptor; 3] {
    [
        part(HEADER, 16, NEXT, 1),
        part(BUFFER, 512, NEXT | WRITE, 2),
        part(STATUS, 1, WRITE, 0),
    ]
}

fn bytes(table: &[Descriptor]) -> Vec<u8> {
    let bytes = |d: &Descriptor| {
        let mut bytes = d.address.to_le_bytes().to_vec();
        bytes.extend(d.length.to_le_bytes());
        bytes.extend(d.flags.to_le_bytes());
        bytes.extend(d.next.to_le_bytes());
        bytes
    };
    table.iter().flat_map(bytes).collect()
}

/// Offers descriptors from 0 on as they are; the used entry that comes.
fn offer(front: &mut Attached, table: &[Descriptor]) -> (u32, u32) {
    front.memory.write(HEADER, &[0; 16]).unwrap();
    front.memory.write(STATUS, &[status::UNTOUCHED]).unwrap();
    let ring = front.driver.ring_mut();
    for (index, descriptor) in (0..).zip(table) {
        ring.memory().set_descriptor(index, *descriptor);
    }
    ring.offer(0);
    ring.publish().unwrap();
    ring.wait(limit()).unwrap();
    ring.pop_raw().unwrap()
}

/// The good read is served, whatever came before.
fn assert_serves(front: &mut Attached) {
    assert_eq!(offer(front, &good()), (0, 513));
    assert_eq!(front.memory.read(STATUS, 1).unwrap(), [status::OK]);
    assert_eq!(front.memory.read(BUFFER, 512).unwrap(), content(0, 512));
}

#[test]
fn ring_1_only_powers_of_two_up_to_the_offered_size_are_sizes() {
    let disk = Disk::start(&["--queue-size", "128"]);
    let session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    let set = |size: u32| {
        let payload = [0, size].map(u32::to_ne_bytes).concat();
        let connection = &session.connection;
        connection.acknowledge(request::SET_VRING_NUM, &payload, &[])
    };
    for size in [0, 3, 100, 129, 256, 32768, 65536, 65536 + 128, u32::MAX] {
        assert_ne!(set(size).unwrap(), 0, "{size}");
    }
    for size in (0..8).map(|bit| 1 << bit) {
        assert_eq!(set(size).unwrap(), 0, "{size}");
    }
}

#[test]
fn blk_11_ring_5_9_a_malformed_chain_fails_alone() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, 0);
    let cases: [&[Descriptor]; 6] = [
        // The next one is not in the table.
        &[part(HEADER, 16, NEXT, 64)],
        &[part(HEADER, 16, NEXT, u16::MAX)],
        // A loop.
        &[part(HEADER, 16, NEXT, 0)],
        &[
            part(HEADER, 16, NEXT, 1),
            part(BUFFER, 512, NEXT | WRITE, 1),
        ],
        // No place for the status.
        &[part(HEADER, 16, 0, 0)],
        // What the device writes before what it reads.
        &[part(STATUS, 1, NEXT | WRITE, 1), part(HEADER, 16, 0, 0)],
    ];
    for case in cases {
        assert_eq!(offer(&mut front, case), (0, 0), "{case:?}");
        let answered = front.memory.read(STATUS, 1).unwrap();
        assert_ne!(answered, [status::OK], "{case:?}");
        let written = front.driver.ring().memory().descriptor_bytes();
        assert_eq!(written[..16 * case.len()], bytes(case));
    }
    assert_serves(&mut front);
}

#[test]
fn ring_6_malformed_indirect_tables_fail_alone() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, 0);
    let nested = [part(TABLE, 48, INDIRECT, 0)];
    for (table, descriptor) in [
        (&good()[..], part(TABLE, 0, INDIRECT, 0)),
        (&good()[..], part(TABLE, 47, INDIRECT, 0)),
        (&good()[..], part(TABLE, 48, INDIRECT | NEXT, 1)),
        (&nested[..], part(TABLE, 16, INDIRECT, 0)),
        // Ends within the chain.
        (&good()[..], part(TABLE, 32, INDIRECT, 0)),
        (&good()[..], part(1 << 40, 48, INDIRECT, 0)),
    ] {
        front.memory.write(TABLE, &bytes(table)).unwrap();
        let tables = [descriptor, part(STATUS, 1, WRITE, 0)];
        assert_eq!(offer(&mut front, &tables), (0, 0), "{descriptor:?}");
    }
    assert_serves(&mut front);
}

#[test]
fn ring_7_8_indirect_tables_may_follow_and_their_write_flag_means_nothing() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, 0);
    front.memory.write(TABLE, &bytes(&good())).unwrap();
    let alone = [part(TABLE, 48, INDIRECT | WRITE, 0)];
    assert_eq!(offer(&mut front, &alone), (0, 513));
    let rest = [
        part(BUFFER, 512, NEXT | WRITE, 1),
        part(STATUS, 1, WRITE, 0),
    ];
    front.memory.write(TABLE, &bytes(&rest)).unwrap();
    let after = [part(HEADER, 16, NEXT, 1), part(TABLE, 32, INDIRECT, 0)];
    assert_eq!(offer(&mut front, &after), (0, 513));
    assert_eq!(front.memory.read(BUFFER, 512).unwrap(), content(0, 512));
}

#[test]
fn ring_4_a_broken_available_index_stops_the_ring_and_says_so() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, 0);
    let broken = EventFd::new(0).unwrap();
    let fd = Some(broken.as_raw_fd());
    front.session.connection.set_vring_err(0, fd).unwrap();
    assert_serves(&mut front);
    let ring = front.driver.ring();
    let size = ring.memory().size();
    ring.memory().set_avail_index(1 + size + 1);
    ring.kick().unwrap();
    front_end::wait_readable(&broken, limit()).unwrap();
    let used = front.driver.ring().device_index();
    front.driver.ring().kick().unwrap();
    front.session.stop(1).unwrap();
    assert_eq!(front.driver.ring().device_index(), used);
    // The process and the image are well.
    drop(front);
    assert_serves(&mut attached(&disk, 0));
}

#[test]
fn ring_13_15_without_event_idx_a_flag_keeps_calls_away() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, feature::EVENT_IDX);
    let poll = |front: &mut Attached| {
        let data = [Buffer::writable(BUFFER, 512)];
        assert!(front.driver.submit(Op::Read, 0, &data, 0));
        front.driver.publish().unwrap();
        loop {
            if let Some(done) = front.driver.pop().unwrap() {
                return assert_ok(done, 513);
            }
        }
    };
    front.driver.ring().memory().set_used_event(u16::MAX);
    front.driver.ring().want_call(false);
    for _ in 0..3 {
        poll(&mut front);
        assert!(front.driver.ring().memory().used_flags() <= 1);
    }
    // Stopped: whatever was to be signalled has been.
    front.session.stop(1).unwrap();
    assert_eq!(front.driver.ring().take_calls().unwrap(), 0);

    drop(front);
    let mut front = attached(&disk, feature::EVENT_IDX);
    poll(&mut front);
    front.session.stop(1).unwrap();
    assert_eq!(front.driver.ring().take_calls().unwrap(), 1);
}

#[test]
fn ring_14_with_event_idx_calls_come_where_they_are_asked_for() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, 0);
    // Flags mean nothing now.
    front.driver.ring().memory().set_avail_flags(1);
    front.driver.ring().memory().set_used_event(4);
    for number in 0..8 {
        let data = [Buffer::writable(BUFFER + number * 512, 512)];
        assert!(front.driver.submit(Op::Read, number, &data, number));
        front.driver.publish().unwrap();
        while front.driver.pop().unwrap().is_none() {}
        assert_eq!(front.driver.ring().memory().used_flags(), 0);
    }
    front.session.stop(1).unwrap();
    assert_eq!(front.driver.ring().take_calls().unwrap(), 1);
}

#[test]
fn ring_17_vu_13_kicks_may_be_for_nothing_or_too_early() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, 0);
    for _ in 0..100 {
        front.driver.ring().kick().unwrap();
    }
    assert_serves(&mut front);
    // Disabled, and surely so: the answer has come.
    front.session.enable(false).unwrap();
    let data = [Buffer::writable(BUFFER, 512)];
    assert!(front.driver.submit(Op::Read, 5, &data, 0));
    front.driver.publish().unwrap();
    front.driver.ring().kick().unwrap();
    front.session.connection.get_features().unwrap();
    assert_eq!(front.driver.ring().device_index(), 1);
    front.session.enable(true).unwrap();
    assert_ok(front.driver.wait(limit()).unwrap(), 513);
    assert_eq!(
        front.memory.read(BUFFER, 512).unwrap(),
        content(5 * 512, 512)
    );
}
