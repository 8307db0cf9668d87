//! Messages that are right, at the wrong moment.

use std::os::fd::AsRawFd;

use front_end::codes::request;
use front_end::{Connection, Session};
use vmm_sys_util::eventfd::EventFd;

use crate::suite::site::{Site, longs, say, words};
use crate::suite::{Case, case};

/// A message of an attacker: its number, its payload, whether an eventfd comes
/// with it.
type Said = (u32, Vec<u8>, bool);

fn ring(number: u32, value: u32) -> Said {
    (number, words([0, value]), false)
}

fn event(number: u32) -> Said {
    (number, longs([0]), true)
}

fn address() -> Said {
    let user = 0x7f00_0000_0000;
    let rings = longs([user, user + 0x2000, user + 0x1000, 0]);
    (
        request::SET_VRING_ADDR,
        [words([0, 0]), rings].concat(),
        false,
    )
}

fn features(bits: u64) -> Said {
    (request::SET_FEATURES, longs([bits]), false)
}

fn say_all(connection: &Connection, all: &[Said]) {
    let event = EventFd::new(0).unwrap();
    for (number, payload, with) in all {
        let fds = [event.as_raw_fd()];
        say(connection, *number, payload, if *with { &fds } else { &[] });
    }
}

/// On a connection on which nothing was said, on one with features, and on
/// one whose ring runs; twice each.
fn row(name: &'static str, all: fn() -> Vec<Said>) -> Case {
    case(name, move |site: &Site| {
        let plain = site.connect();
        say_all(&plain, &all());
        drop(plain);
        let session: Session = site.open();
        say_all(&session.connection, &all());
        say_all(&session.connection, &all());
        drop(session);
        let mut front = site.attach();
        say_all(&front.session.connection, &all());
        super::descriptors::read_once(&mut front);
        say_all(&front.session.connection, &all());
        front
    })
}

pub fn cases() -> Vec<Case> {
    const GET_BASE: u32 = request::GET_VRING_BASE;
    const SET_BASE: u32 = request::SET_VRING_BASE;
    vec![
        row("addresses come before memory", || vec![address()]),
        row("a kick comes before everything else", || {
            vec![event(request::SET_VRING_KICK)]
        }),
        row("kick and enable come without addresses", || {
            vec![
                event(request::SET_VRING_KICK),
                ring(request::SET_VRING_ENABLE, 1),
            ]
        }),
        row("a ring is enabled that was never set up", || {
            vec![ring(request::SET_VRING_ENABLE, 1)]
        }),
        row("a ring is stopped that never ran", || {
            vec![ring(GET_BASE, 0), ring(GET_BASE, 0)]
        }),
        row("a ring is started over and over", || {
            let mut all = Vec::new();
            for _ in 0..20 {
                all.push(event(request::SET_VRING_KICK));
                all.push(ring(request::SET_VRING_ENABLE, 1));
            }
            all
        }),
        row("a ring starts and stops in turn", || {
            let start = || [event(request::SET_VRING_KICK), ring(GET_BASE, 0)];
            (0..20).flat_map(|_| start()).collect()
        }),
        row("the size of a ring changes while it runs", || {
            [1, 2, 4, 32768, 64, 256]
                .map(|size| ring(request::SET_VRING_NUM, size))
                .into()
        }),
        row("the base of a ring changes while it runs", || {
            [1, 1000, 65535, 65536, u32::MAX]
                .map(|base| ring(SET_BASE, base))
                .into()
        }),
        row("the addresses of a ring change while it runs", || {
            vec![
                address(),
                address(),
                ring(request::SET_VRING_ENABLE, 0),
                address(),
            ]
        }),
        row("features are taken back while a ring runs", || {
            vec![
                features(0),
                features(1 << 30),
                features(1 << 32),
                features(0),
            ]
        }),
        row("protocol features are taken back while a ring runs", || {
            vec![
                (request::SET_PROTOCOL_FEATURES, longs([0]), false),
                ring(GET_BASE, 0),
            ]
        }),
        row("the device is reset in between", || {
            let reset = || (request::RESET_DEVICE, Vec::new(), false);
            vec![
                reset(),
                event(request::SET_VRING_KICK),
                reset(),
                reset(),
                address(),
            ]
        }),
        row("the owner is reset in between", || {
            let owner = |number| (number, Vec::new(), false);
            let (set, reset) = (request::SET_OWNER, request::RESET_OWNER);
            vec![
                owner(set),
                owner(set),
                owner(reset),
                owner(reset),
                owner(set),
            ]
        }),
        row("calls change a hundred times", || {
            (0..100).map(|_| event(request::SET_VRING_CALL)).collect()
        }),
        row("a ring is to be polled, and then not", || {
            let polled = || (request::SET_VRING_KICK, longs([0x100]), false);
            vec![
                polled(),
                event(request::SET_VRING_KICK),
                polled(),
                ring(GET_BASE, 0),
            ]
        }),
        row("every ring is started that there is", || {
            let kick = |index: u64| (request::SET_VRING_KICK, longs([index]), true);
            (0..256).map(kick).collect()
        }),
        row("everything is said backwards", || {
            vec![
                ring(GET_BASE, 0),
                ring(request::SET_VRING_ENABLE, 1),
                event(request::SET_VRING_KICK),
                event(request::SET_VRING_CALL),
                ring(SET_BASE, 0),
                address(),
                ring(request::SET_VRING_NUM, 64),
                features(1 << 30),
                (request::SET_OWNER, Vec::new(), false),
                (request::GET_FEATURES, Vec::new(), false),
            ]
        }),
    ]
}
