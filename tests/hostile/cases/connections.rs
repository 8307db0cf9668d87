//! Connections that come and go, say half of something, nothing, or more
//! than they hear.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use front_end::codes::{flag, request};
use front_end::{Buffer, Op};
use rig::attached::DATA;

use super::messages::noise;
use crate::suite::site::{Site, longs, say, words};
use crate::suite::{Case, case};

fn churn() -> Vec<Case> {
    vec![
        case("ten thousand front-ends come and go", |site| {
            for round in 0..site.rounds(10_000) {
                let connection = site.connect();
                match round % 4 {
                    0 => drop(connection.get_features().unwrap()),
                    1 => connection.send(request::GET_FEATURES, 0, &[], &[]).unwrap(),
                    // The header of a message, or a part of it.
                    2 => connection.send_bytes(&words([1, 1, 0])[..7], &[]).unwrap(),
                    _ => {}
                }
            }
        }),
        case(
            "a hundred front-ends go while their requests are in flight",
            |site| {
                for _ in 0..site.rounds(100) {
                    let mut front = site.attach();
                    for part in 0..8 {
                        let data = [Buffer::writable(DATA + part * 65536, 65536)];
                        assert!(front.driver.submit(Op::Read, part * 128, &data, part));
                    }
                    front.driver.publish().unwrap();
                }
            },
        ),
        case("a front-end goes in the middle of writing", |site| {
            for _ in 0..site.rounds(30) {
                let mut front = site.attach();
                front.memory.write(DATA, &noise(3, 65536)).unwrap();
                for part in 0..8 {
                    let data = [Buffer::readable(DATA + part * 512, 8192)];
                    let sector = (1 << 20) / 512 + part;
                    assert!(front.driver.submit(Op::Write, sector, &data, part));
                }
                front.driver.publish().unwrap();
            }
        }),
        case("front-ends go after each step of a start", |site| {
            let bits = 1 << 30 | 1 << 32;
            for steps in 0..8 {
                let connection = site.connect();
                let all = [
                    (request::SET_OWNER, vec![]),
                    (request::GET_FEATURES, vec![]),
                    (request::SET_FEATURES, longs([bits])),
                    (request::GET_PROTOCOL_FEATURES, vec![]),
                    (request::SET_PROTOCOL_FEATURES, longs([0xb22b])),
                    (
                        request::GET_INFLIGHT_FD,
                        [longs([0, 0]), words([64 << 16 | 1, 0])].concat(),
                    ),
                    (request::SET_VRING_NUM, words([0, 64])),
                ];
                for (number, payload) in all.iter().take(steps) {
                    connection.send(*number, 0, payload, &[]).unwrap();
                }
            }
        }),
    ]
}

/// So many messages on one connection.
fn many(site: &Site, all: u32, number: u32, payload: &[u8]) {
    let front = site.attach();
    for _ in 0..site.rounds(all) {
        say(&front.session.connection, number, payload, &[]);
    }
}

