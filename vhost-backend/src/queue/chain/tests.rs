use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue as StockQueue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::testing::guest::{Driver, Guest, INDIRECT, NEXT, WRITE, descriptor};

mod long;

const SIZE: u16 = 16;
/// Where buffers are.
const DATA: u64 = 0x8000;
/// Where indirect tables are.
const TABLE: u64 = 0x4000;

struct Rig {
    driver: Driver,
    ring: Ring,
    scratch: Scratch,
}

/// What a walk found: bytes to read, bytes to write, host address of the
/// status; or a malformed chain with or without status.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Good {
        readable: u64,
        writable: u64,
        status: usize,
    },
    Bad {
        status: Option<usize>,
    },
}

impl Rig {
    /// Two regions that meet at 0x10000, and a hole from 0x20000 on.
    fn new() -> Self {
        let guest = Guest::new(&[(0, 0x1_0000), (0x1_0000, 0x1_0000), (1 << 32, 0x1000)]);
        let driver = Driver::new(&guest, 0x1000, SIZE);
        let ring = Ring::new(&guest.memory, SIZE, driver.at, 0, false).unwrap();
        Self {
            driver,
            ring,
            scratch: Scratch::new(),
        }
    }

    fn walk(&mut self) -> Found {
        let address = |status: StatusByte| status.0.addr();
        match self.scratch.walk(&self.driver.guest.memory, &self.ring, 0) {
            Walked::Good(chain, status) => Found::Good {
                readable: chain.readable(),
                writable: chain.writable(),
                status: address(status),
            },
            Walked::Bad(status) => Found::Bad {
                status: status.map(address),
            },
        }
    }

    fn chain(&mut self, buffers: &[(u64, u32, u16)]) -> Found {
        self.driver.chain(0, buffers);
        self.walk()
    }

    fn indirect(&mut self, at: u64, descriptors: &[[u8; 16]]) -> Found {
        self.driver.guest.write(at, &descriptors.concat());
        let len = u32::try_from(16 * descriptors.len()).unwrap();
        self.driver.describe(0, at, len, INDIRECT, 0);
        self.walk()
    }

    fn at(&self, guest: u64) -> usize {
        self.driver.guest.memory.host(guest, 1).unwrap().addr()
    }

    fn good(&self, readable: u64, writable: u64, status: u64) -> Found {
        Found::Good {
            readable,
            writable,
            status: self.at(status),
        }
    }
}

const LOST: Found = Found::Bad { status: None };

#[test]
fn blk_09_any_layout_of_buffers() {
    let mut rig = Rig::new();
    let usual = rig.chain(&[
        (DATA, 16, 0),
        (DATA + 0x100, 512, WRITE),
        (DATA + 0x300, 1, WRITE),
    ]);
    assert_eq!(usual, rig.good(16, 512, DATA + 0x300));
    let status_with_data = rig.chain(&[(DATA, 16, 0), (DATA + 0x100, 513, WRITE)]);
    assert_eq!(status_with_data, rig.good(16, 512, DATA + 0x300));
    let header_with_data = rig.chain(&[(DATA, 16 + 512, 0), (DATA + 0x400, 1, WRITE)]);
    assert_eq!(header_with_data, rig.good(528, 0, DATA + 0x400));
    let in_bits = rig.chain(&[
        (DATA, 3, 0),
        (DATA + 3, 0, 0),
        (DATA + 8, 13, 0),
        (DATA + 0x400, 1, WRITE),
    ]);
    assert_eq!(in_bits, rig.good(16, 0, DATA + 0x400));
    let empty_last = rig.chain(&[
        (DATA, 16, 0),
        (DATA + 0x400, 9, WRITE),
        (u64::MAX, 0, WRITE),
    ]);
    assert_eq!(empty_last, rig.good(16, 8, DATA + 0x408));
}

