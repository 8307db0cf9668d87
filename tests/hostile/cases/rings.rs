//! Rings at places where none can be, and with contents that make no sense.

use front_end::codes::descriptor::{INDIRECT, NEXT, WRITE};
use front_end::codes::request;
use front_end::{Descriptor, Session};
use rig::attached::{Attached, MEMORY};

use super::table::{BUFFER, HEADER, STATUS, TABLE, bytes, fails, good, header, offer, part};
use crate::suite::site::{Site, longs, say, words};
use crate::suite::{Case, case};

/// Where the driver's memory begins for the front-end.
const USER: u64 = 0x7f00_0000_0000;

/// A ring of 256 at these three places (of the front-end), that is kicked.
fn placed(site: &Site, at: [u64; 3]) -> Session {
    let session = site.open();
    let memory = front_end::GuestMemory::flat(MEMORY).unwrap();
    let mut session = session;
    session.connection.set_features(session.features).unwrap();
    session.share(&memory).unwrap();
    let connection = &session.connection;
    say(connection, request::SET_VRING_NUM, &words([0, 256]), &[]);
    let [descriptors, avail, used] = at;
    let payload = [words([0, 0]), longs([descriptors, used, avail, 0])].concat();
    say(connection, request::SET_VRING_ADDR, &payload, &[]);
    say(connection, request::SET_VRING_BASE, &words([0, 0]), &[]);
    // An index of what is not zero, where the ring reaches it.
    for address in at {
        let guest = address.wrapping_sub(USER);
        if guest < MEMORY - 4 {
            memory.write(guest, &[0, 0, 1, 0]).unwrap();
        }
    }
    let kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    kick.write(1).unwrap();
    let fds = [std::os::fd::AsRawFd::as_raw_fd(&kick)];
    say(connection, request::SET_VRING_KICK, &longs([0]), &fds);
    say(connection, request::SET_VRING_ENABLE, &words([0, 1]), &[]);
    kick.write(1).unwrap();
    say(connection, request::GET_VRING_BASE, &words([0, 0]), &[]);
    session
}

fn places() -> Vec<Case> {
    const END: u64 = USER + MEMORY;
    const D: u64 = USER;
    const A: u64 = USER + 0x2000;
    const U: u64 = USER + 0x3000;
    let rows: [(&str, [u64; 3]); 24] = [
        ("nowhere", [0, 0, 0]),
        (
            "at the last addresses",
            [u64::MAX - 15, u64::MAX - 15, u64::MAX - 15],
        ),
        ("where only its sum wraps round", [u64::MAX - 4095, A, U]),
        ("one byte off with its descriptors", [D + 1, A, U]),
        ("eight bytes off with its descriptors", [D + 8, A, U]),
        ("one byte off with what is available", [D, A + 1, U]),
        ("one byte off with what is used", [D, A, U + 1]),
        ("two bytes off with what is used", [D, A, U + 2]),
        ("before the memory with its descriptors", [D - 16, A, U]),
        ("before the memory with what is available", [D, USER - 2, U]),
        ("before the memory with what is used", [D, A, USER - 4]),
        ("behind the memory with its descriptors", [END, A, U]),
        ("behind the memory with what is available", [D, END, U]),
        ("behind the memory with what is used", [D, A, END]),
        (
            "over the end of memory with its descriptors",
            [END - 16, A, U],
        ),
        (
            "over the end of memory with what is available",
            [D, END - 516, U],
        ),
        (
            "over the end of memory with what is used",
            [D, A, END - 2052],
        ),
        ("at the very end of memory", [END - 4096, A, U]),
        ("with all parts at one place", [D, D, D]),
        ("with what is used over its descriptors", [D, A, D + 16]),
        ("with what is used over what is available", [D, A, A]),
        (
            "with what is available among its descriptors",
            [D, D + 256, U],
        ),
        ("in the middle of what is used", [U + 16, A, U]),
        (
            "at guest addresses in place of the front-end's",
            [0, 0x2000, 0x3000],
        ),
    ];
    let row = |(name, at): (&'static str, [u64; 3])| {
        case(format!("a ring lies {name}"), move |site: &Site| {
            placed(site, at)
        })
    };
    rows.into_iter().map(row).collect()
}

/// A front-end whose header is that of a read.
fn ready(site: &Site) -> Attached {
    let front = site.attach();
    front.memory.write(HEADER, &header(0, 0)).unwrap();
    front
}

/// A chain that fails alone: after it, one that is right is served.
fn chain(name: &'static str, table: fn() -> Vec<Descriptor>) -> Case {
    case(name, move |site| {
        let mut front = ready(site);
        fails(&mut front, &table());
        front.memory.write(STATUS, &[0xff]).unwrap();
        offer(&mut front, &good());
        assert!(super::table::returned(&mut front));
        assert_eq!(front.memory.read(STATUS, 1).unwrap(), [0]);
    })
}

