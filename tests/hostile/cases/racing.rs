//! A guest that rewrites what is being read: descriptors, rings, headers and
//! indirect tables change under the requests that they describe.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use front_end::codes::descriptor::{INDIRECT, NEXT, WRITE};
use front_end::{GuestMemory, Region};
use rig::attached::Attached;

use super::memory::SIZE;
use super::messages::noise;
use super::table::{BUFFER, HEADER, STATUS, TABLE, bytes, good, header, offer, part};
use crate::suite::{Case, case};

/// How long it goes on.
const TIME: Duration = Duration::from_millis(150);

/// Harms `memory` from another thread while requests go on.
fn race(
    name: &'static str,
    harm: impl Fn(&GuestMemory, u32) + Sync + Send + Copy + 'static,
    give: fn(&mut Attached),
) -> Case {
    case(name, move |site| {
        let mut front = site.attach();
        front.memory.write(HEADER, &header(0, 0)).unwrap();
        let memory = front.memory.clone();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut round = 0_u32;
                while !over.load(Ordering::Relaxed) {
                    harm(&memory, round);
                    round = round.wrapping_add(1);
                }
            });
            let start = Instant::now();
            while start.elapsed() < TIME {
                give(&mut front);
            }
            over.store(true, Ordering::Relaxed);
        });
        front.session.connection.get_features().unwrap();
    })
}

/// Some reads, honest but for what becomes of them.
fn reads(front: &mut Attached) {
    for _ in 0..8 {
        offer(front, &good());
        std::thread::yield_now();
        while front.driver.ring_mut().pop_raw().is_some() {}
    }
}

/// The same by an indirect table.
fn indirect(front: &mut Attached) {
    front.memory.write(TABLE, &bytes(&good())).unwrap();
    for _ in 0..8 {
        offer(front, &[part(TABLE, 48, INDIRECT, 0)]);
        std::thread::yield_now();
        while front.driver.ring_mut().pop_raw().is_some() {}
    }
}

/// A descriptor as it should be, or as it should not.
fn turned(round: u32, index: usize) -> Vec<u8> {
    let right = good()[index];
    let wrong = [
        part(right.address, u32::MAX, right.flags, right.next),
        part(1 << 40, right.length, right.flags, right.next),
        part(right.address, right.length, right.flags ^ WRITE, right.next),
        part(
            right.address,
            right.length,
            right.flags | INDIRECT,
            right.next,
        ),
        part(right.address, right.length, NEXT, 0),
        part(right.address, right.length, right.flags, 65535),
    ];
    let pick = usize::try_from(round / 2).unwrap() % wrong.len();
    bytes(&[if round.is_multiple_of(2) {
        right
    } else {
        wrong[pick]
    }])
}

pub fn cases() -> Vec<Case> {
    let descriptors = |memory: &GuestMemory, round: u32| {
        let index = round % 3;
        let at = u64::from(index) * 16;
        memory
            .write(at, &turned(round, usize::try_from(index).unwrap()))
            .unwrap();
    };
    let table = |memory: &GuestMemory, round: u32| {
        let index = round % 3;
        let at = TABLE + u64::from(index) * 16;
        memory
            .write(at, &turned(round, usize::try_from(index).unwrap()))
            .unwrap();
    };
    vec![
        race("descriptors change while they are read", descriptors, reads),
        race(
            "an indirect table changes while it is read",
            table,
            indirect,
        ),
        race(
            "a header changes while it is read",
            |memory, round| {
                // Never a write, as that could go anywhere.
                let kind = [0, 4, 8, 99, u32::MAX][usize::try_from(round % 5).unwrap()];
                let sector = [0, 1 << 55, u64::MAX, 8191][usize::try_from(round % 4).unwrap()];
                memory.write(HEADER, &header(kind, sector)).unwrap();
            },
            reads,
        ),
        race(
            "the available ring changes while it is read",
            |memory, round| {
                let at = 16 * 64;
                memory
                    .write(at + 4 + 2 * u64::from(round % 64), &noise(round, 2))
                    .unwrap();
            },
            reads,
        ),
        race(
            "the used ring changes while it is written",
            |memory, round| {
                let size = 16 * 64 + 6 + 2 * 64;
                let at = u64::next_multiple_of(size, 64) + u64::from(round % 500);
                memory.write(at, &noise(round, 4)).unwrap();
            },
            reads,
        ),
        race(
            "all of the ring is noise at all times",
            |memory, round| {
                // Headers are elsewhere, and stay those of reads.
                memory.write(16 * 8, &noise(round, 1024)).unwrap();
            },
            reads,
        ),
        race(
            "data and status change while they are written",
            |memory, round| {
                memory.write(BUFFER, &noise(round, 512)).unwrap();
                memory.write(STATUS, &noise(round, 1)).unwrap();
            },
            reads,
        ),
        case("memory comes and goes while its guest uses it", |site| {
            let mut front = site.attach();
            front.memory.write(HEADER, &header(0, 0)).unwrap();
            let start = Instant::now();
            let mut round = 0;
            while start.elapsed() < TIME {
                let mut changed = front.memory.clone();
                for number in 0..round % 4 {
                    let place = super::memory::at(number);
                    assert_eq!(place.size, SIZE);
                    changed.add(Region::new(place).unwrap());
                }
                offer(&mut front, &good());
                front.session.share(&changed).unwrap();
                while front.driver.ring_mut().pop_raw().is_some() {}
                round += 1;
            }
        }),
    ]
}
