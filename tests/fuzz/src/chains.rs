//! Chains of any descriptors, direct and indirect: what the device takes from them is what
//! `virtio-queue` takes, up to where the specification forbids what comes.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_backend::fuzzing::walk;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;
const RING: u64 = 0x1000;
/// Where most indirect tables are.
const TABLE: u64 = 0x4000;
const REGIONS: [(u64, u64); 3] = [(0, 0x1_0000), (0x1_0000, 0x1_0000), (1 << 32, 0x1000)];

#[derive(Arbitrary, Debug)]
struct Input {
    head: u8,
    direct: [Descriptor; 16],
    indirect: Vec<Descriptor>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Descriptor {
    Buffer {
        at: u16,
        len: u16,
        flags: u8,
        next: u8,
    },
    Indirect {
        at: u8,
        entries: u8,
        next: u8,
    },
    Any {
        at: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
}

impl Descriptor {
    fn bytes(self) -> Vec<u8> {
        let (at, len, flags, next): (u64, u32, u16, u16) = match self {
            Self::Buffer {
                at,
                len,
                flags,
                next,
            } => (
                at.into(),
                len.into(),
                (flags % 8).into(),
                (next % 20).into(),
            ),
            Self::Indirect { at, entries, next } => {
                let at = TABLE + 16 * u64::from(at % 8);
                (at, 16 * u32::from(entries), 4, (next % 20).into())
            }
            Self::Any {
                at,
                len,
                flags,
                next,
            } => (at, len, flags, next),
        };
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    }
}

fuzz_target!(|input: Input| {
    let head = u16::from(input.head) % SIZE;
    let table = |all: &[Descriptor]| all.iter().flat_map(|one| one.bytes()).collect::<Vec<_>>();
    let (direct, indirect) = (table(&input.direct), table(&input.indirect));
    let indirect = &indirect[..indirect.len().min(0x4000)];
    let contents = [(RING, direct.as_slice()), (TABLE, indirect)];
    let ours = walk(&REGIONS, &contents, RING, SIZE, head);

    let ranges = REGIONS.map(|(at, size)| (GuestAddress(at), size as usize));
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    for (at, bytes) in contents {
        memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
    let [descriptors, avail, used] = ours.ring.map(|at| Some(u32::try_from(at).unwrap()));
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(descriptors, Some(0));
    queue.set_avail_ring_address(avail, Some(0));
    queue.set_used_ring_address(used, Some(0));
    queue.set_ready(true);
    let avail = ours.ring[1];
    memory.write_obj(1_u16, GuestAddress(avail + 2)).unwrap();
    memory.write_obj(head, GuestAddress(avail + 4)).unwrap();
    let chain = queue.pop_descriptor_chain(&memory).unwrap();
    let theirs: Vec<_> = chain
        .map(|one| (one.addr().0, one.len(), one.is_write_only()))
        .collect();

    // It ends a chain of more than 4 GiB, which we walk on to its status.
    let mut sum = 0_u64;
    let within = |one: &&(u64, u32, bool)| {
        sum += u64::from(one.1);
        u32::try_from(sum).is_ok()
    };
    let shared: Vec<_> = ours.buffers.iter().take_while(within).copied().collect();
    if ours.malformed {
        assert!(theirs.starts_with(&shared), "{ours:?} {theirs:?}");
    } else {
        assert_eq!(shared, theirs, "{ours:?}");
    }
});
