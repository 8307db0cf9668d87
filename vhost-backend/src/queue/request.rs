//! virtio-blk requests (virtio 1.2, 5.2.6): what the driver asks for, checked
//! against what the disk offers. Knows nothing of rings and guest memory.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::device::{DiskInfo, Op, SECTOR, Status};
use crate::memory::copy::Unreachable;

/// A request's buffers, without its status byte, as two streams of bytes.
pub(crate) trait ChainReader {
    /// Bytes that can still be read.
    fn readable(&self) -> u64;
    /// Bytes that can still be written.
    fn writable(&self) -> u64;
    /// Copies from the front of what is readable; returns how many bytes.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Unreachable>;
    /// Copies to the front of what is writable; returns how many bytes.
    fn write(&mut self, from: &[u8]) -> Result<usize, Unreachable>;
}

/// What a request is judged by, read as it is fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub info: &'a DiskInfo,
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// Writes may be cached until a FLUSH.
    pub writeback: bool,
}

/// Which of a chain's buffers hold the data of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    None,
    /// What is left to be read.
    Readable,
    /// What is left to be written: this many bytes.
    Writable(u32),
}

/// What to do about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Answered; with the bytes written to the buffers before the status.
    Done(Status, u32),
    /// To be carried out.
    Io(Op, Data),
    /// Its header, or another part of it, cannot be read or written.
    Unreachable,
}

/// The request cannot be served, for this reason.
#[derive(Debug)]
enum Refused {
    With(Status),
    Unreachable,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::With(status)
    }
}

impl From<Unreachable> for Refused {
    fn from(_: Unreachable) -> Self {
        Self::Unreachable
    }
}

/// Reads the header, and the payload of commands that have one, and judges
/// the request. Data is left in the chain.
pub(crate) fn parse(chain: &mut impl ChainReader, terms: &Terms<'_>) -> Parsed {
    judge(chain, terms).unwrap_or_else(|refused| match refused {
        Refused::With(status) => Parsed::Done(status, 0),
        Refused::Unreachable => Parsed::Unreachable,
    })
}

fn judge(chain: &mut impl ChainReader, terms: &Terms<'_>) -> Result<Parsed, Refused> {
    let mut header = [0; 16];
    if chain.read(&mut header)? < header.len() {
        return Err(Status::IoErr.into());
    }
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);
    let writable_disk = || {
        if terms.info.read_only {
            Err(Refused::With(Status::IoErr))
        } else {
            Ok(())
        }
    };
    let stable = !terms.writeback;

    match kind {
        VIRTIO_BLK_T_IN => {
            let bytes = chain.writable();
            let offset = transfer(sector, bytes, terms)?;
            let Ok(len) = u32::try_from(bytes) else {
                return Err(Status::IoErr.into());
            };
            if len == 0 {
                return Ok(Parsed::Done(Status::Ok, 0));
            }
            Ok(Parsed::Io(Op::Read { offset }, Data::Writable(len)))
        }
        VIRTIO_BLK_T_OUT => {
            writable_disk()?;
            let offset = transfer(sector, chain.readable(), terms)?;
            if chain.readable() == 0 {
                return Ok(Parsed::Done(Status::Ok, 0));
            }
            Ok(Parsed::Io(Op::Write { offset, stable }, Data::Readable))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Parsed::Io(Op::Flush, Data::None)),
        VIRTIO_BLK_T_GET_ID => {
            let written = chain.write(&terms.info.serial)?;
            Ok(Parsed::Done(
                Status::Ok,
                u32::try_from(written).unwrap_or(0),
            ))
        }
        VIRTIO_BLK_T_DISCARD => {
            writable_disk()?;
            let limits = terms.info.discard.ok_or(Status::Unsupp)?;
            let segment = Segment::read(chain)?;
            if segment.flags != 0 {
                return Err(Status::Unsupp.into());
            }
            let (offset, len) = segment.range(limits.max_sectors, terms.capacity)?;
            if len == 0 {
                return Ok(Parsed::Done(Status::Ok, 0));
            }
            Ok(Parsed::Io(Op::Discard { offset, len }, Data::None))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            writable_disk()?;
            let limits = terms.info.write_zeroes.ok_or(Status::Unsupp)?;
            let segment = Segment::read(chain)?;
            if segment.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Status::Unsupp.into());
            }
            let (offset, len) = segment.range(limits.max_sectors, terms.capacity)?;
            if len == 0 {
                return Ok(Parsed::Done(Status::Ok, 0));
            }
            // A hint that may be ignored, and is where freeing is not offered.
            let unmap = segment.flags != 0 && limits.may_unmap;
            Ok(Parsed::Io(
                Op::WriteZeroes {
                    offset,
                    len,
                    unmap,
                    stable,
                },
                Data::None,
            ))
        }
        _ => Err(Status::Unsupp.into()),
    }
}

/// The byte offset of a transfer that lies within the disk (BLK-14, BLK-15).
fn transfer(sector: u64, bytes: u64, terms: &Terms<'_>) -> Result<u64, Refused> {
    if !bytes.is_multiple_of(SECTOR) {
        return Err(Status::IoErr.into());
    }
    within(sector, bytes / SECTOR, terms.capacity)
}

/// The byte offset of a range of sectors that lies within the capacity.
fn within(sector: u64, sectors: u64, capacity: u64) -> Result<u64, Refused> {
    let end = sector.checked_add(sectors).filter(|end| *end <= capacity);
    // A disk of that many bytes can be addressed, so this does not overflow;
    // but the capacity is the device's word.
    let addressable = end.and_then(|end| end.checked_mul(SECTOR));
    let begin = addressable.and_then(|_| sector.checked_mul(SECTOR));
    begin.ok_or_else(|| Status::IoErr.into())
}

/// `struct virtio_blk_discard_write_zeroes`
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Segment {
    const SIZE: u64 = 16;

    /// The only segment of the payload: more are not offered (BLK-28).
    fn read(chain: &mut impl ChainReader) -> Result<Self, Refused> {
        let payload = chain.readable();
        if payload == 0 || !payload.is_multiple_of(Self::SIZE) {
            return Err(Status::IoErr.into());
        }
        if payload > Self::SIZE {
            return Err(Status::Unsupp.into());
        }
        let (mut sector, mut sectors, mut flags) = ([0; 8], [0; 4], [0; 4]);
        for part in [&mut sector[..], &mut sectors[..], &mut flags[..]] {
            if chain.read(part)? != part.len() {
                return Err(Status::IoErr.into());
            }
        }
        Ok(Self {
            sector: u64::from_le_bytes(sector),
            sectors: u32::from_le_bytes(sectors),
            flags: u32::from_le_bytes(flags),
        })
    }

    /// Offset and length in bytes.
    fn range(&self, max_sectors: u32, capacity: u64) -> Result<(u64, u64), Refused> {
        if self.sectors > max_sectors {
            return Err(Status::IoErr.into());
        }
        let offset = within(self.sector, u64::from(self.sectors), capacity)?;
        Ok((offset, u64::from(self.sectors) * SECTOR))
    }
}

#[cfg(test)]
mod tests;