fn chains() -> Vec<Case> {
    const RW: u16 = NEXT | WRITE;
    vec![
        chain("a chain links to itself", || {
            vec![part(HEADER, 16, NEXT, 0)]
        }),
        chain("a chain goes round", || {
            vec![
                part(HEADER, 16, NEXT, 1),
                part(BUFFER, 512, RW, 2),
                part(BUFFER, 512, RW, 1),
            ]
        }),
        chain("a chain links out of the table", || {
            vec![part(HEADER, 16, NEXT, 64)]
        }),
        chain("a chain links as far as can be said", || {
            vec![part(HEADER, 16, NEXT, 65535)]
        }),
        chain("a chain is a header alone", || vec![part(HEADER, 16, 0, 0)]),
        chain("a chain is a status alone", || {
            vec![part(STATUS, 1, WRITE, 0)]
        }),
        chain("a chain is empty buffers alone", || {
            vec![
                part(HEADER, 0, NEXT, 1),
                part(BUFFER, 0, RW, 2),
                part(STATUS, 0, WRITE, 0),
            ]
        }),
        chain("what is written comes before what is read", || {
            vec![part(STATUS, 1, RW, 1), part(HEADER, 16, 0, 0)]
        }),
        chain("what is read lies between what is written", || {
            vec![
                part(HEADER, 16, NEXT, 1),
                part(BUFFER, 512, RW, 2),
                part(BUFFER, 512, NEXT, 3),
                part(STATUS, 1, WRITE, 0),
            ]
        }),
        chain("data are as long as can be said", || {
            vec![
                part(HEADER, 16, NEXT, 1),
                part(BUFFER, u32::MAX, RW, 2),
                part(STATUS, 1, WRITE, 0),
            ]
        }),
        chain("sixty buffers are as long as can be said", || {
            let mut all = vec![part(HEADER, 16, NEXT, 1)];
            all.extend((0..60).map(|n| part(BUFFER, u32::MAX, RW, n + 2)));
            all.push(part(STATUS, 1, WRITE, 0));
            all
        }),
        chain("data begin where there is no memory", || {
            vec![
                part(HEADER, 16, NEXT, 1),
                part(1 << 40, 512, RW, 2),
                part(STATUS, 1, WRITE, 0),
            ]
        }),
        chain("data end where there is no memory", || {
            let data = part(MEMORY - 511, 512, RW, 2);
            vec![part(HEADER, 16, NEXT, 1), data, part(STATUS, 1, WRITE, 0)]
        }),
        chain("data wrap round", || {
            let data = part(u64::MAX - 511, 4096, RW, 2);
            vec![part(HEADER, 16, NEXT, 1), data, part(STATUS, 1, WRITE, 0)]
        }),
        chain("the header lies where there is no memory", || {
            vec![
                part(1 << 50, 16, NEXT, 1),
                part(BUFFER, 512, RW, 2),
                part(STATUS, 1, WRITE, 0),
            ]
        }),
        chain("the status lies where there is no memory", || {
            let data = part(BUFFER, 512, RW, 2);
            vec![part(HEADER, 16, NEXT, 1), data, part(1 << 50, 1, WRITE, 0)]
        }),
        chain("the header ends where there is no memory", || {
            let data = part(BUFFER, 512, RW, 2);
            vec![
                part(MEMORY - 15, 16, NEXT, 1),
                data,
                part(STATUS, 1, WRITE, 0),
            ]
        }),
        chain("unknown flags are all set", || {
            vec![part(HEADER, 16, 0xfff8, 0)]
        }),
        chain("every flag is set", || vec![part(HEADER, 16, u16::MAX, 1)]),
    ]
}

/// An indirect table that fails alone.
fn indirect(
    name: &'static str,
    table: fn() -> Vec<Descriptor>,
    pointer: fn() -> Vec<Descriptor>,
) -> Case {
    case(name, move |site| {
        let mut front = ready(site);
        front.memory.write(TABLE, &bytes(&table())).unwrap();
        fails(&mut front, &pointer());
        front.memory.write(STATUS, &[0xff]).unwrap();
        offer(&mut front, &good());
        assert!(super::table::returned(&mut front));
        assert_eq!(front.memory.read(STATUS, 1).unwrap(), [0]);
    })
}