#[test]
fn blk_09_bytes_are_read_and_written_across_buffers() {
    let mut rig = Rig::new();
    rig.driver.guest.write(DATA, b"headHEAD");
    rig.driver.guest.write(0xfffe, b"overlap");
    rig.driver.chain(
        0,
        &[
            (DATA, 8, 0),
            (0xfffe, 7, 0),
            (DATA + 0x20, 2, WRITE),
            (DATA + 0x30, 4, WRITE),
        ],
    );
    let Walked::Good(mut chain, _) = rig.scratch.walk(&rig.driver.guest.memory, &rig.ring, 0)
    else {
        panic!()
    };
    let mut bytes = [0; 12];
    assert_eq!(chain.read(&mut bytes), Ok(12));
    assert_eq!(&bytes, b"headHEADover");
    assert_eq!((chain.readable(), chain.writable()), (3, 5));
    assert_eq!(
        chain
            .readable_pieces()
            .unwrap()
            .iter()
            .map(|p| p.iov_len)
            .sum::<usize>(),
        3
    );
    assert_eq!(chain.read(&mut bytes), Ok(3));
    assert_eq!(&bytes[..3], b"lap");
    assert_eq!(chain.write(b"answers"), Ok(5));
    assert_eq!(chain.writable(), 0);
    assert_eq!(rig.driver.guest.read(DATA + 0x20, 2), b"an");
    assert_eq!(
        rig.driver.guest.read(DATA + 0x30, 4),
        b"swe\0",
        "the status byte is not data"
    );
}

#[test]
fn ring_05_a_loop_fails_alone() {
    let mut rig = Rig::new();
    rig.driver.describe(0, DATA, 16, NEXT, 1);
    rig.driver.describe(1, DATA, 16, NEXT | WRITE, 0);
    assert_eq!(rig.walk(), LOST);
    rig.driver.describe(0, DATA, 0, NEXT, 0);
    assert_eq!(rig.walk(), LOST, "also of empty buffers");
    let table: Vec<_> = (0..4u16)
        .map(|i| descriptor(DATA, 1, NEXT | WRITE, (i + 1) % 4))
        .collect();
    assert_eq!(rig.indirect(TABLE, &table), LOST);
}

#[test]
fn ring_05_all_descriptors_can_be_one_chain() {
    let mut rig = Rig::new();
    let mut buffers = vec![(DATA, 16, 0)];
    buffers.extend(vec![(DATA + 0x100, 1, WRITE); usize::from(SIZE) - 1]);
    assert_eq!(
        rig.chain(&buffers),
        rig.good(16, u64::from(SIZE) - 2, DATA + 0x100)
    );
}

#[test]
fn ring_05_a_next_beyond_the_table_fails_alone() {
    let mut rig = Rig::new();
    for next in [SIZE, u16::MAX] {
        rig.driver.describe(0, DATA, 16, NEXT, next);
        assert_eq!(rig.walk(), LOST);
    }
    assert_eq!(rig.indirect(TABLE, &[descriptor(DATA, 16, NEXT, 1)]), LOST);
}

#[test]
fn ring_05_a_chain_without_status_fails_alone() {
    let mut rig = Rig::new();
    assert_eq!(rig.chain(&[(DATA, 16, 0)]), LOST);
    assert_eq!(rig.chain(&[(DATA, 16, 0), (DATA + 0x100, 0, WRITE)]), LOST);
}

#[test]
fn ring_06_indirect_tables_are_whole_and_not_nested() {
    let mut rig = Rig::new();
    let request = [
        descriptor(DATA, 16, NEXT, 1),
        descriptor(DATA + 0x100, 1, WRITE, 0),
    ];
    assert_eq!(rig.indirect(TABLE, &request), rig.good(16, 0, DATA + 0x100));
    for len in [0, 15, 17, 31, 16 * 65536, u32::MAX] {
        rig.driver.describe(0, TABLE, len, INDIRECT, 0);
        assert_eq!(rig.walk(), LOST, "{len}");
    }
    rig.driver.describe(0, TABLE, 32, INDIRECT | NEXT, 1);
    rig.driver.describe(1, DATA, 1, WRITE, 0);
    assert_eq!(rig.walk(), LOST, "NEXT together with INDIRECT");
    assert_eq!(
        rig.indirect(TABLE, &[descriptor(TABLE + 0x100, 32, INDIRECT, 0)]),
        LOST
    );
    assert_eq!(rig.indirect(0x1_fff0, &request[..1]), LOST, "no next");
    rig.driver.describe(0, 0x1_fff0, 32, INDIRECT, 0);
    assert_eq!(rig.walk(), LOST, "a table partly unmapped");
}

#[test]
fn ring_07_a_write_flag_on_the_indirect_pointer_is_ignored() {
    let mut rig = Rig::new();
    rig.driver.guest.write(
        TABLE,
        &[
            descriptor(DATA, 16, NEXT, 1),
            descriptor(DATA + 0x100, 1, WRITE, 0),
        ]
        .concat(),
    );
    rig.driver.describe(0, TABLE, 32, INDIRECT | WRITE, 0);
    assert_eq!(rig.walk(), rig.good(16, 0, DATA + 0x100));
}

