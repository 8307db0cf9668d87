//! Records of what is in flight that no back-end has written.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use front_end::codes::request;
use front_end::{Inflight, Like, Session, Wanted};
use rig::attached::{Attached, MEMORY};

use super::kinds::memfd;
use super::messages::noise;
use crate::suite::site::{Site, longs, say, words};
use crate::suite::{Case, case};

/// A record as a front-end hands it over.
pub fn record(file: File, [size, offset]: [u64; 2], queues: u16, queue_size: u16) -> Inflight {
    Inflight {
        file,
        size,
        offset,
        queues,
        queue_size,
    }
}

/// The message about a record.
fn message(size: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
    let counts = u32::from(queues) | u32::from(entries) << 16;
    [longs([size, offset]), words([counts, 0])].concat()
}

/// A record that a back-end has made, with its contents changed, goes to the
/// next one.
fn changed(name: &'static str, change: fn(&File, u64)) -> Case {
    case(name, move |site| {
        let session = site.open();
        let made = session.connection.get_inflight_fd(1, 64).unwrap();
        drop(session);
        change(&made.file, made.size);
        let mut session = Session::open(&site.socket, Like::Qemu, Wanted::default()).unwrap();
        session.inflight = Some(made);
        start(session)
    })
}

/// Starts a ring with whatever record there is, and stops it if it runs.
pub fn start(mut session: Session) -> Option<Attached> {
    let (memory, driver) = session.start_one(MEMORY, 64).ok()?;
    let mut front = Attached {
        session,
        memory,
        driver,
    };
    super::descriptors::read_once(&mut front);
    front.session.stop(1).unwrap();
    Some(front)
}

fn contents() -> Vec<Case> {
    vec![
        changed("the record of what is in flight is zeros", |file, size| {
            file.write_all_at(&vec![0; usize::try_from(size).unwrap()], 0)
                .unwrap();
        }),
        changed("the record of what is in flight is ones", |file, size| {
            file.write_all_at(&vec![0xff; usize::try_from(size).unwrap()], 0)
                .unwrap();
        }),
        changed("the record of what is in flight is noise", |file, size| {
            file.write_all_at(&noise(1, usize::try_from(size).unwrap()), 0)
                .unwrap();
        }),
        changed("the record has another version", |file, _| {
            file.write_all_at(&7_u16.to_le_bytes(), 8).unwrap();
        }),
        changed("the record has another count of entries", |file, _| {
            file.write_all_at(&9999_u16.to_le_bytes(), 10).unwrap();
        }),
        changed("the last batch of the record is out of range", |file, _| {
            file.write_all_at(&60000_u16.to_le_bytes(), 12).unwrap();
        }),
        changed("the used index of the record is another", |file, _| {
            file.write_all_at(&12345_u16.to_le_bytes(), 14).unwrap();
        }),
        changed("every entry of the record is in flight", |file, _| {
            for entry in 0..64 {
                file.write_all_at(&[1], 16 + 16 * entry).unwrap();
            }
        }),
        changed("the entries of the record link in a circle", |file, _| {
            for entry in 0..64_u16 {
                let at = 16 + 16 * u64::from(entry);
                file.write_all_at(&[1, 0, 0, 0, 0, 0], at).unwrap();
                file.write_all_at(&((entry + 1) % 64).to_le_bytes(), at + 6)
                    .unwrap();
                file.write_all_at(&u64::MAX.to_le_bytes(), at + 8).unwrap();
            }
        }),
        case("the record changes while it is in use", |site| {
            let session = site.open();
            let made = session.connection.get_inflight_fd(1, 64).unwrap();
            let file = made.file.try_clone().unwrap();
            let size = usize::try_from(made.size).unwrap();
            let mut session = session;
            session.inflight = Some(made);
            let (memory, driver) = session.start_one(MEMORY, 64).unwrap();
            let mut front = Attached {
                session,
                memory,
                driver,
            };
            for round in 0..20 {
                file.write_all_at(&noise(round, size), 0).unwrap();
                super::descriptors::read_once(&mut front);
            }
        }),
        case("the record is cut off while it is in use", |site| {
            let made = memfd(0, 1 << 20, 0).unwrap();
            let file = File::from(made.fd);
            let mut session = site.open();
            session.inflight = Some(record(file.try_clone().unwrap(), [1 << 20, 0], 1, 64));
            let Ok((memory, driver)) = session.start_one(MEMORY, 64) else {
                return;
            };
            let mut front = Attached {
                session,
                memory,
                driver,
            };
            super::descriptors::read_once(&mut front);
            file.set_len(0).unwrap();
            super::descriptors::read_once(&mut front);
        }),
    ]
}

fn forms() -> Vec<Case> {
    let rows: [(&str, [u64; 2], u16, u16); 9] = [
        ("of nothing", [0, 0], 1, 64),
        ("too small", [64, 0], 1, 64),
        ("too small for its rings", [4096, 0], 256, 32768),
        ("of no rings", [4096, 0], 0, 64),
        ("of rings without entries", [4096, 0], 1, 0),
        (
            "of more rings than there are",
            [1 << 20, 0],
            u16::MAX,
            u16::MAX,
        ),
        ("behind its file", [4096, 1 << 30], 1, 64),
        ("at an odd place", [4096, 1], 1, 64),
        ("as large as can be said", [u64::MAX, u64::MAX], 1, 64),
    ];
    let row = |(name, [size, offset], queues, entries): (&'static str, [u64; 2], u16, u16)| {
        case(
            format!("a record of what is in flight is {name}"),
            move |site: &Site| {
                let file = memfd(0, 1 << 20, 0).unwrap();
                let mut session = site.open();
                let payload = message(size, offset, queues, entries);
                let fds = [file.fd.as_raw_fd()];
                let connection = &session.connection;
                say(connection, request::SET_INFLIGHT_FD, &payload, &fds);
                say(connection, request::GET_INFLIGHT_FD, &payload, &[]);
                let file = File::from(file.fd);
                session.inflight = Some(record(file, [size, offset], queues, entries));
                drop(start(session));
            },
        )
    };
    let mut cases: Vec<_> = rows.into_iter().map(row).collect();
    cases.push(case(
        "two hundred records are asked for and all kept",
        |site| {
            let session = site.open();
            let get = |_| session.connection.get_inflight_fd(256, 32768).ok();
            let all: Vec<_> = (0..200).map(get).collect();
            drop(all);
        },
    ));
    cases.push(case("the record lies in the memory of the ring", |site| {
        let file = File::from(memfd(0, MEMORY, 0).unwrap().fd);
        let mut memory = front_end::GuestMemory::default();
        let place = front_end::Place {
            guest: 0,
            user: 0x7f00_0000_0000,
            size: MEMORY,
        };
        let region = front_end::Region::in_file(place, file.try_clone().unwrap(), 0);
        memory.add(region.unwrap());
        let mut session = site.open();
        session.inflight = Some(record(file, [4096, 0], 1, 64));
        let setup = front_end::Setup {
            size: 64,
            features: session.features,
            indirect: 16,
        };
        let driver = front_end::Driver::new(&memory, 0, setup).unwrap();
        if session.start(&memory, &[driver.ring()]).is_ok() {
            let mut front = Attached {
                session,
                memory,
                driver,
            };
            super::descriptors::read_once(&mut front);
        }
    }));
    cases
}

pub fn cases() -> Vec<Case> {
    [contents(), forms()].into_iter().flatten().collect()
}
