//! The configuration that a guest reads, of any disk: fields are where virtio 1.2 (5.2.4) has
//! them, what is not offered is 0, and nothing overflows.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_backend::fuzzing::config_space;
use vhost_backend::{DiscardLimits, DiskInfo, Topology, WriteZeroesLimits};

#[derive(Arbitrary, Debug)]
struct Input {
    read_only: bool,
    block: u32,
    topology: (u8, u8, u16, u32),
    discard: Option<(u32, u32)>,
    zeroes: Option<(u32, bool)>,
    capacity: u64,
    queues: u16,
    queue_size: u16,
    writeback: bool,
}

fuzz_target!(|input: Input| {
    let (physical_block_exp, alignment_offset, min_io_size, opt_io_size) = input.topology;
    let info = DiskInfo {
        read_only: input.read_only,
        logical_block_size: input.block,
        topology: Topology {
            physical_block_exp,
            alignment_offset,
            min_io_size,
            opt_io_size,
        },
        discard: input
            .discard
            .map(|(max_sectors, alignment_sectors)| DiscardLimits {
                max_sectors,
                alignment_sectors,
            }),
        write_zeroes: input
            .zeroes
            .map(|(max_sectors, may_unmap)| WriteZeroesLimits {
                max_sectors,
                may_unmap,
            }),
        serial: [0; 20],
    };
    let bytes = config_space(
        &info,
        input.capacity,
        input.queues,
        input.queue_size,
        input.writeback,
    );
    let four = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let capacity = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(capacity <= input.capacity && capacity % u64::from(input.block / 512).max(1) == 0);
    assert!(four(12) + 2 <= u32::from(input.queue_size).max(2));
    assert_eq!(four(20), input.block);
    assert_eq!(bytes[32], u8::from(input.writeback));
    assert_eq!(bytes[33], 0);
    assert_eq!(u16::from_le_bytes([bytes[34], bytes[35]]), input.queues);
    let changes = !input.read_only;
    let discard = input.discard.filter(|_| changes);
    assert_eq!(four(36), discard.map_or(0, |(most, _)| most));
    let zeroes = input.zeroes.filter(|_| changes);
    assert_eq!(four(48), zeroes.map_or(0, |(most, _)| most));
    assert_eq!(bytes[56], u8::from(zeroes.is_some_and(|(_, unmap)| unmap)));
    assert!(
        bytes[60..].iter().all(|byte| *byte == 0),
        "of later features"
    );
});
