//! Whole sessions: any sequence of vhost-user messages, in any pieces, with any descriptors. The
//! server lives on, ends a connection only for what is no message, and keeps no descriptor.
#![no_main]

mod descriptors;
mod frontend;
mod instant;

use std::sync::{LazyLock, Mutex, PoisonError};

use arbitrary::Arbitrary;
use descriptors::{Descriptors, Fd};
use frontend::{FrontEnd, Served};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// Bits of features and protocol features to begin with, as most front-ends do.
    negotiates: Option<(u64, u64)>,
    memory: &'a [u8],
    steps: Vec<Step<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Message {
        request: Request<'a>,
        need_reply: bool,
        fds: Vec<Fd>,
        split: u8,
    },
    /// A header that says something else than what comes.
    Header {
        request: u8,
        flags: u32,
        size: u32,
    },
    Kick,
    Resize,
    /// Until the server has read all.
    Settle,
}

#[derive(Arbitrary, Debug)]
enum Request<'a> {
    /// One that is sent with these words.
    Words(u8, Vec<Word>),
    Any(u32, &'a [u8]),
    Config {
        write: bool,
        offset: u8,
        flags: u8,
        bytes: &'a [u8],
    },
    Memory(Vec<Region>),
    AddRegion(bool, Region),
    Ring {
        index: u8,
        addresses: [u16; 3],
    },
    /// All that a ring needs.
    Start(u8),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Word {
    Small(u8),
    Pair(u8, u32),
    Any(u64),
}

impl Word {
    fn bytes(self) -> [u8; 8] {
        match self {
            Word::Small(n) => u64::from(n),
            Word::Pair(low, high) => u64::from(low) | u64::from(high) << 32,
            Word::Any(n) => n,
        }
        .to_ne_bytes()
    }
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Region {
    guest: u16,
    size: u8,
    odd: Option<u64>,
    offset: u16,
}

/// Where the front-end has its memory.
const USER: u64 = 0x7f00_0000_0000;

impl Region {
    fn bytes(self) -> Vec<u8> {
        let guest = self.odd.unwrap_or(u64::from(self.guest) << 8);
        words(&[
            guest,
            u64::from(self.size) << 8,
            USER.wrapping_add(guest),
            self.offset.into(),
        ])
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

// Numbers of requests, from vhost-user.rst.
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

fn config(offset: u8, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(u32::from(offset).to_ne_bytes());
    payload.extend((bytes.len() as u32).to_ne_bytes());
    payload.extend(u32::from(flags).to_ne_bytes());
    payload.extend(bytes);
    payload
}

fn ring_addresses(index: u8, addresses: [u16; 3]) -> Vec<u8> {
    let [descriptors, used, avail] = addresses.map(|at| USER + 16 * u64::from(at));
    words(&[index.into(), descriptors, used, avail, 0])
}

/// Messages that make a ring run: the number of the request, its payload and its descriptors.
fn start(index: u8) -> Vec<(u32, Vec<u8>, Vec<Fd>)> {
    let (index, ring) = (index % 3, u64::from(index % 3));
    vec![
        (
            SET_MEM_TABLE,
            words(&[1, 0, 0x1_0000, USER, 0]),
            vec![Fd::Memory],
        ),
        (SET_VRING_NUM, words(&[ring | 16 << 32]), vec![]),
        (SET_VRING_BASE, words(&[ring]), vec![]),
        (
            SET_VRING_ADDR,
            ring_addresses(index, [0, 0x20, 0x40]),
            vec![],
        ),
        (SET_VRING_KICK, words(&[ring]), vec![Fd::Kick]),
        (SET_VRING_CALL, words(&[ring]), vec![Fd::Call]),
        (SET_VRING_ENABLE, words(&[ring | 1 << 32]), vec![]),
    ]
}

fn messages(request: &Request<'_>, fds: &[Fd]) -> Vec<(u32, Vec<u8>, Vec<Fd>)> {
    let (number, payload) = match request {
        Request::Words(number, all) => (
            u32::from(number % 48),
            all.iter().flat_map(|word| word.bytes()).collect(),
        ),
        Request::Any(number, bytes) => (*number, bytes.to_vec()),
        Request::Config {
            write,
            offset,
            flags,
            bytes,
        } => (
            if *write { SET_CONFIG } else { GET_CONFIG },
            config(*offset, *flags % 4, bytes),
        ),
        Request::Memory(regions) => {
            let mut payload = words(&[regions.len() as u64]);
            regions.iter().for_each(|one| payload.extend(one.bytes()));
            (SET_MEM_TABLE, payload)
        }
        Request::AddRegion(add, region) => {
            let mut payload = words(&[0]);
            payload.extend(region.bytes());
            (if *add { ADD_MEM_REG } else { REM_MEM_REG }, payload)
        }
        Request::Ring { index, addresses } => (SET_VRING_ADDR, ring_addresses(*index, *addresses)),
        Request::Start(index) => return start(*index),
    };
    vec![(number, payload, fds.to_vec())]
}

fn step(front_end: &mut FrontEnd, served: &Served, fds: &mut Descriptors, step: &Step<'_>) {
    match step {
        Step::Message {
            request,
            need_reply,
            fds: with,
            split,
        } => {
            let flags = if *need_reply { 9 } else { 1 };
            for (number, payload, with) in messages(request, with) {
                front_end.message(number, flags, &payload, &fds.numbers(&with), *split);
            }
        }
        Step::Header {
            request,
            flags,
            size,
        } => front_end.header((*request).into(), *flags, *size),
        Step::Kick => fds.kick(),
        Step::Resize => served.resized(),
        Step::Settle => front_end.settle(),
    }
}

static SERVED: LazyLock<Mutex<Served>> = LazyLock::new(|| Mutex::new(Served::new()));

fuzz_target!(|input: Input<'_>| {
    let served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors::open();
    let mut fds = Descriptors::new(input.memory);
    let mut front_end = served.connect();
    if let Some((features, protocol)) = input.negotiates {
        front_end.message(SET_FEATURES, 1, &words(&[features | 1 << 30]), &[], 0);
        front_end.message(SET_PROTOCOL_FEATURES, 1, &words(&[protocol]), &[], 0);
    }
    for one in input.steps.iter().take(40) {
        step(&mut front_end, &served, &mut fds, one);
    }
    front_end.finish();
    served.wait_until_gone();
    drop(fds);
    descriptors::settle(before);
});
