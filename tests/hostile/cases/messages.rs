//! Every message there is with every wrong length, count of descriptors and
//! content, and headers that are none.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use front_end::codes::{flag, request};
use front_end::{Buffer, Connection, Op};
use rig::attached::DATA;

use crate::suite::site::{Answer, Site, longs, refused, say, say_with, words};
use crate::suite::{Case, case};

/// Number, name and right length of each message of the specification, and
/// of some that are in none.
pub const MESSAGES: [(u32, &str, usize); 44] = [
    (0, "message 0", 0),
    (request::GET_FEATURES, "GET_FEATURES", 0),
    (request::SET_FEATURES, "SET_FEATURES", 8),
    (request::SET_OWNER, "SET_OWNER", 0),
    (request::RESET_OWNER, "RESET_OWNER", 0),
    (request::SET_MEM_TABLE, "SET_MEM_TABLE", 40),
    (request::SET_LOG_BASE, "SET_LOG_BASE", 16),
    (request::SET_LOG_FD, "SET_LOG_FD", 0),
    (request::SET_VRING_NUM, "SET_VRING_NUM", 8),
    (request::SET_VRING_ADDR, "SET_VRING_ADDR", 40),
    (request::SET_VRING_BASE, "SET_VRING_BASE", 8),
    (request::GET_VRING_BASE, "GET_VRING_BASE", 8),
    (request::SET_VRING_KICK, "SET_VRING_KICK", 8),
    (request::SET_VRING_CALL, "SET_VRING_CALL", 8),
    (request::SET_VRING_ERR, "SET_VRING_ERR", 8),
    (request::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", 0),
    (request::SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", 8),
    (request::GET_QUEUE_NUM, "GET_QUEUE_NUM", 0),
    (request::SET_VRING_ENABLE, "SET_VRING_ENABLE", 8),
    (19, "SEND_RARP", 8),
    (20, "NET_SET_MTU", 8),
    (request::SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", 0),
    (22, "IOTLB_MSG", 32),
    (23, "SET_VRING_ENDIAN", 8),
    (request::GET_CONFIG, "GET_CONFIG", 72),
    (request::SET_CONFIG, "SET_CONFIG", 13),
    (26, "CREATE_CRYPTO_SESSION", 1024),
    (27, "CLOSE_CRYPTO_SESSION", 8),
    (28, "POSTCOPY_ADVISE", 0),
    (29, "POSTCOPY_LISTEN", 0),
    (30, "POSTCOPY_END", 0),
    (request::GET_INFLIGHT_FD, "GET_INFLIGHT_FD", 24),
    (request::SET_INFLIGHT_FD, "SET_INFLIGHT_FD", 24),
    (33, "GPU_SET_SOCKET", 0),
    (request::RESET_DEVICE, "RESET_DEVICE", 0),
    (35, "VRING_KICK", 8),
    (request::GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS", 0),
    (request::ADD_MEM_REG, "ADD_MEM_REG", 40),
    (request::REM_MEM_REG, "REM_MEM_REG", 40),
    (39, "SET_STATUS", 8),
    (40, "GET_STATUS", 0),
    (42, "SET_DEVICE_STATE_FD", 8),
    (43, "CHECK_DEVICE_STATE", 0),
    (u32::MAX, "the last message", 8),
];

/// Bytes that look like no pattern, the same each time.
pub fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// A message with every wrong length and count of descriptors.
fn wrong(connection: &Connection, number: u32, right: usize) {
    let null = File::open("/dev/null").unwrap();
    let fds: Vec<RawFd> = vec![null.as_raw_fd(); 33];
    let lengths = [0, 1, right.saturating_sub(1), right, right + 1, 4095, 4096];
    for length in lengths {
        for (count, need_reply) in [(0, true), (0, false), (1, true), (2, true), (33, false)] {
            for body in [vec![0; length], vec![0xff; length], noise(number, length)] {
                let flags = if need_reply { flag::NEED_REPLY } else { 0 };
                if say_with(connection, number, flags, &body, &fds[..count]) == Answer::Closed {
                    return;
                }
            }
        }
    }
}

/// Where a conversation stands.
const STAGES: [(&str, Stage); 3] = [
    ("before anything was agreed on", Stage::First),
    ("when all features are agreed on", Stage::Agreed),
    ("while a ring is served", Stage::Running),
];

#[derive(Clone, Copy)]
enum Stage {
    First,
    Agreed,
    Running,
}

fn of_every_length() -> Vec<Case> {
    let mut cases = Vec::new();
    for (when, stage) in STAGES {
        for (number, name, right) in MESSAGES {
            let title = format!("{name} is as long as it must not be {when}");
            cases.push(case(title, move |site| match stage {
                Stage::First => wrong(&site.connect(), number, right),
                Stage::Agreed => wrong(&site.open().connection, number, right),
                Stage::Running => {
                    let mut front = site.attach();
                    for sector in 0..16 {
                        let data = [Buffer::writable(DATA + sector * 4096, 4096)];
                        assert!(front.driver.submit(Op::Read, sector, &data, sector));
                    }
                    front.driver.publish().unwrap();
                    wrong(&front.session.connection, number, right);
                }
            }));
        }
    }
    cases
}

/// Each message alone, right in length, from a front-end that stays.
pub fn alone() -> Vec<Case> {
    let row = |(number, name, right): (u32, &'static str, usize)| {
        case(format!("{name} is all that is said"), move |site: &Site| {
            let connection = site.connect();
            let need = flag::NEED_REPLY;
            connection
                .send(number, need, &noise(number, right), &[])
                .unwrap();
            connection
        })
    };
    MESSAGES.into_iter().map(row).collect()
}

/// Bytes in place of a header: the connection must end, or wait for more.
fn header(bytes: [u32; 3]) -> impl Fn(&Site) {
    move |site| {
        let connection = site.connect();
        connection.get_features().unwrap();
        connection.send_bytes(&words(bytes), &[]).unwrap();
        let ended = connection.receive();
        assert!(matches!(ended, Err(front_end::Error::Closed)), "{ended:?}");
    }
}

fn headers() -> Vec<Case> {
    let rows = [
        ("a header without a version ends its connection", [1, 0, 0]),
        ("version 2 ends its connection", [1, 2, 0]),
        ("version 3 ends its connection", [1, 3, 0]),
        (
            "a reply in place of a request ends its connection",
            [1, 5, 0],
        ),
        ("a flag that nobody knows ends its connection", [1, 0x11, 0]),
        ("all flags at once end their connection", [1, u32::MAX, 0]),
        ("a body of 4097 bytes ends its connection", [1, 1, 4097]),
        ("a body of 2 GiB ends its connection", [1, 1, 1 << 31]),
        ("a body of 4 GiB ends its connection", [5, 1, u32::MAX]),
        (
            "ones in place of a header end their connection",
            [u32::MAX; 3],
        ),
    ];
    rows.into_iter()
        .map(|(name, bytes)| case(name, header(bytes)))
        .collect()
}

/// A message about a ring that there is not.
fn no_such_ring() -> Vec<Case> {
    let numbers = [
        (request::SET_VRING_NUM, "SET_VRING_NUM", 8),
        (request::SET_VRING_ADDR, "SET_VRING_ADDR", 40),
        (request::SET_VRING_BASE, "SET_VRING_BASE", 8),
        (request::GET_VRING_BASE, "GET_VRING_BASE", 8),
        (request::SET_VRING_ENABLE, "SET_VRING_ENABLE", 8),
        (request::SET_VRING_KICK, "SET_VRING_KICK", 8),
        (request::SET_VRING_CALL, "SET_VRING_CALL", 8),
        (request::SET_VRING_ERR, "SET_VRING_ERR", 8),
    ];
    let row = |(number, name, length): (u32, &'static str, usize)| {
        case(
            format!("{name} names a ring that there is not"),
            move |site| {
                let session = site.open();
                let null = File::open("/dev/null").unwrap();
                for index in [256_u32, 257, 512, 1 << 16, 1 << 31, u32::MAX] {
                    // Only the lowest byte of an event's message is an index.
                    let events = request::SET_VRING_KICK..=request::SET_VRING_ERR;
                    if events.contains(&number) {
                        let payload = longs([u64::from(index) & !0xff | 0xff]);
                        say(&session.connection, number, &payload, &[null.as_raw_fd()]);
                        continue;
                    }
                    let mut payload = words([index, 1]);
                    payload.resize(length, 0);
                    refused(&session.connection, number, &payload, &[]);
                }
            },
        )
    };
    numbers.into_iter().map(row).collect()
}

/// A message about the configuration, with so many bytes of it.
fn config(offset: u32, size: u32, bytes: usize) -> Vec<u8> {
    let mut payload = words([offset, size, 0]);
    payload.resize(12 + bytes, 0xa5);
    payload
}

/// Values that were not offered, or make no sense.
fn values() -> Vec<Case> {
    fn row(name: &'static str, number: u32, payloads: Vec<Vec<u8>>) -> Case {
        case(name, move |site| {
            let session = site.open();
            for payload in &payloads {
                refused(&session.connection, number, payload, &[]);
            }
        })
    }
    let bits = |bits: std::ops::Range<u32>| bits.map(|bit| longs([1 << bit])).collect();
    vec![
        row(
            "SET_FEATURES has bits that were not offered",
            request::SET_FEATURES,
            bits(33..64),
        ),
        row(
            "SET_PROTOCOL_FEATURES has bits that were not offered",
            request::SET_PROTOCOL_FEATURES,
            bits(20..64),
        ),
        row(
            "SET_VRING_NUM is no power of two or too large",
            request::SET_VRING_NUM,
            [0, 3, 100, 65535, 65536, 1 << 31, u32::MAX]
                .map(|size| words([0, size]))
                .into(),
        ),
        row(
            "SET_VRING_ENABLE is neither on nor off",
            request::SET_VRING_ENABLE,
            [2, 256, u32::MAX].map(|on| words([0, on])).into(),
        ),
        row(
            "SET_CONFIG writes where nothing can be written",
            request::SET_CONFIG,
            vec![
                config(0, 8, 8),
                config(31, 3, 3),
                config(59, 4, 4),
                config(4095, 1, 1),
                config(4096, 1, 1),
                config(u32::MAX, 1, 1),
                config(u32::MAX - 1, 4, 4),
                config(32, u32::MAX, 1),
                config(32, 1, 4),
                config(32, 0, 1),
            ],
        ),
        case("GET_CONFIG asks for what is not there", |site| {
            let session = site.open();
            for (offset, size, bytes) in [
                (0, 0, 0),
                (0, 4084, 4084),
                (60, 256, 256),
                (256, 1, 1),
                (4095, 2, 2),
                (u32::MAX, 1, 1),
                (u32::MAX, u32::MAX, 8),
                (0, u32::MAX, 8),
                (0, 8, 4),
            ] {
                say(
                    &session.connection,
                    request::GET_CONFIG,
                    &config(offset, size, bytes),
                    &[],
                );
            }
        }),
    ]
}

pub fn cases() -> Vec<Case> {
    [of_every_length(), headers(), no_such_ring(), values()]
        .into_iter()
        .flatten()
        .collect()
}
