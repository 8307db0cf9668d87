//! Regions of guest memory as they should and should not be, and those that
//! come and go under I/O.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use front_end::codes::{request, status};
use front_end::{Buffer, Like, Op, Place, Region, Session, Wanted, limit};

use crate::disk::{Attached, DATA, Disk, MEMORY, assert_ok, content};

const SIZE: u64 = 1 << 20;

fn attached(disk: &Disk, like: Like) -> Attached {
    Attached::new(&disk.socket, like, Wanted::default())
}

/// A region above the memory of the driver.
fn place(number: u64) -> Place {
    Place {
        guest: MEMORY + number * SIZE,
        user: 0x1000_0000_0000 + number * 3 * SIZE,
        size: SIZE,
    }
}

/// The fields of a region as a message has them.
fn fields(place: Place, offset: u64) -> Vec<u8> {
    [place.guest, place.size, place.user, offset]
        .map(u64::to_ne_bytes)
        .concat()
}

/// A region alone, as ADD_MEM_REG and REM_MEM_REG have it.
fn single(place: Place, offset: u64) -> Vec<u8> {
    let mut payload = vec![0; 8];
    payload.extend(fields(place, offset));
    payload
}

fn file(size: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(size).unwrap();
    file
}

fn answer(front: &Attached, request: u32, payload: &[u8], fds: &[RawFd]) -> u64 {
    let connection = &front.session.connection;
    connection.acknowledge(request, payload, fds).unwrap()
}

#[test]
fn vu_20_regions_that_make_no_sense_are_refused() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, Like::Qemu);
    let good = file(SIZE);
    let at = place(0);
    let cases = [
        ("nothing", Place { size: 0, ..at }, 0),
        ("beyond the file", at, 4096),
        (
            "longer than the file",
            Place {
                size: 2 * SIZE,
                ..at
            },
            0,
        ),
        ("an offset that overflows", at, u64::MAX - 4095),
        (
            "a size that overflows",
            Place {
                size: u64::MAX,
                ..at
            },
            0,
        ),
        (
            "overlap in the guest",
            Place {
                guest: MEMORY - 4096,
                ..at
            },
            0,
        ),
        (
            "the end of the guest",
            Place {
                guest: u64::MAX - 4095,
                ..at
            },
            0,
        ),
        (
            "overlap of user space",
            Place {
                user: 0x7f00_0000_1000,
                ..at
            },
            0,
        ),
        (
            "the end of user space",
            Place {
                user: u64::MAX - 4095,
                ..at
            },
            0,
        ),
    ];
    for (what, place, offset) in cases {
        let payload = single(place, offset);
        let fds = [good.as_raw_fd()];
        assert_ne!(
            answer(&front, request::ADD_MEM_REG, &payload, &fds),
            0,
            "{what}"
        );
        let mut table = [1_u32, 0].map(u32::to_ne_bytes).concat();
        table.extend(fields(place, offset));
        // Alone in a table, only the neighbours are missing.
        if !what.starts_with("overlap") {
            let refused = answer(&front, request::SET_MEM_TABLE, &table, &fds);
            assert_ne!(refused, 0, "{what}");
        }
        assert_eq!(front.read(1, 512), content(512, 512), "{what}");
    }
    let fds = [good.as_raw_fd()];
    let payload = single(at, 0);
    assert_eq!(answer(&front, request::ADD_MEM_REG, &payload, &fds), 0);
}

/// The file behind a region shrinks: what lies there is lost, the process is not.
#[test]
fn vu_20_a_file_that_shrinks_later_kills_nobody() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, Like::Qemu);
    let shrinking = file(SIZE);
    front
        .memory
        .add(Region::in_file(place(0), shrinking.try_clone().unwrap(), 0).unwrap());
    front.session.share(&front.memory).unwrap();
    let data = [Buffer::writable(MEMORY, 65536)];
    assert_ok(front.driver.run(Op::Read, 0, &data).unwrap(), 65537);
    shrinking.set_len(0).unwrap();
    // Unaligned as well, so that the process itself has to copy.
    for start in [MEMORY, MEMORY + 1] {
        for op in [Op::Read, Op::Write] {
            let buffer = Buffer {
                address: start,
                length: 65536,
                writable: op == Op::Read,
            };
            let done = front.driver.run(op, 0, &[buffer]).unwrap();
            assert_ne!(done.status, status::UNTOUCHED, "{op:?} {start:#x}");
        }
    }
    assert_eq!(front.read(4096, 512), content(4096 * 512, 512));
    assert!(disk.daemon.terminate().unwrap().success());
}

#[test]
fn vu_19_a_table_brings_a_descriptor_for_each_region() {
    let disk = Disk::start(&[]);
    let own = numbers(&disk);
    let mut front = attached(&disk, Like::CloudHypervisor);
    let shared = file(40 * SIZE);
    let fds = |count: usize| vec![shared.as_raw_fd(); count];
    let table = |count: u32, listed: u64| {
        let mut payload = [count, 0].map(u32::to_ne_bytes).concat();
        for number in 0..listed {
            payload.extend(fields(place(number), number * SIZE));
        }
        payload
    };
    for (count, listed, given) in [
        (2, 2, 1),
        (1, 1, 2),
        (2, 2, 0),
        (3, 2, 3),
        (1, 2, 1),
        (0, 0, 1),
    ] {
        let payload = table(count, listed);
        let refused = answer(&front, request::SET_MEM_TABLE, &payload, &fds(given));
        assert_ne!(refused, 0, "{count} {listed} {given}");
        assert_eq!(front.read(1, 512), content(512, 512));
    }
    // As many as the front-end was told, one file at several offsets.
    let slots = front.session.connection.get_max_mem_slots().unwrap();
    assert!(slots >= 8);
    for number in 0..slots.min(32) - 1 {
        let region = Region::in_file(place(number), shared.try_clone().unwrap(), number * SIZE);
        front.memory.add(region.unwrap());
    }
    front.session.share(&front.memory).unwrap();
    for number in 0..slots.min(32) - 1 {
        let at = MEMORY + number * SIZE + 512;
        let data = [Buffer::writable(at, 512)];
        assert_ok(front.driver.run(Op::Read, number, &data).unwrap(), 513);
        let read = front.memory.read(at, 512).unwrap();
        assert_eq!(read, content(usize::try_from(number).unwrap() * 512, 512));
    }
    // Nothing that was handed over can reach another program.
    for number in numbers(&disk).difference(&own) {
        let path = format!("/proc/{}/fdinfo/{number}", disk.daemon.pid());
        let info = std::fs::read_to_string(&path).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_ne!(flags & 0o2_000_000, 0, "{path} {info}");
    }
}

