//! Logs of dirty pages that are too small, go away, or lie where they must
//! not.

use std::fs::File;
use std::os::fd::AsRawFd;

use front_end::codes::{feature, request};
use front_end::{GuestMemory, Place, Region};
use rig::attached::{Attached, MEMORY};

use super::kinds::memfd;
use crate::suite::site::{Site, longs, say, words};
use crate::suite::{Case, case};

/// Gives a ring that runs a log of `size` bytes at `offset` of the file, and
/// has all writes of the device logged.
fn logged(site: &Site, file: &File, size: u64, offset: u64) -> Attached {
    let front = site.attach();
    let connection = &front.session.connection;
    let fds = [file.as_raw_fd()];
    say(
        connection,
        request::SET_LOG_BASE,
        &longs([size, offset]),
        &fds,
    );
    turn_on(&front, 0);
    front
}

/// Logs the used ring at `log` as well.
fn turn_on(front: &Attached, log: u64) {
    let connection = &front.session.connection;
    let features = front.session.features | feature::LOG_ALL;
    say(connection, request::SET_FEATURES, &longs([features]), &[]);
    let at = front.driver.ring().memory().addresses();
    let user = |address| front.memory.user(address).unwrap();
    let rings = longs([user(at.descriptors), user(at.used), user(at.avail), log]);
    let payload = [words([0, 1]), rings].concat();
    say(connection, request::SET_VRING_ADDR, &payload, &[]);
}

fn log(size: u64) -> File {
    memfd(0, size, 0).unwrap().fd.into()
}

fn use_it(front: &mut Attached) {
    for _ in 0..8 {
        super::descriptors::read_once(front);
    }
}

pub fn cases() -> Vec<Case> {
    let rows: [(&str, u64, [u64; 2]); 10] = [
        ("of nothing", 4096, [0, 0]),
        ("of one byte", 4096, [1, 0]),
        ("too small for the memory", 4096, [8, 0]),
        ("larger than its file", 4096, [1 << 20, 0]),
        ("as large as can be said", 4096, [u64::MAX, 0]),
        ("behind its file", 4096, [4096, 1 << 30]),
        ("whose offset wraps round", 4096, [4096, u64::MAX - 4095]),
        ("whose offset is odd", 8192, [4096, 1]),
        ("in an empty file", 0, [4096, 0]),
        ("of sixteen gibibytes", 16 << 30, [16 << 30, 0]),
    ];
    let row = |(name, file, [size, offset]): (&'static str, u64, [u64; 2])| {
        case(
            format!("a log of dirty pages is {name}"),
            move |site: &Site| {
                use_it(&mut logged(site, &log(file), size, offset));
            },
        )
    };
    let mut cases: Vec<_> = rows.into_iter().map(row).collect();
    cases.push(case(
        "a log of dirty pages is cut off while it is in use",
        |site| {
            let file = log(1 << 20);
            let mut front = logged(site, &file, 1 << 20, 0);
            use_it(&mut front);
            file.set_len(0).unwrap();
            use_it(&mut front);
        },
    ));
    cases.push(case(
        "a log of dirty pages is cut off and comes back",
        |site| {
            let file = log(1 << 20);
            let mut front = logged(site, &file, 1 << 20, 0);
            for round in 0..50 {
                file.set_len(if round % 2 == 0 { 0 } else { 1 << 20 })
                    .unwrap();
                super::descriptors::read_once(&mut front);
            }
        },
    ));
    cases.push(case("a log of dirty pages changes all the time", |site| {
        let mut front = logged(site, &log(1 << 20), 1 << 20, 0);
        for size in 1..50 {
            let file = log(size * 4096);
            let payload = longs([size * 4096, 0]);
            let fds = [file.as_raw_fd()];
            say(
                &front.session.connection,
                request::SET_LOG_BASE,
                &payload,
                &fds,
            );
            super::descriptors::read_once(&mut front);
        }
    }));
    cases.push(case(
        "the used ring is logged where there is no page",
        |site| {
            let mut front = logged(site, &log(4096), 4096, 0);
            for at in [1, MEMORY, 1 << 40, 1 << 63, u64::MAX, u64::MAX - 4095] {
                turn_on(&front, at);
                super::descriptors::read_once(&mut front);
            }
        },
    ));
    cases.push(case("a log of dirty pages lies in guest memory", |site| {
        let file = File::from(memfd(0, MEMORY, 0).unwrap().fd);
        let mut memory = GuestMemory::default();
        let place = Place {
            guest: 0,
            user: 0x7f00_0000_0000,
            size: MEMORY,
        };
        memory.add(Region::in_file(place, file.try_clone().unwrap(), 0).unwrap());
        let mut session = site.open();
        let setup = front_end::Setup {
            size: 64,
            features: session.features,
            indirect: 16,
        };
        let driver = front_end::Driver::new(&memory, 0, setup).unwrap();
        session.start(&memory, &[driver.ring()]).unwrap();
        let mut front = Attached {
            session,
            memory,
            driver,
        };
        let fds = [file.as_raw_fd()];
        say(
            &front.session.connection,
            request::SET_LOG_BASE,
            &longs([4096, 0]),
            &fds,
        );
        turn_on(&front, 0);
        use_it(&mut front);
    }));
    cases.push(case("a log is asked for over memory far apart", |site| {
        let mut front = logged(site, &log(1 << 30), 1 << 30, 0);
        let mut memory = front.memory.clone();
        for number in 0..6 {
            let place = Place {
                guest: (number + 1) << 42,
                user: 0x1000_0000_0000 + (number << 32),
                size: 1 << 20,
            };
            memory.add(Region::new(place).unwrap());
        }
        front.session.share(&memory).unwrap();
        use_it(&mut front);
    }));
    cases
}
