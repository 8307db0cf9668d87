//! Where attacks go to, and the manners of an attacker.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use front_end::codes::{flag, request};
use front_end::{Connection, Session};
use rig::attached::Attached;

use crate::served;

/// A process as those see it who mean it harm.
#[derive(Clone)]
pub struct Site {
    /// Where front-ends connect.
    pub socket: PathBuf,
    /// The control socket; `None` for an attacker who may not connect.
    pub control: Option<PathBuf>,
    /// Where metrics are told.
    pub metrics: Option<SocketAddr>,
    /// A folder for files.
    pub files: PathBuf,
    /// Out of how many rounds one is made here.
    pub divisor: u32,
    /// Which tenth of what is alike is tried where not everything is.
    pub share: usize,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It succeeded.
    Done,
    /// The value was another.
    Refused(u64),
    /// It was answered with so many bytes.
    Bytes(usize),
    /// It was not answered.
    Silent,
    /// The connection was closed.
    Closed,
}

impl Site {
    pub fn connect(&self) -> Connection {
        Connection::connect(&self.socket).unwrap()
    }

    /// With all features.
    pub fn open(&self) -> Session {
        served::open(&self.socket)
    }

    /// With all features, and a ring that runs.
    pub fn attach(&self) -> Attached {
        Attached::over(self.open())
    }

    /// Whether the `index`th of many that are alike is tried here.
    pub fn tries(&self, index: usize) -> bool {
        self.divisor == 1 || index % 10 == self.share
    }

    /// So many of them where everything is tried, and fewer elsewhere.
    pub fn rounds(&self, all: u32) -> u32 {
        all.div_ceil(self.divisor)
    }
}

/// Sends a message that asks for an answer, and another that always has one.
pub fn say(connection: &Connection, number: u32, payload: &[u8], fds: &[RawFd]) -> Answer {
    say_with(connection, number, flag::NEED_REPLY, payload, fds)
}

/// As [`say`], with other flags.
pub fn say_with(
    connection: &Connection,
    number: u32,
    flags: u32,
    payload: &[u8],
    fds: &[RawFd],
) -> Answer {
    let barrier = match number {
        request::GET_PROTOCOL_FEATURES => request::GET_FEATURES,
        _ => request::GET_PROTOCOL_FEATURES,
    };
    let sent = connection.send(number, flags, payload, fds);
    if sent
        .and_then(|()| connection.send(barrier, 0, &[], &[]))
        .is_err()
    {
        return Answer::Closed;
    }
    let mut answer = Answer::Silent;
    loop {
        match connection.receive() {
            Ok(message) if message.request == barrier => return answer,
            Ok(message) => {
                answer = match message.payload.len() {
                    8 if message.u64_at(0) == 0 => Answer::Done,
                    8 => Answer::Refused(message.u64_at(0)),
                    bytes => Answer::Bytes(bytes),
                };
            }
            Err(error) => {
                assert!(matches!(error, front_end::Error::Closed), "{error}");
                return Answer::Closed;
            }
        }
    }
}

/// As [`say`]: it must not succeed.
pub fn refused(connection: &Connection, number: u32, payload: &[u8], fds: &[RawFd]) {
    let answer = say(connection, number, payload, fds);
    assert_ne!(answer, Answer::Done, "message {number} with {payload:x?}");
}

/// 32-bit fields of a message.
pub fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.map(u32::to_ne_bytes).concat()
}

/// 64-bit fields of a message.
pub fn longs<const N: usize>(longs: [u64; N]) -> Vec<u8> {
    longs.map(u64::to_ne_bytes).concat()
}