/// The numbers of the open descriptors of the process.
fn numbers(disk: &Disk) -> BTreeSet<u32> {
    std::fs::read_dir(format!("/proc/{}/fdinfo", disk.daemon.pid()))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

#[test]
fn vu_23_a_region_is_added_with_one_descriptor_and_removed_by_its_place() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, Like::Qemu);
    let region = file(SIZE);
    let (one, two) = ([region.as_raw_fd()], [region.as_raw_fd(); 2]);
    let at = place(0);
    let payload = single(at, 0);
    assert_ne!(answer(&front, request::ADD_MEM_REG, &payload, &[]), 0);
    assert_ne!(answer(&front, request::ADD_MEM_REG, &payload, &two), 0);
    let before = disk.descriptors().len();
    assert_eq!(answer(&front, request::ADD_MEM_REG, &payload, &one), 0);
    // Twice would overlap.
    assert_ne!(answer(&front, request::ADD_MEM_REG, &payload, &one), 0);
    for wrong in [
        Place {
            guest: at.guest + 4096,
            ..at
        },
        Place {
            user: at.user + 4096,
            ..at
        },
        Place {
            size: at.size / 2,
            ..at
        },
    ] {
        let payload = single(wrong, 0);
        assert_ne!(answer(&front, request::REM_MEM_REG, &payload, &[]), 0);
    }
    // The offset means nothing, and a descriptor is only closed.
    let payload = single(at, 77);
    assert_eq!(answer(&front, request::REM_MEM_REG, &payload, &one), 0);
    assert_eq!(disk.descriptors().len(), before);
    let data = [Buffer::writable(MEMORY, 512)];
    let done = front.driver.run(Op::Read, 0, &data).unwrap();
    assert_eq!(done.status, status::IOERR);
}

#[test]
fn vu_24_a_removed_region_is_not_written_any_more() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, Like::Qemu);
    for round in 0..50 {
        let region = front.memory.add(Region::new(place(0)).unwrap());
        front.session.share(&front.memory).unwrap();
        let parts = 8;
        for part in 0..parts {
            let data = [Buffer::writable(MEMORY + part * (128 << 10), 128 << 10)];
            assert!(front.driver.submit(Op::Read, part * 256, &data, part));
        }
        front.driver.publish().unwrap();
        let mut rest = front.memory.clone();
        rest.remove(MEMORY).unwrap();
        front.session.share(&rest).unwrap();
        // Gone, so this is all that was ever written there.
        let size = usize::try_from(region.place().size).unwrap();
        let seen = front.memory.read(MEMORY, size).unwrap();
        for _ in 0..parts {
            let done = front.driver.wait(limit()).unwrap();
            let start = usize::try_from(done.tag).unwrap() * (128 << 10);
            let part = &seen[start..start + (128 << 10)];
            if done.status == status::OK {
                assert!(part == content(start, 128 << 10), "round {round}");
            } else {
                assert_eq!(done.status, status::IOERR);
            }
        }
        assert!(front.memory.read(MEMORY, size).unwrap() == seen);
        front.memory = rest;
    }
    // The memory of a ring that runs is not taken from under it.
    let payload = single(front.memory.regions().next().unwrap().place(), 0);
    assert_ne!(answer(&front, request::REM_MEM_REG, &payload, &[]), 0);
    assert_eq!(front.read(1, 512), content(512, 512));
}

#[test]
fn vu_21_24_memory_comes_and_goes_under_io() {
    let disk = Disk::start(&[]);
    for like in [Like::Qemu, Like::CloudHypervisor] {
        let front = attached(&disk, like);
        let (mut session, mut driver, memory) = (front.session, front.driver, front.memory);
        let over = AtomicBool::new(false);
        let served = std::thread::scope(|scope| {
            let (over, memory) = (&over, &memory);
            let load = scope.spawn(move || {
                let mut served = 0_u64;
                while !over.load(Ordering::Relaxed) || served < 100 {
                    let sector = served * 7 % 8000;
                    assert_ok(driver.read(sector, DATA, 4096).unwrap(), 4097);
                    let start = usize::try_from(sector).unwrap() * 512;
                    assert!(memory.read(DATA, 4096).unwrap() == content(start, 4096));
                    served += 1;
                }
                served
            });
            let changed = (0..300).try_for_each(|round| {
                let mut changed = memory.clone();
                for number in 0..round % 4 {
                    changed.add(Region::new(place(number))?);
                }
                session.share(&changed)
            });
            // Whatever happened, the other thread ends.
            over.store(true, Ordering::Relaxed);
            changed.unwrap();
            load.join().unwrap()
        });
        assert!(served >= 100);
    }
    let session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    session.connection.get_features().unwrap();
    assert!(!disk.maps_guest_memory());
}
