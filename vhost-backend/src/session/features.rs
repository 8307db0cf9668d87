//! What is offered to the front-end, and what the answer means.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::DiskInfo;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, bit 30.
pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// `VHOST_F_LOG_ALL`, bit 26: log what is written to guest memory.
pub(crate) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The virtio features of a disk. Nothing depends on a feature that is not
/// offered as well (BLK-2, BLK-6).
pub(crate) fn offered(info: &DiskInfo) -> u64 {
    let mut bits = PROTOCOL_FEATURES | LOG_ALL | FLUSH | EVENT_IDX;
    for bit in [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_F_VERSION_1,
    ] {
        bits |= 1 << bit;
    }
    if info.read_only {
        return bits | 1 << VIRTIO_BLK_F_RO;
    }
    bits |= CONFIG_WCE;
    if info.discard.is_some() {
        bits |= 1 << VIRTIO_BLK_F_DISCARD;
    }
    if info.write_zeroes.is_some() {
        bits |= 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    }
    bits
}

/// The protocol features: only what is handled (VU-42).
pub(crate) const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::DEVICE_STATE);

/// What the front-end has acknowledged so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// `None` until SET_FEATURES.
    pub features: Option<u64>,
    pub protocol: u64,
}

impl Negotiated {
    fn has(&self, bits: u64) -> bool {
        self.features.is_some_and(|f| f & bits != 0)
    }

    pub(crate) fn has_protocol(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol & feature.bits() != 0
    }

    /// Rings start disabled and SET_VRING_ENABLE is understood (VU-8).
    pub(crate) fn rings_are_enabled_by_message(&self) -> bool {
        self.has(PROTOCOL_FEATURES)
    }

    /// What requests write is logged, if there is a log (VU-37).
    pub(crate) fn logs_data(&self) -> bool {
        self.has(LOG_ALL)
    }

    pub(crate) fn event_idx(&self) -> bool {
        self.has(EVENT_IDX)
    }

    /// Writes may be cached until a FLUSH, given the `writeback` byte of the
    /// configuration (BLK-20 to BLK-22).
    pub(crate) fn caches_writes(&self, writeback: bool) -> bool {
        self.has(FLUSH) && (writeback || !self.has(CONFIG_WCE))
    }

    /// The `writeback` byte as it is read: 0 where nobody could flush (BLK-3).
    pub(crate) fn writeback_reads(&self, writeback: bool) -> bool {
        writeback && (self.has(FLUSH) || !self.has(CONFIG_WCE))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::{DiscardLimits, Topology, WriteZeroesLimits};

    pub(crate) fn disk(read_only: bool) -> DiskInfo {
        DiskInfo {
            read_only,
            logical_block_size: 4096,
            topology: Topology {
                physical_block_exp: 1,
                alignment_offset: 2,
                min_io_size: 3,
                opt_io_size: 4,
            },
            discard: Some(DiscardLimits {
                max_sectors: 0x1234,
                alignment_sectors: 8,
            }),
            write_zeroes: Some(WriteZeroesLimits {
                max_sectors: 0x5678,
                may_unmap: true,
            }),
            serial: *b"serial--------------",
        }
    }

    fn negotiated(features: u64) -> Negotiated {
        Negotiated {
            features: Some(features),
            protocol: 0,
        }
    }

    #[test]
    fn blk_2_flush_comes_with_config_wce() {
        for info in [disk(false), disk(true)] {
            let bits = offered(&info);
            assert_ne!(bits & FLUSH, 0);
            assert_eq!(bits & CONFIG_WCE != 0, !info.read_only);
        }
    }

    #[test]
    fn blk_6_a_read_only_disk_offers_nothing_that_writes() {
        let writes = CONFIG_WCE | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(offered(&disk(false)) & writes, writes);
        assert_eq!(offered(&disk(true)) & writes, 0);
        assert_eq!(offered(&disk(false)) & 1 << VIRTIO_BLK_F_RO, 0);
        assert_ne!(offered(&disk(true)) & 1 << VIRTIO_BLK_F_RO, 0);
        let plain = DiskInfo {
            discard: None,
            write_zeroes: None,
            ..disk(false)
        };
        assert_eq!(offered(&plain) & writes, CONFIG_WCE);
    }

    #[test]
    fn ring_18_ring_19_vu_42_blk_33_blk_34_only_what_is_handled_is_offered() {
        let known: u64 = [2, 6, 9, 10, 11, 12, 13, 14, 26, 28, 29, 30, 32]
            .map(|b| 1 << b)
            .iter()
            .sum();
        assert_eq!(offered(&disk(false)), known);
        assert_eq!(
            PROTOCOL.bits(),
            1 | 2 | 8 | 0x20 | 0x200 | 0x1000 | 0x2000 | 0x8000 | 0x8_0000
        );
    }

    #[test]
    fn blk_20_21_22_write_cache() {
        assert!(!negotiated(0).caches_writes(true));
        assert!(!Negotiated::default().caches_writes(true));
        assert!(negotiated(FLUSH).caches_writes(false));
        assert!(negotiated(FLUSH | CONFIG_WCE).caches_writes(true));
        assert!(!negotiated(FLUSH | CONFIG_WCE).caches_writes(false));
        assert!(!negotiated(CONFIG_WCE).caches_writes(true));
    }

    #[test]
    fn blk_3_writeback_reads_0_without_flush() {
        assert!(!negotiated(CONFIG_WCE).writeback_reads(true));
        assert!(negotiated(CONFIG_WCE | FLUSH).writeback_reads(true));
        assert!(!negotiated(CONFIG_WCE | FLUSH).writeback_reads(false));
        assert!(Negotiated::default().writeback_reads(true));
    }
}
