//! Requests whose bytes lie in one block of guest memory and are cut into
//! descriptors anywhere: virtio gives descriptors no meaning (2.7.4.3).

use crate::codes::status;
use crate::driver::Op;
use crate::error::Result;
use crate::memory::GuestMemory;
use crate::ring::Buffer;

/// Where to cut: the lengths of the descriptors but the last, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cuts<'a> {
    /// Of what the device reads: header and data.
    pub readable: &'a [u32],
    /// Of what the device writes: data and status.
    pub writable: &'a [u32],
}

/// A request as it lies in guest memory.
#[derive(Debug, Clone)]
pub struct Block {
    /// The chain.
    pub chain: Vec<Buffer>,
    /// The guest address of the data that the device writes.
    pub data_in: u64,
    /// The guest address of the status byte.
    pub status: u64,
    /// The first address after the block.
    pub end: u64,
}

impl Block {
    /// Writes header, `data_out` and an untouched status from guest address
    /// `at`, with room for `length_in` bytes from the device.
    ///
    /// # Errors
    /// There is no memory.
    pub fn write(
        memory: &GuestMemory,
        at: u64,
        (op, sector): (Op, u64),
        data_out: &[u8],
        length_in: u32,
        cuts: Cuts<'_>,
    ) -> Result<Self> {
        let mut bytes = op.code().to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.extend(data_out);
        let data_in = at + bytes.len() as u64;
        let status = data_in + u64::from(length_in);
        memory.write(at, &bytes)?;
        memory.write(status, &[status::UNTOUCHED])?;
        let mut chain = Vec::new();
        cut(&mut chain, at, data_in, cuts.readable, Buffer::readable);
        cut(
            &mut chain,
            data_in,
            status + 1,
            cuts.writable,
            Buffer::writable,
        );
        Ok(Self {
            chain,
            data_in,
            status,
            end: status + 1,
        })
    }
}

fn cut(
    chain: &mut Vec<Buffer>,
    mut start: u64,
    end: u64,
    lengths: &[u32],
    buffer: fn(u64, u32) -> Buffer,
) {
    for &length in lengths {
        chain.push(buffer(start, length));
        start += u64::from(length);
    }
    // A cut beyond the end is the caller's joke; nothing is left then.
    let left = end.saturating_sub(start);
    if let Ok(length @ 1..) = u32::try_from(left) {
        chain.push(buffer(start, length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_where_they_are_however_they_are_cut() {
        let memory = GuestMemory::flat(0x1000).unwrap();
        let cuts = Cuts {
            readable: &[3, 13],
            writable: &[20],
        };
        let request = (Op::Write, 0x0102);
        let block = Block::write(&memory, 8, request, &[9; 4], 20, cuts).unwrap();
        let expected = [
            Buffer::readable(8, 3),
            Buffer::readable(11, 13),
            Buffer::readable(24, 4),
            Buffer::writable(28, 20),
            Buffer::writable(48, 1),
        ];
        assert_eq!(block.chain, expected);
        assert_eq!((block.data_in, block.status, block.end), (28, 48, 49));
        let header = [1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9];
        assert_eq!(memory.read(8, 20).unwrap(), header);
    }
}