fn tables() -> Vec<Case> {
    fn of(length: u32) -> Vec<Descriptor> {
        vec![part(TABLE, length, INDIRECT, 0), part(STATUS, 1, WRITE, 0)]
    }
    fn nested() -> Vec<Descriptor> {
        vec![part(TABLE, 16, INDIRECT, 0)]
    }
    vec![
        indirect("an indirect table has no entry", good, || of(0)),
        indirect("an indirect table has a part of an entry", good, || of(15)),
        indirect("an indirect table ends in an entry", good, || of(47)),
        indirect("an indirect table ends within its chain", good, || of(32)),
        indirect("an indirect table is as long as can be said", good, || {
            of(u32::MAX)
        }),
        indirect("an indirect table is 64 GiB of entries", good, || of(!15)),
        indirect(
            "an indirect table lies in an indirect table",
            nested,
            || of(16),
        ),
        indirect("an indirect table is followed by a chain", good, || {
            vec![
                part(TABLE, 48, INDIRECT | NEXT, 1),
                part(STATUS, 1, WRITE, 0),
            ]
        }),
        indirect(
            "an indirect table lies where there is no memory",
            good,
            || vec![part(1 << 40, 48, INDIRECT, 0)],
        ),
        indirect(
            "an indirect table ends where there is no memory",
            good,
            || vec![part(MEMORY - 32, 48, INDIRECT, 0)],
        ),
        indirect("an indirect table wraps round", good, || {
            vec![part(u64::MAX - 31, 48, INDIRECT, 0)]
        }),
        indirect(
            "an indirect chain links to itself",
            || vec![part(HEADER, 16, NEXT, 0)],
            || of(16),
        ),
        indirect(
            "an indirect chain links out of its table",
            || vec![part(HEADER, 16, NEXT, 65535)],
            || of(16),
        ),
        indirect(
            "an indirect table is the ring's own",
            || vec![part(0, 1024, INDIRECT, 0)],
            || vec![part(0, 1024, INDIRECT, 0)],
        ),
        case(
            "sixty-four heads have one table of 65,535 buffers",
            |site| {
                let mut front = ready(site);
                let mut all = vec![part(HEADER, 16, NEXT, 1)];
                all.extend((1..65534).map(|n| part(BUFFER, 512, NEXT | WRITE, n + 1)));
                all.push(part(STATUS, 1, WRITE, 0));
                front.memory.write(BUFFER, &bytes(&all)).unwrap();
                let length = u32::try_from(16 * all.len()).unwrap();
                let ring = front.driver.ring_mut();
                for head in 0..64 {
                    ring.memory()
                        .set_descriptor(head, part(BUFFER, length, INDIRECT, 0));
                    ring.offer(head);
                }
                ring.publish().unwrap();
                ring.kick().unwrap();
                front.session.stop(1).unwrap();
            },
        ),
    ]
}

/// What the driver writes of its own parts of the ring.
fn indices() -> Vec<Case> {
    fn row(name: &'static str, harm: fn(&mut Attached)) -> Case {
        case(name, move |site| {
            let mut front = ready(site);
            harm(&mut front);
            let _ = front.driver.ring().kick();
            // Broken or not, it can be stopped.
            front.session.stop(1).unwrap();
        })
    }
    vec![
        row("the available index jumps over the ring", |front| {
            front.driver.ring().memory().set_avail_index(65);
        }),
        row("the available index jumps back", |front| {
            super::descriptors::read_once(front);
            front.driver.ring().memory().set_avail_index(65535);
        }),
        row("the available index is half way round", |front| {
            front.driver.ring().memory().set_avail_index(32768);
        }),
        row("heads are out of range", |front| {
            let ring = front.driver.ring_mut();
            for head in [64, 65, 255, 256, 32768, 65535] {
                ring.offer(head);
            }
            ring.publish().unwrap();
        }),
        row("one head is offered sixty-four times", |front| {
            let ring = front.driver.ring_mut();
            for (index, descriptor) in (0..).zip(good()) {
                ring.memory().set_descriptor(index, descriptor);
            }
            for _ in 0..64 {
                ring.offer(0);
            }
            ring.publish().unwrap();
        }),
        row("heads lie within each other's chains", |front| {
            let ring = front.driver.ring_mut();
            for (index, descriptor) in (0..).zip(good()) {
                ring.memory().set_descriptor(index, descriptor);
            }
            for head in [2, 1, 0, 1, 2, 0] {
                ring.offer(head);
            }
            ring.publish().unwrap();
        }),
        row("the used ring is written by the driver", |front| {
            let ring = front.driver.ring();
            for index in 0..64 {
                ring.memory().write_used_entry(index, u32::MAX, u32::MAX);
            }
            ring.memory().write_used(u16::MAX, 12345);
            super::descriptors::read_once(front);
        }),
        row("the event index is odd in every way", |front| {
            for event in [0, 1, 63, 64, 65, 32767, 32768, 65535] {
                front.driver.ring().memory().set_used_event(event);
                front.driver.ring().memory().write_avail_event(event);
                super::descriptors::read_once(front);
            }
        }),
        row("all flags of the ring are set", |front| {
            front.driver.ring().memory().set_avail_flags(u16::MAX);
            front.driver.ring().memory().write_used(u16::MAX, 0);
            super::descriptors::read_once(front);
        }),
        row("the whole of the ring is ones", |front| {
            front.memory.fill(0, 0x1000, 0xff).unwrap();
        }),
        row("data are read into the ring itself", |front| {
            let ring = front.driver.ring();
            let parts = ring.memory().addresses();
            for address in [parts.descriptors, parts.avail, parts.used & !511] {
                let table = [
                    part(HEADER, 16, NEXT, 1),
                    part(address, 512, NEXT | WRITE, 2),
                    part(STATUS, 1, WRITE, 0),
                ];
                offer(front, &table);
                front.session.connection.get_features().unwrap();
            }
        }),
        row(
            "a kick comes a hundred thousand times for nothing",
            |front| {
                for _ in 0..100_000 {
                    front.driver.ring().kick().unwrap();
                }
            },
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    [places(), chains(), tables(), indices()]
        .into_iter()
        .flatten()
        .collect()
}
