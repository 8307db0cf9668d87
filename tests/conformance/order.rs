//! Rings under load: order, visibility, wake-ups, and drivers that break rules.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use front_end::codes::{feature, status};
use front_end::{Addresses, Buffer, Driver, Like, Op, RingUsers, Session, Setup, Wanted, limit};

use crate::disk::{Attached, DATA, Disk, MEMORY, assert_ok, content};

fn attached(disk: &Disk, without: u64) -> Attached {
    let wanted = Wanted {
        features: feature::ALL & !without,
        ..Wanted::default()
    };
    Attached::new(&disk.socket, Like::Qemu, wanted)
}

#[test]
fn ring_2_misaligned_and_split_rings_are_refused() {
    let disk = Disk::start(&[]);
    let front = attached(&disk, 0);
    front.session.stop(1).unwrap();
    let connection = &front.session.connection;
    let size = front.driver.ring().memory().size();
    connection.set_vring_num(0, size.into()).unwrap();
    let user = |address| front.memory.user(address).unwrap();
    let good = |base| {
        let at = Addresses::from(base, size);
        RingUsers {
            descriptors: user(at.descriptors),
            avail: user(at.avail),
            used: user(at.used),
            log: None,
        }
    };
    let at = good(DATA);
    connection.set_vring_addr(0, &at).unwrap();
    for bad in [
        RingUsers {
            descriptors: at.descriptors + 8,
            ..at
        },
        RingUsers {
            avail: at.avail + 1,
            ..at
        },
        RingUsers {
            used: at.used + 2,
            ..at
        },
        // The table begins in memory and ends beyond it.
        RingUsers {
            descriptors: user(MEMORY - 16),
            ..at
        },
        RingUsers {
            avail: user(MEMORY - 2),
            ..at
        },
        RingUsers {
            used: user(MEMORY - 4),
            ..at
        },
        RingUsers {
            descriptors: 0,
            ..at
        },
    ] {
        assert!(connection.set_vring_addr(0, &bad).is_err(), "{bad:x?}");
    }
}

/// Whatever is seen in the used ring is complete, status and data: the driver
/// looks without waiting for calls.
#[test]
fn ring_3_16_18_no_completion_is_early_and_no_request_is_forgotten() {
    for arguments in [&["--poll-us", "0"][..], &["--poll-us", "50"]] {
        let disk = Disk::start(arguments);
        for without in [0, feature::EVENT_IDX] {
            let mut front = attached(&disk, without);
            let mut free: Vec<u64> = (0..40).collect();
            let (mut next, mut served) = (0_u64, 0);
            while served < 5000 {
                // Bursts of any size: the device goes to sleep between some.
                for _ in 0..=next % 13 {
                    let Some(slot) = free.pop() else { break };
                    let sector = next * 8 % 8000;
                    let data = [Buffer::writable(DATA + slot * 4096, 4096)];
                    let tag = sector << 8 | slot;
                    if !front.driver.submit(Op::Read, sector, &data, tag) {
                        free.push(slot);
                        break;
                    }
                    next += 1;
                }
                front.driver.publish().unwrap();
                let mut done = if next.is_multiple_of(3) {
                    Some(front.driver.wait(limit()).unwrap())
                } else {
                    front.driver.pop().unwrap()
                };
                while let Some(one) = done {
                    assert_ok(one, 4097);
                    let start = usize::try_from(one.tag >> 8).unwrap() * 512;
                    let slot = one.tag & 0xff;
                    let read = front.memory.read(DATA + slot * 4096, 4096).unwrap();
                    assert!(read == content(start, 4096));
                    free.push(slot);
                    served += 1;
                    done = front.driver.pop().unwrap();
                }
            }
        }
    }
}

#[test]
fn ring_10_chains_of_four_gibibytes_are_refused() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, feature::INDIRECT);
    let half = 1 << 31;
    for lengths in [
        &[half, half][..],
        &[u32::MAX, 513],
        &[half, half, 512],
        &[u32::MAX; 9],
    ] {
        let data: Vec<_> = lengths
            .iter()
            .map(|&length| Buffer::writable(0, length))
            .collect();
        let done = front.driver.run(Op::Read, 0, &data).unwrap();
        assert_ne!(done.status, status::OK, "{lengths:?}");
    }
    assert_eq!(front.read(1, 512), content(512, 512));
}

