//! Several parties at once against one server over real memory: a front-end that sets rings up, a
//! guest that rewrites its memory while it is read, somebody who makes the file behind it shorter
//! and longer (real SIGBUS), and an operator who asks and resizes. The server lives, and serves a
//! correct front-end afterwards.
#![no_main]

mod descriptors;
mod frontend;
mod instant;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use arbitrary::Arbitrary;
use descriptors::{Descriptors, Fd};
use frontend::{FrontEnd, Served};
use libfuzzer_sys::fuzz_target;

/// Where the front-end has its memory, of 64 KiB.
const USER: u64 = 0x7f00_0000_0000;
const SIZE: u64 = 0x1_0000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    memory: &'a [u8],
    features: u64,
    steps: Vec<Step>,
    /// What the guest writes over and over, while the steps are taken.
    writes: Vec<(u16, [u8; 8])>,
    /// Lengths of the file behind its memory, in pages, while the steps are taken.
    lengths: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Start {
        ring: u8,
        places: [u8; 3],
    },
    Stop(u8),
    Enable(u8, bool),
    /// A chain of these descriptors in a ring that lies at its usual place.
    Offer(Vec<(u16, u16, u8)>),
    Kick,
    Settle,
    Resize,
    Status,
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn start(front_end: &mut FrontEnd, fds: &Descriptors, ring: u8, places: [u8; 3]) {
    let ring = u64::from(ring % 3);
    let at = |index: usize| USER + u64::from(places[index]) * 64;
    let mut send = |number, payload: &[u64], with: &[Fd]| {
        front_end.message(number, 1, &words(payload), &fds.numbers(with), 0);
    };
    send(5, &[1, 0, SIZE, USER, 0], &[Fd::Memory]);
    send(8, &[ring | 16 << 32], &[]);
    send(10, &[ring], &[]);
    // Descriptors, used, available, in this order on the wire.
    send(9, &[ring, at(0), at(1), at(2), 0], &[]);
    send(12, &[ring], &[Fd::Kick]);
    send(13, &[ring], &[Fd::Call]);
    send(18, &[ring | 1 << 32], &[]);
}

/// Writes a chain to the table at 0 and its head to the available ring at 0x800.
fn offer(fds: &Descriptors, chain: &[(u16, u16, u8)], turn: u16) {
    let file = fds.memory();
    for (number, (address, length, flags)) in (0_u16..16).zip(chain) {
        let mut bytes = u64::from(*address).to_le_bytes().to_vec();
        bytes.extend(u32::from(*length).to_le_bytes());
        bytes.extend(u16::from(*flags % 8).to_le_bytes());
        bytes.extend((number + 1).to_le_bytes());
        // The file may be shorter now.
        let _ = file.write_all_at(&bytes, 16 * u64::from(number));
    }
    let _ = file.write_all_at(&(turn % 16).to_le_bytes(), 0x804 + 2 * u64::from(turn % 16));
    let _ = file.write_all_at(&(turn + 1).to_le_bytes(), 0x802);
}

static SERVED: LazyLock<Mutex<Served>> = LazyLock::new(|| Mutex::new(Served::new()));

fuzz_target!(|input: Input<'_>| {
    let served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors::open();
    let mut fds = Descriptors::new(input.memory);
    let memory = fds.memory().try_clone().unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut round = 0_usize;
            while !ended.load(Ordering::Relaxed) {
                for (at, bytes) in input.writes.iter().take(16) {
                    // Writing must not make it longer again.
                    let length = memory.metadata().unwrap().len();
                    if u64::from(*at) + 8 <= length {
                        let _ = memory.write_all_at(bytes, (*at).into());
                    }
                }
                if !input.lengths.is_empty() {
                    let pages = input.lengths[round % input.lengths.len()] % 17;
                    memory.set_len(u64::from(pages) * 4096).unwrap();
                }
                round += 1;
                std::thread::yield_now();
            }
        });
        let mut front_end = served.connect();
        let features = input.features | 1 << 30;
        front_end.message(2, 1, &words(&[features]), &[], 0);
        let mut turn = 0;
        for step in input.steps.iter().take(24) {
            match step {
                Step::Start { ring, places } => start(&mut front_end, &fds, *ring, *places),
                Step::Stop(ring) => {
                    front_end.message(11, 1, &words(&[u64::from(ring % 3)]), &[], 0);
                }
                Step::Enable(ring, on) => {
                    let payload = u64::from(ring % 3) | u64::from(*on) << 32;
                    front_end.message(18, 1, &words(&[payload]), &[], 0);
                }
                Step::Offer(chain) => {
                    offer(&fds, chain, turn);
                    turn += 1;
                    fds.kick();
                }
                Step::Kick => fds.kick(),
                Step::Settle => front_end.settle(),
                Step::Resize => served.resized(),
                Step::Status => served.ask(),
            }
        }
        // It may have lost its connection with its memory, and nothing else.
        front_end.leave();
        ended.store(true, Ordering::Relaxed);
        others.join().unwrap();
    });
    served.wait_until_gone();
    // The next one is served.
    let mut next = served.connect();
    next.message(2, 1, &words(&[1 << 30]), &[], 0);
    next.finish();
    served.wait_until_gone();
    drop((fds, memory));
    descriptors::settle(before);
});
