//! The form of a backup, version 1: a head, records in ascending order, and an
//! end. docs/backup.md has it for those who read it without this program.
//! Numbers are little-endian.

use std::fmt;

use sha2::{Digest, Sha256};

/// What a backup begins with.
pub(super) const MAGIC: [u8; 16] = *b"extentd backup\r\n";
/// The version that is written.
pub(super) const VERSION: u32 = 1;
/// Most bytes of data of one record.
pub(super) const CHUNK: usize = 1 << 20;
/// Longest name of a snapshot.
const NAME_BYTES: usize = 255;
/// Bytes of a head, whose name has a place of that length.
pub(super) const HEAD_BYTES: usize = 16 + 4 + 4 + 8 + 8 + 32 + 32 + 4 + 256 + 32;
/// Bytes before the data of a record.
pub(super) const RECORD_BYTES: usize = 8 + 8 + 8 + 32;

/// A sum of SHA-256.
pub(super) type Sum = [u8; 32];

/// The sum of some bytes.
pub(super) fn sum(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// A state of a disk: the sum of what its snapshot is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(super) Sum);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a backup begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The file name of the snapshot.
    pub name: String,
    /// Bytes of the disk.
    pub size: u64,
    /// When it was written, in seconds since 1970.
    pub written: u64,
    /// The snapshot.
    pub id: Id,
    /// The older snapshot whose bytes are needed; none for a full backup.
    pub base: Option<Id>,
}

/// Why bytes are no backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// As it says.
    Damaged(&'static str),
    /// Of another version.
    Version(u32),
}

impl Head {
    /// As it is written. A name that is too long is cut.
    pub(super) fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let mut end = self.name.len().min(NAME_BYTES);
        while !self.name.is_char_boundary(end) {
            end -= 1;
        }
        let name = self.name.get(..end).unwrap_or_default();
        let kind: u32 = if self.base.is_some() { 1 } else { 0 };
        let base = self.base.map_or([0; 32], |base| base.0);
        let length = u32::try_from(name.len()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.written.to_le_bytes());
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&base);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(HEAD_BYTES - 32, 0);
        let sum = sum(&bytes);
        bytes.extend_from_slice(&sum);
        let mut all = [0; HEAD_BYTES];
        all.copy_from_slice(&bytes);
        all
    }

    /// What these bytes say.
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Wrong> {
        let damaged = || Wrong::Damaged("its head is damaged");
        let mut fields = Fields(bytes);
        if fields.take::<16>() != Some(MAGIC) {
            return Err(Wrong::Damaged("this is no backup"));
        }
        let version = fields.u32().ok_or_else(damaged)?;
        if version != VERSION {
            return Err(Wrong::Version(version));
        }
        let (head, stated) = bytes.split_at(HEAD_BYTES - 32);
        if sum(head) != stated {
            return Err(damaged());
        }
        let kind = fields.u32().ok_or_else(damaged)?;
        let size = fields.u64().ok_or_else(damaged)?;
        let written = fields.u64().ok_or_else(damaged)?;
        let id = Id(fields.take().ok_or_else(damaged)?);
        let base: Sum = fields.take().ok_or_else(damaged)?;
        let length = fields.u32().ok_or_else(damaged)?;
        let length = usize::try_from(length).map_err(|_| damaged())?;
        let name = fields.0.get(..length.min(NAME_BYTES));
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let base = match kind {
            0 if base == [0; 32] => None,
            1 => Some(Id(base)),
            _ => return Err(damaged()),
        };
        if base == Some(id) || length > NAME_BYTES || i64::try_from(size).is_err() {
            return Err(damaged());
        }
        Ok(Self {
            name: name.ok_or_else(damaged)?.to_owned(),
            size,
            written,
            id,
            base,
        })
    }
}

/// What a record says of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its bytes follow, at most [`CHUNK`].
    Data = 1,
    /// It reads as zeros.
    Zeros = 2,
    /// There are no more.
    End = 3,
}