fn messages() -> Vec<Case> {
    vec![
        case("a hundred thousand messages are said", |site| {
            // Two each.
            many(site, 40_000, request::GET_FEATURES, &[]);
            many(site, 10_000, request::SET_VRING_NUM, &words([0, 3]));
        }),
        case("ten thousand messages are refused", |site| {
            many(site, 10_000, 4711, &[0; 8]);
        }),
        case("ten thousand eventfds are sent as calls", |site| {
            let front = site.attach();
            for _ in 0..site.rounds(10_000) {
                let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
                let fds = [event.as_raw_fd()];
                let call = longs([0]);
                let connection = &front.session.connection;
                connection
                    .send(request::SET_VRING_CALL, 0, &call, &fds)
                    .unwrap();
            }
            front.session.connection.get_features().unwrap();
        }),
        case(
            "messages bring as many descriptors as can be sent",
            |site| {
                let session = site.open();
                let null = File::open("/dev/null").unwrap();
                for count in [1, 2, 32, 33, 64, 250] {
                    for number in [1, 5, 12, 37, 4711] {
                        say(
                            &session.connection,
                            number,
                            &[0; 40],
                            &vec![null.as_raw_fd(); count],
                        );
                    }
                }
            },
        ),
        case("descriptors come with every byte of a message", |site| {
            let session = site.open();
            let null = File::open("/dev/null").unwrap();
            let bytes = [words([request::SET_VRING_CALL, 1, 8]), longs([0])].concat();
            for byte in bytes {
                let fds = [null.as_raw_fd(); 12];
                if session.connection.send_bytes(&[byte], &fds).is_err() {
                    break;
                }
            }
            session.connection
        }),
        case("messages come byte by byte", |site| {
            let connection = site.connect();
            for _ in 0..20 {
                for byte in words([request::GET_FEATURES, flag::VERSION, 0]) {
                    connection.send_bytes(&[byte], &[]).unwrap();
                }
                connection.reply(request::GET_FEATURES).unwrap();
            }
        }),
        case("half a message is said", |site| {
            let connection = site.connect();
            connection.get_features().unwrap();
            connection.send_bytes(&words([5, 1, 40]), &[]).unwrap();
            connection
        }),
        case("half a header is said", |site| {
            let connection = site.connect();
            connection.send_bytes(&[1, 0, 0], &[]).unwrap();
            connection
        }),
        case("nothing is said", Site::connect),
        case("a connection ends in one direction", |site| {
            let connection = site.connect();
            connection.get_features().unwrap();
            connection
                .stream()
                .shutdown(std::net::Shutdown::Write)
                .unwrap();
            assert!(connection.receive().is_err());
        }),
        case("nobody listens to the answers", |site| {
            let connection = site.connect();
            connection.get_features().unwrap();
            connection
                .stream()
                .shutdown(std::net::Shutdown::Read)
                .unwrap();
            for _ in 0..100 {
                if connection.send(request::GET_FEATURES, 0, &[], &[]).is_err() {
                    break;
                }
            }
        }),
        case("everything is asked and no answer is read", |site| {
            let session = site.open();
            flood(
                &session.connection,
                &words([request::GET_FEATURES, flag::VERSION, 0]),
            );
        }),
        case("acknowledgements are asked for and not read", |site| {
            let session = site.open();
            let header = words([request::SET_OWNER, flag::VERSION | flag::NEED_REPLY, 0]);
            flood(&session.connection, &header);
        }),
        case("a megabyte of noise is said", |site| {
            let connection = site.connect();
            // It is left as soon as it makes no sense.
            let _ = connection.send_bytes(&noise(9, 1 << 20), &[]);
        }),
        case("random messages are said", |site| {
            for seed in 0..site.rounds(100) {
                let connection = site.connect();
                for round in 0..50 {
                    let bytes = noise(seed * 50 + round, 64);
                    let number = u32::from(bytes[0]) % 45;
                    let length = usize::from(bytes[1]) % 60;
                    let flags = u32::from(bytes[2] & 1) << 3;
                    let payload = &bytes[3..3 + length];
                    if connection.send(number, flags, payload, &[]).is_err() {
                        break;
                    }
                }
            }
        }),
    ]
}

/// Says the same until nobody listens any more.
fn flood(connection: &front_end::Connection, message: &[u8]) {
    connection.stream().set_nonblocking(true).unwrap();
    let many = message.repeat(512);
    // What of the last one goes out is part of a message at most.
    while connection.stream().write_all(&many).is_ok() {}
}

fn several() -> Vec<Case> {
    vec![
        case("a hundred connect at once and say nothing", |site| {
            let all: Vec<_> = (0..100).map_while(|_| try_connect(site)).collect();
            assert!(all.len() > 8);
        }),
        case("a hundred connect at once and all speak", |site| {
            let all: Vec<_> = (0..100).map_while(|_| try_connect(site)).collect();
            for one in &all {
                let _ = one.send(request::GET_FEATURES, 0, &[], &[]);
            }
        }),
        case("a second one speaks while the first is served", |site| {
            let mut first = site.attach();
            let second = site.connect();
            second.send(request::RESET_OWNER, 0, &[], &[]).unwrap();
            second.send_bytes(&noise(5, 4000), &[]).unwrap();
            assert_eq!(first.read(0, 512), rig::small_image::content(0, 512));
        }),
    ]
}

/// Where the queue of connections is full, there is none.
fn try_connect(site: &Site) -> Option<front_end::Connection> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
    let address = SocketAddrUnix::new(&site.socket).unwrap();
    rustix::net::connect(&socket, &address).ok()?;
    front_end::Connection::new(socket.into()).ok()
}

pub fn cases() -> Vec<Case> {
    [churn(), messages(), several()]
        .into_iter()
        .flatten()
        .collect()
}
