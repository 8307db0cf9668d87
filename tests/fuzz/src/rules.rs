//! The rules of virtio-blk requests (virtio 1.2, 5.2.6), written down apart from the code under
//! test.

use arbitrary::Arbitrary;
use vhost_backend::{DiscardLimits, DiskInfo, Op, Status, Topology, WriteZeroesLimits};

/// A disk as its driver may find it.
#[derive(Arbitrary, Debug, Clone)]
pub struct Disk {
    pub read_only: bool,
    /// Longest DISCARD in sectors.
    pub discard: Option<u8>,
    /// Longest WRITE_ZEROES in sectors, and whether it may free blocks.
    pub zeroes: Option<(u8, bool)>,
    pub writeback: bool,
    capacity: Capacity,
}

#[derive(Arbitrary, Debug, Clone)]
enum Capacity {
    Small(u8),
    Any(u64),
}

pub const SERIAL: [u8; 20] = *b"a serial of twenty b";

impl Disk {
    /// In sectors.
    pub fn capacity(&self) -> u64 {
        match self.capacity {
            Capacity::Small(sectors) => sectors.into(),
            Capacity::Any(sectors) => sectors,
        }
    }

    pub fn info(&self) -> DiskInfo {
        DiskInfo {
            read_only: self.read_only,
            logical_block_size: 512,
            topology: Topology::default(),
            discard: self.discard.map(|sectors| DiscardLimits {
                max_sectors: sectors.into(),
                alignment_sectors: 1,
            }),
            write_zeroes: self.zeroes.map(|(sectors, may_unmap)| WriteZeroesLimits {
                max_sectors: sectors.into(),
                may_unmap,
            }),
            serial: SERIAL,
        }
    }

    /// Offset and length in bytes of a range that lies on the disk.
    fn range(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let end = u128::from(sector) + u128::from(sectors);
        let addressable = end * 512 <= u128::from(u64::MAX);
        (end <= u128::from(self.capacity()) && addressable).then(|| (sector * 512, sectors * 512))
    }
}

/// What has to come of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Refused with one of these, and nothing else written.
    Refused(&'static [Status]),
    /// Answered at once: what the data buffers begin with.
    Answered(Vec<u8>),
    /// The data to be written to the disk.
    Out(Op, Vec<u8>),
    /// Bytes to be read from the disk.
    In(Op, u64),
    /// No data.
    Bare(Op),
}

const IOERR: Verdict = Verdict::Refused(&[Status::IoErr]);
const UNSUPP: Verdict = Verdict::Refused(&[Status::Unsupp]);

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A request of these readable bytes, and this many writable ones before its status.
pub fn judge(disk: &Disk, readable: &[u8], writable: u64) -> Verdict {
    if readable.len() < 16 {
        return IOERR;
    }
    let (kind, sector, data) = (word(readable, 0), long(readable, 8), &readable[16..]);
    let stable = !disk.writeback;
    match kind {
        0 => match disk.range(sector, writable / 512) {
            Some((offset, len)) if len == writable => match len {
                0 => Verdict::Answered(Vec::new()),
                _ => Verdict::In(Op::Read { offset }, len),
            },
            _ => IOERR,
        },
        1 if disk.read_only => IOERR,
        1 => match disk.range(sector, data.len() as u64 / 512) {
            Some((offset, len)) if len == data.len() as u64 => match len {
                0 => Verdict::Answered(Vec::new()),
                _ => Verdict::Out(Op::Write { offset, stable }, data.to_vec()),
            },
            _ => IOERR,
        },
        4 => Verdict::Bare(Op::Flush),
        8 => Verdict::Answered(SERIAL[..SERIAL.len().min(writable as usize)].to_vec()),
        11 | 13 => segment(disk, kind == 11, data),
        _ => UNSUPP,
    }
}

fn segment(disk: &Disk, discard: bool, payload: &[u8]) -> Verdict {
    if disk.read_only {
        return IOERR;
    }
    let (most, may_unmap) = match (discard, disk.discard, disk.zeroes) {
        (true, Some(most), _) => (most, false),
        (false, _, Some((most, may_unmap))) => (most, may_unmap),
        _ => return UNSUPP,
    };
    match payload.len() {
        16 => {}
        // More segments than are offered.
        more if more > 16 && more % 16 == 0 => {
            return Verdict::Refused(&[Status::IoErr, Status::Unsupp]);
        }
        _ => return IOERR,
    }
    let (sector, sectors, flags) = (long(payload, 0), word(payload, 8), word(payload, 12));
    let known = if discard { 0 } else { 1 };
    if flags & !known != 0 {
        return UNSUPP;
    }
    let range = disk.range(sector, sectors.into());
    let Some((offset, len)) = range.filter(|_| sectors <= most.into()) else {
        return IOERR;
    };
    if len == 0 {
        return Verdict::Answered(Vec::new());
    }
    Verdict::Bare(if discard {
        Op::Discard { offset, len }
    } else {
        Op::WriteZeroes {
            offset,
            len,
            unmap: flags == 1 && may_unmap,
            stable: !disk.writeback,
        }
    })
}
