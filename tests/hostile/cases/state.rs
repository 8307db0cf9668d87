//! States of the device that no back-end has saved, and pipes that hold them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use super::messages::noise;
use crate::suite::site::{Site, say, words};
use crate::suite::{Case, case};

const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;

/// Has the device restore these bytes from a pipe that ends then.
fn load(site: &Site, bytes: &[u8]) {
    let session = site.open();
    let (reader, mut writer) = io::pipe().unwrap();
    // More than a pipe holds is never asked for.
    let held = bytes.len().min(60_000);
    writer.write_all(&bytes[..held]).unwrap();
    drop(writer);
    let reader: OwnedFd = reader.into();
    let payload = words([1, 0]);
    say(
        &session.connection,
        SET_DEVICE_STATE_FD,
        &payload,
        &[reader.as_raw_fd()],
    );
    say(&session.connection, CHECK_DEVICE_STATE, &[], &[]);
    session.connection.get_features().unwrap();
}

/// What the device saves.
fn saved(site: &Site) -> Vec<u8> {
    let session = site.open();
    let (mut reader, writer) = io::pipe().unwrap();
    let writer: OwnedFd = writer.into();
    let payload = words([0, 0]);
    say(
        &session.connection,
        SET_DEVICE_STATE_FD,
        &payload,
        &[writer.as_raw_fd()],
    );
    drop(writer);
    drop(session);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    bytes
}

pub fn cases() -> Vec<Case> {
    vec![
        case("a state is empty", |site| load(site, &[])),
        case("a state is noise", |site| load(site, &noise(1, 512))),
        case("a state is ones", |site| load(site, &[0xff; 512])),
        case("a state is longer than any", |site| {
            load(site, &noise(2, 60_000))
        }),
        case("a state ends at each byte", |site| {
            let bytes = saved(site);
            assert!(bytes.len() >= 48, "{}", bytes.len());
            for length in (0..bytes.len()).step_by(7) {
                load(site, &bytes[..length]);
            }
        }),
        case("a state is wrong in one byte after the other", |site| {
            let bytes = saved(site);
            for at in 0..48 {
                let mut wrong = bytes.clone();
                wrong[at] ^= 0xff;
                load(site, &wrong);
            }
        }),
        case("a state has too many rings", |site| {
            let mut bytes = saved(site);
            bytes[12..14].copy_from_slice(&u16::MAX.to_le_bytes());
            bytes.resize(48 + 2 * 65535, 7);
            load(site, &bytes);
        }),
        case(
            "a state is asked for in directions and phases that there are not",
            |site| {
                let session = site.open();
                let null = File::open("/dev/null").unwrap();
                for payload in [[2, 0], [0, 1], [u32::MAX, 0], [0, u32::MAX], [1, 1]] {
                    let fds = [null.as_raw_fd()];
                    say(
                        &session.connection,
                        SET_DEVICE_STATE_FD,
                        &words(payload),
                        &fds,
                    );
                }
            },
        ),
        case("a state is moved while a ring runs", |site| {
            let mut front = site.attach();
            let (reader, writer) = io::pipe().unwrap();
            let ends: [OwnedFd; 2] = [writer.into(), reader.into()];
            for (direction, end) in (0..).zip(&ends) {
                let fds = [end.as_raw_fd()];
                let payload = words([direction, 0]);
                say(
                    &front.session.connection,
                    SET_DEVICE_STATE_FD,
                    &payload,
                    &fds,
                );
            }
            super::descriptors::read_once(&mut front);
        }),
        case("a state is checked that was never moved", |site| {
            let session = site.open();
            for _ in 0..10 {
                say(&session.connection, CHECK_DEVICE_STATE, &[], &[]);
            }
        }),
    ]
}