/// The guest changes the header while it is read: either is served as a whole.
#[test]
fn ring_12_a_header_that_changes_is_taken_as_it_was_once() {
    let disk = Disk::start(&["--read-only"]);
    let mut front = attached(&disk, 0);
    let memory = front.memory.clone();
    let over = AtomicBool::new(false);
    let chain = [
        Buffer::readable(DATA, 16),
        Buffer::writable(DATA + 4096, 512),
        Buffer::writable(DATA + 64, 1),
    ];
    let header = |sector: u64| {
        let mut bytes = vec![0; 8];
        bytes.extend(sector.to_le_bytes());
        bytes
    };
    // Two sectors that are there, and one far beyond the end. They differ in
    // one byte from each other, so that any mixture is one of these.
    let versions = [header(3), header(0xff << 56 | 3), header(200)];
    memory.write(DATA, &versions[0]).unwrap();
    let seen: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for version in &versions {
                    memory.write(DATA, version).unwrap();
                }
            }
        });
        let seen = (0..3000)
            .map(|_| {
                front.memory.fill(DATA + 4096, 512, 0xee)?;
                let driver = &mut front.driver;
                driver.submit_chain(&chain, DATA + 64, false, 0)?;
                driver.publish()?;
                let done = driver.wait(limit())?;
                Ok((done.status, front.memory.read(DATA + 4096, 512)?))
            })
            .collect::<front_end::Result<_>>();
        // Whatever happened, the other thread ends.
        over.store(true, Ordering::Relaxed);
        seen.unwrap()
    });
    let untouched = vec![0xee; 512];
    for (outcome, read) in seen {
        if outcome == status::OK {
            let told = [3, 200].map(|sector| content(sector * 512, 512));
            assert!(told.contains(&read), "{:x?}", &read[..16]);
        } else {
            assert_eq!((outcome, &read), (status::IOERR, &untouched));
        }
    }
}

#[test]
fn ring_20_a_stopped_ring_is_left_alone() {
    let disk = Disk::start(&[]);
    for reset in [false, true] {
        let mut front = attached(&disk, 0);
        assert_eq!(front.read(1, 512), content(512, 512));
        if reset {
            front.session.connection.reset_device().unwrap();
        } else {
            front.session.connection.get_vring_base(0).unwrap();
        }
        front.driver.ring().take_calls().unwrap();
        let data = [Buffer::writable(DATA, 512)];
        assert!(front.driver.submit(Op::Read, 2, &data, 0));
        front.driver.publish().unwrap();
        front.driver.ring().kick().unwrap();
        let before = front.memory.read(0, 8 << 20).unwrap();
        // Its workers have had something else to do meanwhile.
        let other = front.driver.end().next_multiple_of(4096);
        let setup = Setup {
            size: 16,
            features: front.session.features,
            indirect: 0,
        };
        let mut next = Driver::new(&front.memory, MEMORY / 2 + other, setup).unwrap();
        let mut session: Session = front.session;
        session.start(&front.memory, &[next.ring()]).unwrap();
        assert_ok(next.read(1, MEMORY / 2, 512).unwrap(), 513);
        assert!(front.memory.read(0, 8 << 20).unwrap() == before);
        assert_eq!(front.driver.ring().take_calls().unwrap(), 0);
    }
}

#[test]
fn ring_21_a_head_that_is_in_flight_is_served_once_or_refused() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk, feature::INDIRECT);
    let error = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let fd = Some(error.as_raw_fd());
    front.session.connection.set_vring_err(0, fd).unwrap();
    for _ in 0..200 {
        let data = [Buffer::writable(DATA, 128 << 10)];
        let head = front.driver.ring().next_head().unwrap();
        assert!(front.driver.submit(Op::Read, 0, &data, 5));
        // The same chain three times, before any of them can have ended.
        front.driver.ring_mut().offer(head);
        front.driver.ring_mut().offer(head);
        front.driver.publish().unwrap();
        assert_ok(front.driver.wait(limit()).unwrap(), (128 << 10) + 1);
        // Others of it come back only if they were fetched after its end.
        front.session.stop(1).unwrap();
        let mut again = 0;
        while let Some((id, _)) = front.driver.ring_mut().pop_raw() {
            assert_eq!(id, u32::from(head));
            again += 1;
        }
        assert!(again <= 2);
        let setup = Setup {
            size: 64,
            features: front.session.features,
            indirect: 0,
        };
        front.driver = Driver::new(&front.memory, 0, setup).unwrap();
        let rings = [front.driver.ring()];
        front.session.start(&front.memory, &rings).unwrap();
        assert_eq!(front.read(9, 512), content(9 * 512, 512));
    }
}
