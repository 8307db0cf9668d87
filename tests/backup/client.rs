//! A client of the NBD protocol that says what it is told to, right or wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const OPTION: u64 = 0x4948_4156_454F_5054;
const LIMIT: Duration = Duration::from_secs(40);

pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED: u32 = 8;
    pub const LIST_CONTEXTS: u32 = 9;
    pub const SET_CONTEXTS: u32 = 10;
}

pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const ZEROES: u16 = 6;
    pub const STATUS: u16 = 7;
}

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
}

/// A reply, put together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub error: u32,
    /// Kind and payload of each chunk.
    pub chunks: Vec<(u16, Vec<u8>)>,
    /// Of a reply of one piece.
    pub data: Vec<u8>,
}

pub fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// The data of `GO` and `INFO`.
pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let count = u16::try_from(infos.len()).unwrap();
    let infos: Vec<u8> = infos.iter().flat_map(|info| info.to_be_bytes()).collect();
    [text(name), count.to_be_bytes().to_vec(), infos].concat()
}

pub fn queries(name: &str, all: &[&str]) -> Vec<u8> {
    let count = u32::try_from(all.len()).unwrap();
    let all: Vec<u8> = all.iter().flat_map(|query| text(query)).collect();
    [text(name), count.to_be_bytes().to_vec(), all].concat()
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

impl Client {
    /// Until the server waits for options.
    pub fn new(socket: &Path) -> Self {
        let mut this = Self {
            stream: UnixStream::connect(socket).unwrap(),
            structured: false,
        };
        this.stream.set_read_timeout(Some(LIMIT)).unwrap();
        let hello = this.take(18);
        assert_eq!(&hello[..8], b"NBDMAGIC");
        assert_eq!(&hello[16..], [0, 3]);
        this.send(&[0, 0, 0, 3]);
        this
    }

    /// One that reads, with all contexts or in the plain way.
    pub fn reading(socket: &Path, structured: bool, contexts: &[&str]) -> Self {
        let mut this = Self::new(socket);
        if structured {
            assert_eq!(this.option(opt::STRUCTURED, &[]).last().unwrap().0, 1);
            this.structured = true;
        }
        if !contexts.is_empty() {
            let told = this.option(opt::SET_CONTEXTS, &queries("", contexts));
            assert_eq!(told.len(), contexts.len() + 1, "{told:?}");
        }
        assert_eq!(this.option(opt::GO, &go("", &[])).last().unwrap().0, 1);
        this
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn number(&mut self, bytes: usize) -> u64 {
        let taken = self.take(bytes);
        taken
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The server has ended the connection.
    pub fn is_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Sends an option; all answers, to the last.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let length = u32::try_from(data.len()).unwrap();
        let head = [
            &OPTION.to_be_bytes()[..],
            &option.to_be_bytes(),
            &length.to_be_bytes(),
        ];
        self.send(&[&head.concat()[..], data].concat());
        let mut all = Vec::new();
        loop {
            assert_eq!(self.number(8), 0x0003_e889_0455_65a9);
            assert_eq!(self.number(4), u64::from(option));
            let kind = u32::try_from(self.number(4)).unwrap();
            let length = usize::try_from(self.number(4)).unwrap();
            all.push((kind, self.take(length)));
            if kind == 1 || kind >= 1 << 31 {
                return all;
            }
        }
    }

    /// What is answered to a request, whose cookie is looked at.
    pub fn ask(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> Reply {
        let cookie = offset ^ 0x5555;
        self.send(&request(flags, command, cookie, offset, length));
        self.reply(cookie, command, length)
    }

    pub fn reply(&mut self, cookie: u64, command: u16, length: u32) -> Reply {
        let mut reply = Reply::default();
        loop {
            let magic = self.number(4);
            if magic == 0x6744_6698 {
                reply.error = u32::try_from(self.number(4)).unwrap();
                assert_eq!(self.number(8), cookie);
                if command == cmd::READ && reply.error == 0 {
                    assert!(!self.structured);
                    reply.data = self.take(usize::try_from(length).unwrap());
                }
                return reply;
            }
            assert_eq!(magic, 0x668e_33ef);
            assert!(self.structured);
            let flags = self.number(2);
            let kind = u16::try_from(self.number(2)).unwrap();
            assert_eq!(self.number(8), cookie);
            let bytes = usize::try_from(self.number(4)).unwrap();
            let payload = self.take(bytes);
            if kind >= 1 << 15 {
                reply.error = u32::from_be_bytes(payload[..4].try_into().unwrap());
            }
            reply.chunks.push((kind, payload));
            if flags == 1 {
                return reply;
            }
        }
    }

    /// Reads, in chunks or in the plain way; an error's number otherwise.
    pub fn read(&mut self, flags: u16, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        let reply = self.ask(flags, cmd::READ, offset, length);
        if reply.error != 0 {
            return Err(reply.error);
        }
        if !self.structured {
            return Ok(reply.data);
        }
        Ok(content(&reply, offset, length, flags != 0))
    }

    /// Runs of each context, by its number.
    pub fn status(&mut self, flags: u16, offset: u64, length: u32) -> Vec<(u32, Vec<(u32, u32)>)> {
        let reply = self.ask(flags, cmd::STATUS, offset, length);
        assert_eq!(reply.error, 0, "{reply:?}");
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let one = |(kind, payload): &(u16, Vec<u8>)| {
            assert_eq!(*kind, 5);
            let runs = payload[4..].chunks(8);
            let runs = runs.map(|run| (word(&run[..4]), word(&run[4..])));
            (word(&payload[..4]), runs.collect())
        };
        reply.chunks.iter().map(one).collect()
    }
}

/// The bytes of a reply in chunks, each of which has its place and no other.
fn content(reply: &Reply, offset: u64, length: u32, whole: bool) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(length).unwrap()];
    let mut covered = vec![false; bytes.len()];
    let place = |payload: &[u8]| {
        let start = u64::from_be_bytes(payload[..8].try_into().unwrap());
        usize::try_from(start.checked_sub(offset).unwrap()).unwrap()
    };
    let mut chunks = 0;
    for (kind, payload) in &reply.chunks {
        let (at, data) = match kind {
            0 => continue,
            1 => (place(payload), payload[8..].to_vec()),
            2 => {
                let hole = u32::from_be_bytes(payload[8..12].try_into().unwrap());
                (place(payload), vec![0; usize::try_from(hole).unwrap()])
            }
            kind => panic!("a chunk of kind {kind}"),
        };
        chunks += 1;
        assert!(!data.is_empty());
        assert!(covered[at..at + data.len()].iter().all(|known| !known));
        covered[at..at + data.len()].fill(true);
        bytes[at..at + data.len()].copy_from_slice(&data);
    }
    assert!(covered.iter().all(|known| *known));
    assert!(!whole || chunks == 1);
    bytes
}
