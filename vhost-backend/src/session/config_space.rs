//! The device configuration as the guest sees it: `struct virtio_blk_config`
//! (virtio 1.2, 5.2.4), little-endian.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use crate::device::DiskInfo;
use crate::error::Refusal;

/// Bytes that can be asked for; those beyond the structure read as zeros.
pub(crate) const SIZE: usize = 256;

/// Where the `writeback` byte is.
pub(crate) const WRITEBACK: usize = 32;

/// Most segments Linux makes use of; chains may be longer all the same.
const SEG_MAX: u16 = 126;

/// What the configuration is made of.
#[derive(Debug)]
pub(crate) struct ConfigSpace<'a> {
    pub info: &'a DiskInfo,
    /// In 512-byte sectors.
    pub capacity: u64,
    pub queues: u16,
    pub queue_size: u16,
    pub writeback: bool,
}

impl ConfigSpace<'_> {
    /// All bytes. A field of a feature that is not offered is 0 (BLK-5).
    pub(crate) fn bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, field: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at.saturating_add(field.len())) {
                place.copy_from_slice(field);
            }
        };
        let block = self.info.logical_block_size;
        let sectors_per_block = u64::from(block / 512).max(1);
        let topology = &self.info.topology;
        let past_blocks = self.capacity.checked_rem(sectors_per_block).unwrap_or(0);
        put(0, &self.capacity.saturating_sub(past_blocks).to_le_bytes());
        // A request has two more descriptors: header and status (BLK-31).
        put(
            12,
            &u32::from(SEG_MAX.min(self.queue_size.saturating_sub(2))).to_le_bytes(),
        );
        put(20, &block.to_le_bytes());
        put(
            24,
            &[topology.physical_block_exp, topology.alignment_offset],
        );
        put(26, &topology.min_io_size.to_le_bytes());
        put(28, &topology.opt_io_size.to_le_bytes());
        put(WRITEBACK, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        if self.info.read_only {
            return bytes;
        }
        if let Some(discard) = self.info.discard {
            put(36, &discard.max_sectors.to_le_bytes());
            put(40, &1_u32.to_le_bytes());
            put(44, &discard.alignment_sectors.to_le_bytes());
        }
        if let Some(zeroes) = self.info.write_zeroes {
            put(48, &zeroes.max_sectors.to_le_bytes());
            put(52, &1_u32.to_le_bytes());
            put(56, &[u8::from(zeroes.may_unmap)]);
        }
        bytes
    }
}

/// The `writeback` byte of a SET_CONFIG, if it changes it. A migration
/// (`flags` 1) may send the whole structure, of which the rest is ours to
/// know; some front-ends use that flag for everything (VU-26).
pub(crate) fn written_writeback(
    offset: u32,
    bytes: &[u8],
    flags: u32,
) -> Result<Option<bool>, Refusal> {
    let start = usize::try_from(offset).map_err(|_| Refusal::ConfigValue)?;
    let end = start.checked_add(bytes.len()).ok_or(Refusal::ConfigValue)?;
    if flags > 1 || end > SIZE {
        return Err(Refusal::ConfigValue);
    }
    if flags == 0 && (start, end) != (WRITEBACK, WRITEBACK + 1) {
        return Err(Refusal::ConfigReadOnly);
    }
    match WRITEBACK.checked_sub(start).and_then(|at| bytes.get(at)) {
        None => Ok(None),
        Some(0) => Ok(Some(false)),
        Some(1) => Ok(Some(true)),
        Some(_) => Err(Refusal::ConfigValue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::features::tests::disk;

    fn bytes_of(info: &DiskInfo, queue_size: u16) -> [u8; SIZE] {
        ConfigSpace {
            info,
            capacity: 0x0102_0304_0500,
            queues: 3,
            queue_size,
            writeback: true,
        }
        .bytes()
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn blk_1_capacity_is_in_sectors_little_endian() {
        assert_eq!(bytes_of(&disk(false), 256)[..8], [0, 5, 4, 3, 2, 1, 0, 0]);
    }

    #[test]
    fn blk_39_capacity_is_a_multiple_of_the_block_size() {
        let info = disk(false);
        let config = ConfigSpace {
            info: &info,
            capacity: 17,
            queues: 1,
            queue_size: 256,
            writeback: true,
        };
        assert_eq!(config.bytes()[0], 16);
        assert_eq!(u32_at(&config.bytes(), 20), 4096);
    }

    #[test]
    fn blk_4_blk_34_padding_and_the_unused_rest_are_zero() {
        let bytes = bytes_of(&disk(false), 256);
        assert_eq!(bytes[33], 0);
        assert!(bytes[57..].iter().all(|&b| b == 0));
        assert!(bytes[8..12].iter().chain(&bytes[16..20]).all(|&b| b == 0));
    }

    #[test]
    fn blk_31_seg_max_fits_the_ring() {
        assert_eq!(u32_at(&bytes_of(&disk(false), 256), 12), 126);
        assert_eq!(u32_at(&bytes_of(&disk(false), 64), 12), 62);
        assert_eq!(u32_at(&bytes_of(&disk(false), 4), 12), 2);
    }

    #[test]
    fn blk_5_blk_27_blk_37_every_field_is_where_it_belongs() {
        let bytes = bytes_of(&disk(false), 256);
        assert_eq!(bytes[24..28], [1, 2, 3, 0]);
        assert_eq!(u32_at(&bytes, 28), 4);
        assert_eq!(bytes[32], 1);
        assert_eq!(bytes[34..36], [3, 0]);
        assert_eq!([36, 40, 44].map(|at| u32_at(&bytes, at)), [0x1234, 1, 8]);
        assert_eq!([48, 52].map(|at| u32_at(&bytes, at)), [0x5678, 1]);
        assert_eq!(bytes[56], 1);
        assert!(bytes_of(&disk(true), 256)[36..].iter().all(|&b| b == 0));
    }

    #[test]
    fn vu_26_only_writeback_can_be_written() {
        assert_eq!(written_writeback(32, &[0], 0).unwrap(), Some(false));
        assert_eq!(written_writeback(32, &[1], 0).unwrap(), Some(true));
        assert!(matches!(
            written_writeback(0, &[0; 8], 0),
            Err(Refusal::ConfigReadOnly)
        ));
        assert!(matches!(
            written_writeback(32, &[0, 0], 0),
            Err(Refusal::ConfigReadOnly)
        ));
        assert!(matches!(
            written_writeback(32, &[0], 2),
            Err(Refusal::ConfigValue)
        ));
    }

    #[test]
    fn vu_26_a_migration_may_send_the_whole() {
        let mut whole = [0xff; 60];
        whole[32] = 0;
        assert_eq!(written_writeback(0, &whole, 1).unwrap(), Some(false));
        assert_eq!(written_writeback(32, &[1], 1).unwrap(), Some(true));
        assert_eq!(written_writeback(36, &[1], 1).unwrap(), None);
        assert!(matches!(
            written_writeback(0, &[0; 257], 1),
            Err(Refusal::ConfigValue)
        ));
        assert!(matches!(
            written_writeback(u32::MAX, &[0], 1),
            Err(Refusal::ConfigValue)
        ));
    }

    #[test]
    fn blk_23_only_0_and_1_are_values_of_writeback() {
        for flags in [0, 1] {
            assert!(matches!(
                written_writeback(32, &[2], flags),
                Err(Refusal::ConfigValue)
            ));
        }
    }
}
