//! Work that a guest would like to have done for nothing: chains and tables
//! without end, over as many regions as there can be.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use front_end::codes::{descriptor, feature};
use front_end::{Like, Place, Session, Wanted};
use rig::attached::{Attached, MEMORY};
use rustix::fs::MemfdFlags;

use crate::cases::table::{entry, offer_all};
use crate::regions::{add_region, memfd};
use crate::served::Served;

const PAGE: u64 = 4096;
/// Where the regions lie, each of a page, one after the other.
const REGIONS: u64 = 1 << 32;
const COUNT: u64 = 250;
/// Requests of many pieces at a time.
const HEADS: u16 = 12;

/// Regions of a page each, all of one file, that meet in the guest.
fn share_regions(front: &Attached) {
    let file = memfd(COUNT * PAGE, MemfdFlags::empty());
    for number in 0..COUNT {
        let at = Place {
            guest: REGIONS + number * PAGE,
            user: (2 << 44) + number * 3 * PAGE,
            size: PAGE,
        };
        assert_eq!(add_region(front, at, file.as_raw_fd()), 0);
    }
}

/// The largest table, full of buffers of this kind.
fn full_table(flags: u16, address: u64, length: u32) -> Vec<u8> {
    let nth = |at: u16| {
        let last = at == 65534;
        let (flags, next) = if last {
            (descriptor::WRITE, 0)
        } else {
            (flags | descriptor::NEXT, at + 1)
        };
        entry(address, length, flags, next)
    };
    (0..65535).flat_map(nth).collect()
}

#[test]
fn ring_06_many_heads_at_one_endless_table_keep_nobody_waiting() {
    let served = Served::new(&[]);
    let all = u32::try_from(COUNT * PAGE).unwrap();
    let tables = [
        (
            "buffers over all regions",
            full_table(descriptor::WRITE, REGIONS, all),
        ),
        ("to be read, over all regions", full_table(0, REGIONS, all)),
        (
            "a byte at each border",
            full_table(0, REGIONS + PAGE - 1, 2),
        ),
        ("no bytes", full_table(0, REGIONS, 0)),
        ("nowhere", full_table(0, 1 << 50, 4096)),
        ("written first", full_table(descriptor::WRITE, 1 << 50, 1)),
        (
            "a loop",
            entry(REGIONS, 1, descriptor::NEXT, 1)
                .into_iter()
                .chain((1..65535).flat_map(|_| entry(REGIONS, 1, descriptor::NEXT, 1)))
                .collect(),
        ),
    ];
    for (what, table) in tables {
        let session = Session::open(served.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
        let mut front = Attached::with_ring(session, 256);
        share_regions(&front);
        let at = MEMORY / 2;
        front.memory.write(at, &table).unwrap();
        let length = u32::try_from(table.len()).unwrap();
        offer_all(&mut front, at, length);
        // Answered within the limit of this front-end.
        let base = front.session.connection.get_vring_base(0).unwrap();
        assert!(base <= 256, "{what}: {base}");
        drop(front);
        served.is_well();
    }
}

/// Regions that are far apart, and requests of more pieces than there is room
/// for: what is not written is not marked, and the log stays as small as that.
#[test]
fn vu_37_the_log_of_far_apart_regions_has_no_more_pages_than_were_written() {
    let served = Served::new(&[]);
    let mut front = served.attach();
    let far = 1_u64 << 42;
    let at = Place {
        guest: far,
        user: 3 << 44,
        size: 1 << 20,
    };
    let file = memfd(at.size, MemfdFlags::empty());
    crate::regions::share(&mut front, at, &file);
    let size = (far + at.size) / PAGE / 8;
    let log = memfd(size, MemfdFlags::empty());
    let connection = &front.session.connection;
    connection
        .set_features(front.session.features | feature::LOG_ALL)
        .unwrap();
    connection.set_log_base(&log, size, 0).unwrap();

    // Sectors to and fro between both, and to every other page of one.
    let ends = |index: u64| match index % 2 {
        0 => MEMORY / 2 + index % 128 * 2 * PAGE,
        _ => far + index % 120 * 2 * PAGE,
    };
    let mut touched = std::collections::BTreeSet::new();
    for pieces in [4000_u64, 16, 4000] {
        let mut table = entry(MEMORY / 4, 16, descriptor::NEXT, 1);
        for index in 0..pieces {
            let next = u16::try_from(index + 2).unwrap();
            table.extend(entry(
                ends(index),
                512,
                descriptor::NEXT | descriptor::WRITE,
                next,
            ));
            touched.insert(ends(index) / PAGE);
        }
        table.extend(entry(MEMORY / 4 + 64, 1, descriptor::WRITE, 0));
        touched.insert((MEMORY / 4 + 64) / PAGE);
        front.memory.write(MEMORY / 4, &[0; 16]).unwrap();
        let place = MEMORY / 4 + 4096;
        front.memory.write(place, &table).unwrap();
        // More than there is room for at the same time.
        for head in 0..HEADS {
            let entry = front_end::Descriptor {
                address: place,
                length: u32::try_from(table.len()).unwrap(),
                flags: descriptor::INDIRECT,
                next: 0,
            };
            front.driver.ring().memory().set_descriptor(head, entry);
            front.driver.ring_mut().offer(head);
        }
        front.driver.publish().unwrap();
        for _ in 0..HEADS {
            while front.driver.ring_mut().pop_raw().is_none() {
                front.driver.ring().wait(front_end::limit()).unwrap();
            }
        }
        assert_eq!(
            front.memory.read(MEMORY / 4 + 64, 1).unwrap(),
            [0],
            "{pieces}"
        );
    }
    front.session.connection.get_vring_base(0).unwrap();

    let marked = |page: u64| {
        let mut byte = [0];
        log.read_exact_at(&mut byte, page / 8).unwrap();
        byte[0] & (1 << (page % 8)) != 0
    };
    assert!(touched.iter().all(|page| marked(*page)));
    let near = MEMORY / PAGE;
    let wrong: Vec<u64> = (0..near + 1000)
        .chain(far / PAGE..(far + at.size) / PAGE)
        .filter(|page| marked(*page) && !touched.contains(page))
        .collect();
    assert!(wrong.is_empty(), "{} pages", wrong.len());
    let used = log.metadata().unwrap().blocks() * 512;
    assert!(used <= 4 * PAGE, "the log takes {used} bytes");
    drop((front, log, file));
    served.is_well();
}