/// A record, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// Of the first byte; of the end: how many records were before.
    pub(super) start: u64,
    /// In bytes; of the end: how many bytes of data were before.
    pub(super) len: u64,
    /// Of the data; of the end: of all heads before.
    pub(super) sum: Sum,
}

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let kind: u64 = match self.kind {
            Kind::Data => 1,
            Kind::Zeros => 2,
            Kind::End => 3,
        };
        let mut bytes = [0; RECORD_BYTES];
        let parts = [kind, self.start, self.len].map(u64::to_le_bytes);
        let all = parts.as_flattened().iter().chain(&self.sum);
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// `None` if there is no such kind.
    pub(super) fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let kind = match fields.u64()? {
            1 => Kind::Data,
            2 => Kind::Zeros,
            3 => Kind::End,
            _ => return None,
        };
        Some(Self {
            kind,
            start: fields.u64()?,
            len: fields.u64()?,
            sum: fields.take()?,
        })
    }
}

/// The sum of all heads, which have the sums of all data.
#[derive(Debug, Clone)]
pub(super) struct Whole {
    sum: Sha256,
    pub(super) records: u64,
    pub(super) data: u64,
    /// Bytes that read as zeros by records.
    pub(super) zeros: u64,
}

impl Whole {
    pub(super) fn new(head: &[u8; HEAD_BYTES]) -> Self {
        let mut sum = Sha256::new();
        sum.update(head);
        Self {
            sum,
            records: 0,
            data: 0,
            zeros: 0,
        }
    }

    pub(super) fn add(&mut self, record: &Record) {
        self.sum.update(record.to_bytes());
        self.records = self.records.saturating_add(1);
        let bytes = match record.kind {
            Kind::Data => &mut self.data,
            Kind::Zeros | Kind::End => &mut self.zeros,
        };
        *bytes = bytes.saturating_add(record.len);
    }

    /// The end that has to be there after these records.
    pub(super) fn end(&self) -> Record {
        Record {
            kind: Kind::End,
            start: self.records,
            len: self.data,
            sum: self.sum.clone().finalize().into(),
        }
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, left) = self.0.split_first_chunk::<N>()?;
        self.0 = left;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            name: "tuesday".to_owned(),
            size: 1 << 30,
            written: 1_700_000_000,
            id: Id([7; 32]),
            base: Some(Id([3; 32])),
        }
    }

    #[test]
    fn a_head_is_read_as_it_was_written_and_not_if_any_byte_is_another() {
        let bytes = head().to_bytes();
        assert_eq!(Head::parse(&bytes), Ok(head()));
        for at in 0..HEAD_BYTES {
            let mut changed = bytes;
            changed[at] ^= 0x40;
            assert!(Head::parse(&changed).is_err(), "{at}");
        }
        let mut newer = bytes;
        newer[16] = 9;
        assert_eq!(Head::parse(&newer), Err(Wrong::Version(9)));
    }

    #[test]
    fn what_a_sum_does_not_tell_is_looked_at_too() {
        let signed = |change: fn(&mut [u8; HEAD_BYTES])| {
            let mut bytes = head().to_bytes();
            change(&mut bytes);
            let sum = sum(&bytes[..HEAD_BYTES - 32]);
            bytes[HEAD_BYTES - 32..].copy_from_slice(&sum);
            Head::parse(&bytes)
        };
        assert!(signed(|_| {}).is_ok());
        // A kind, a size beyond any file, a name without end or that is no text, itself as base.
        assert!(signed(|bytes| bytes[20] = 2).is_err());
        assert!(signed(|bytes| bytes[31] = 0x80).is_err());
        assert!(signed(|bytes| bytes[105] = 1).is_err());
        assert!(signed(|bytes| bytes[108] = 0xff).is_err());
        assert!(signed(|bytes| bytes[72..104].fill(7)).is_err());
        // A full one has no base.
        assert!(signed(|bytes| bytes[20] = 0).is_err());
    }

    #[test]
    fn names_are_cut_where_a_letter_ends() {
        let name = "ä".repeat(200);
        let cut = Head::parse(&Head { name, ..head() }.to_bytes()).unwrap();
        assert_eq!(cut.name, "ä".repeat(127));
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record {
            kind: Kind::Zeros,
            start: 4096,
            len: 1 << 40,
            sum: [1; 32],
        };
        assert_eq!(Record::parse(&record.to_bytes()), Some(record));
        assert_eq!(Record::parse(&[0; RECORD_BYTES]), None);
    }
}
