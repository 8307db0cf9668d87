//! Numbers and forms of the NBD protocol (doc/proto.md of the reference
//! implementation). All are big-endian.

/// `NBDMAGIC`, the server's first words.
pub(super) const HELLO: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before each option.
pub(super) const OPTION: u64 = 0x4948_4156_454f_5054;
/// Before each answer to an option.
pub(super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub(super) const REQUEST: u32 = 0x2560_9513;
/// Before a reply of one piece.
const SIMPLE: u32 = 0x6744_6698;
/// Before each chunk of a reply.
const CHUNK: u32 = 0x668e_33ef;

/// Flags of the handshake, which server and client have alike.
pub(super) mod handshake {
    /// Options are answered.
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    /// Nothing follows the answer to `EXPORT_NAME`.
    pub(in super::super) const NO_ZEROES: u16 = 2;
}

/// What a client asks for before it reads.
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of answers to an option.
pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    pub(in super::super) const UNSUPPORTED: u32 = 0x8000_0001;
    pub(in super::super) const INVALID: u32 = 0x8000_0003;
    pub(in super::super) const UNKNOWN: u32 = 0x8000_0006;
    pub(in super::super) const TOO_BIG: u32 = 0x8000_0009;
}

/// What `INFO` and `GO` tell.
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// Flags of what is served.
pub(super) mod export {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const SEND_DF: u16 = 1 << 7;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(in super::super) const SEND_CACHE: u16 = 1 << 10;
}

/// Kinds of requests.
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const CACHE: u16 = 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub(super) mod flag {
    /// The answer is one chunk.
    pub(in super::super) const DF: u16 = 1 << 2;
    /// The answer is one extent.
    pub(in super::super) const REQ_ONE: u16 = 1 << 3;
}

/// Kinds of chunks.
pub(super) mod chunk {
    pub(in super::super) const NONE: u16 = 0;
    pub(in super::super) const OFFSET_DATA: u16 = 1;
    pub(in super::super) const OFFSET_HOLE: u16 = 2;
    pub(in super::super) const BLOCK_STATUS: u16 = 5;
    pub(in super::super) const ERROR: u16 = 0x8001;
}

/// The chunk is the last one of its reply.
pub(super) const DONE: u16 = 1;

/// Errors that a reply may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errno {
    /// Nothing may be written.
    Perm = 1,
    /// The host cannot read it.
    Io = 5,
    /// There is no such request, or not of that range.
    Invalid = 22,
}

impl Errno {
    fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Invalid => 22,
        }
    }
}

/// Bytes of a request's head.
pub(super) const REQUEST_BYTES: usize = 28;

/// A request as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// Given back with the answer.
    pub(super) cookie: u64,
    /// Of the first byte.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u32,
}

impl Request {
    /// `None` if that is no request.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let request = Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        };
        (magic == REQUEST).then_some(request)
    }

    /// The offset behind the last byte, if that is one of `size` bytes.
    pub(super) fn end(&self, size: u64) -> Option<u64> {
        let end = self.offset.checked_add(u64::from(self.length))?;
        (end <= size).then_some(end)
    }

    /// The head of a reply of one piece; `None` is no error.
    pub(super) fn simple(&self, error: Option<Errno>) -> Head {
        let mut head = Head::new();
        head.u32(SIMPLE);
        head.u32(error.map_or(0, Errno::number));
        head.u64(self.cookie);
        head
    }

    /// The head of a chunk with so many bytes behind it.
    pub(super) fn chunk(&self, flags: u16, kind: u16, length: u32) -> Head {
        let mut head = Head::new();
        head.u32(CHUNK);
        head.u16(flags);
        head.u16(kind);
        head.u64(self.cookie);
        head.u32(length);
        head
    }
}

/// Fields of what was received, from the first one on.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next bytes; `None` where there are less.
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        let bytes = self.bytes(2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let bytes = self.bytes(4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let bytes = self.bytes(8)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    }

    /// A text with its length before it.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).ok()?)
    }
}

/// The longest head: of a chunk, with an offset, a length and some more.
const HEAD_BYTES: usize = 48;

/// A head to be sent, of at most 48 bytes.
#[derive(Debug)]
pub(super) struct Head {
    bytes: [u8; HEAD_BYTES],
    used: usize,
}

impl Head {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; HEAD_BYTES],
            used: 0,
        }
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// What there is no room for is left out: no head is as long.
    fn put(&mut self, bytes: &[u8]) {
        let place = self.bytes.get_mut(self.used..self.used + bytes.len());
        debug_assert!(place.is_some(), "a head is longer than any");
        if let Some(place) = place {
            place.copy_from_slice(bytes);
            self.used += bytes.len();
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_sent() {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
        bytes[5] = 4;
        bytes[7] = 7;
        bytes[15] = 9;
        bytes[22] = 1;
        bytes[27] = 255;
        let request = Request::parse(&bytes).unwrap();
        let expected = Request {
            flags: flag::DF,
            command: command::BLOCK_STATUS,
            cookie: 9,
            offset: 256,
            length: 255,
        };
        assert_eq!(request, expected);
        assert_eq!((request.end(511), request.end(510)), (Some(511), None));
        bytes[0] = 0;
        assert_eq!(Request::parse(&bytes), None);
    }

    #[test]
    fn no_offset_goes_over_the_end_of_numbers() {
        let request = Request {
            flags: 0,
            command: 0,
            cookie: 0,
            offset: u64::MAX,
            length: 1,
        };
        assert_eq!(request.end(u64::MAX), None);
    }

    #[test]
    fn a_text_that_is_longer_than_what_was_sent_is_none() {
        let mut fields = Fields(&[0, 0, 0, 2, b'a', b'b', 0, 0, 0, 1]);
        assert_eq!(fields.text(), Some(&b"ab"[..]));
        assert_eq!(fields.text(), None);
    }
}