#[test]
fn ring_08_descriptors_before_an_indirect_table() {
    let mut rig = Rig::new();
    rig.driver.guest.write(
        TABLE,
        &[
            descriptor(DATA + 8, 8, NEXT, 1),
            descriptor(DATA + 0x100, 3, WRITE, 0),
        ]
        .concat(),
    );
    assert_eq!(
        rig.chain(&[(DATA, 8, 0), (TABLE, 32, INDIRECT)]),
        rig.good(16, 2, DATA + 0x102)
    );
}

#[test]
fn ring_09_readable_after_writable_is_refused() {
    let mut rig = Rig::new();
    let found = rig.chain(&[(DATA, 16, 0), (DATA + 0x100, 5, WRITE), (DATA, 512, 0)]);
    assert_eq!(
        found,
        Found::Bad {
            status: Some(rig.at(DATA + 0x104))
        }
    );
}

#[test]
fn ring_10_the_sum_of_lengths_does_not_overflow() {
    let mut rig = Rig::new();
    let buffers = [
        (DATA, u32::MAX, 0),
        (DATA, u32::MAX, 0),
        (DATA, u32::MAX, 0),
        (DATA, 1, WRITE),
    ];
    assert_eq!(
        rig.chain(&buffers),
        Found::Bad {
            status: Some(rig.at(DATA))
        }
    );
}

#[test]
fn ring_10_a_chain_of_four_gibibytes_is_refused() {
    // 1 GiB of memory that is never touched.
    let guest = Guest::new(&[(0, 1 << 30)]);
    let driver = Driver::new(&guest, 0x1000, SIZE);
    let ring = Ring::new(&guest.memory, SIZE, driver.at, 0, false).unwrap();
    let gib = (0, 1 << 30, WRITE);
    let mut scratch = Scratch::new();
    driver.chain(
        0,
        &[
            (DATA, 16, 0),
            gib,
            gib,
            gib,
            (0, (1 << 30) - 18, WRITE),
            (DATA, 1, WRITE),
        ],
    );
    assert!(matches!(
        scratch.walk(&guest.memory, &ring, 0),
        Walked::Good(..)
    ));
    driver.chain(
        0,
        &[
            (DATA, 16, 0),
            gib,
            gib,
            gib,
            (0, (1 << 30) - 17, WRITE),
            (DATA, 1, WRITE),
        ],
    );
    assert!(matches!(
        scratch.walk(&guest.memory, &ring, 0),
        Walked::Bad(Some(_))
    ));
}

#[test]
fn ring_11_buffers_outside_memory_are_refused() {
    let mut rig = Rig::new();
    for (addr, len) in [
        (0x1_fff0, 17),
        (0x2_0000, 1),
        (u64::MAX, 1),
        (u64::MAX - 15, 16),
        ((1 << 32) + 0xff0, 17),
    ] {
        let status = Some(rig.at(DATA));
        assert_eq!(
            rig.chain(&[(addr, len, 0), (DATA, 1, WRITE)]),
            Found::Bad { status }
        );
        assert_eq!(
            rig.chain(&[(DATA, 16, 0), (addr, len, WRITE), (DATA, 1, WRITE)]),
            Found::Bad { status }
        );
        assert_eq!(
            rig.chain(&[(DATA, 16, 0), (DATA, 1, WRITE), (addr, len, WRITE)]),
            LOST,
            "no status there"
        );
    }
}

#[test]
fn ring_11_buffers_and_tables_may_span_regions() {
    let mut rig = Rig::new();
    rig.driver
        .chain(0, &[(DATA, 16, 0), (0xff00, 512, WRITE), (DATA, 1, WRITE)]);
    let Walked::Good(chain, _) = rig.scratch.walk(&rig.driver.guest.memory, &rig.ring, 0) else {
        panic!()
    };
    let pieces = chain.writable_pieces().unwrap();
    assert_eq!(
        pieces.iter().map(|p| p.iov_len).collect::<Vec<_>>(),
        [256, 256]
    );
    let request = [
        descriptor(DATA, 16, NEXT, 1),
        descriptor(DATA, 9, NEXT | WRITE, 2),
        descriptor(DATA, 1, WRITE, 0),
    ];
    for at in [0x1_0000 - 16, 0x1_0000 - 24, 0x1_0000 - 40] {
        assert_eq!(rig.indirect(at, &request), rig.good(16, 9, DATA), "{at:#x}");
    }
}

/// A descriptor of the table, random but likely to make sense.
fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![4 => 0u64..0x2_1000, 2 => (0u64..8).prop_map(|i| TABLE + 16 * i), 1 => any::<u64>()];
    let len = prop_oneof![4 => 0u32..0x400, 2 => (0u32..6).prop_map(|n| 16 * n), 1 => any::<u32>()];
    (
        addr,
        len,
        prop_oneof![8 => 0u16..4, 2 => 4u16..8, 1 => any::<u16>()],
        prop_oneof![16 => 0u16..SIZE, 1 => any::<u16>()],
    )
}

fn bytes_of((addr, len, flags, next): (u64, u32, u16, u16)) -> [u8; 16] {
    descriptor(addr, len, flags, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Ours and virtio-queue's agree on every chain, but for what virtio-queue
    /// accepts and the specification forbids.
    #[test]
    fn ring_05_chains_agree_with_virtio_queue(
        direct in proptest::collection::vec(any_descriptor(), usize::from(SIZE)),
        indirect in proptest::collection::vec(any_descriptor(), 8),
    ) {
        let rig = Rig::new();
        let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000), 0x1_0000), (GuestAddress(1 << 32), 0x1000)];
        let theirs: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        for (at, table) in [(rig.driver.at.descriptors, &direct), (TABLE, &indirect)] {
            let bytes = table.iter().copied().flat_map(bytes_of).collect::<Vec<_>>();
            rig.driver.guest.write(at, &bytes);
            theirs.write_slice(&bytes, GuestAddress(at)).unwrap();
        }
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        let mut stock = StockQueue::new(SIZE).unwrap();
        stock.set_size(SIZE);
        stock.set_desc_table_address(low(rig.driver.at.descriptors), Some(0));
        stock.set_avail_ring_address(low(rig.driver.at.avail), Some(0));
        stock.set_used_ring_address(low(rig.driver.at.used), Some(0));
        stock.set_ready(true);
        theirs.write_obj(1u16, GuestAddress(rig.driver.at.avail + 2)).unwrap();
        let chain = stock.pop_descriptor_chain(&theirs).unwrap();

        let mut forbidden = false;
        let mut ours = Vec::new();
        for found in Descriptors::new(&rig.driver.guest.memory, &rig.ring, 0) {
            match found {
                Ok(descriptor) => ours.push((descriptor.addr(), descriptor.len(), descriptor.is_writable())),
                Err(Endless) => forbidden = true,
            }
        }
        // It ends a chain of more than 4 GiB, which we walk on to its status.
        let mut sum = 0u64;
        let within = |d: &&(u64, u32, bool)| { sum += u64::from(d.1); u32::try_from(sum).is_ok() };
        let ours: Vec<_> = ours.iter().take_while(within).copied().collect();
        let theirs: Vec<_> = chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
        if forbidden {
            prop_assert!(theirs.starts_with(&ours));
        } else {
            prop_assert_eq!(&ours, &theirs);
        }
    }

    /// Whatever the tables hold, what comes out lies in guest memory.
    #[test]
    fn ring_11_pieces_always_lie_in_guest_memory(
        direct in proptest::collection::vec(any_descriptor(), usize::from(SIZE)),
        indirect in proptest::collection::vec(any_descriptor(), 8),
    ) {
        let mut rig = Rig::new();
        for (at, table) in [(rig.driver.at.descriptors, &direct), (TABLE, &indirect)] {
            rig.driver.guest.write(at, &table.iter().copied().flat_map(bytes_of).collect::<Vec<_>>());
        }
        let memory: &Arc<Memory> = &rig.driver.guest.memory;
        let regions = [(0u64, 0x1_0000usize), (0x1_0000, 0x1_0000), (1 << 32, 0x1000)]
            .map(|(guest, size)| (memory.host(guest, 1).unwrap().addr(), size));
        let inside = |addr: usize, len: usize| regions.iter().any(|&(start, size)| addr >= start && addr + len <= start + size);
        match rig.scratch.walk(memory, &rig.ring, 0) {
            Walked::Good(chain, status) => {
                prop_assert!(inside(status.0.addr(), 1));
                for (pieces, bytes) in [(chain.readable_pieces(), chain.readable()), (chain.writable_pieces(), chain.writable())] {
                    let pieces = pieces.unwrap();
                    prop_assert!(pieces.iter().all(|p| p.iov_len > 0 && inside(p.iov_base.addr(), p.iov_len)));
                    prop_assert_eq!(pieces.iter().map(|p| p.iov_len as u64).sum::<u64>(), bytes);
                }
            }
            Walked::Bad(Some(status)) => prop_assert!(inside(status.0.addr(), 1)),
            Walked::Bad(None) => {}
        }
    }
}
