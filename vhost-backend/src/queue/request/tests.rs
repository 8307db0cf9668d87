use proptest::prelude::*;

use super::*;
use crate::testing::fake::{CAPACITY, info};
use crate::testing::guest::header;

/// A chain over plain bytes.
#[derive(Debug, Default)]
struct Bytes {
    readable: Vec<u8>,
    writable: usize,
    written: Vec<u8>,
}

impl ChainReader for Bytes {
    fn readable(&self) -> u64 {
        self.readable.len() as u64
    }

    fn writable(&self) -> u64 {
        (self.writable - self.written.len()) as u64
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Unreachable> {
        let len = into.len().min(self.readable.len());
        into[..len].copy_from_slice(&self.readable[..len]);
        self.readable.drain(..len);
        Ok(len)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, Unreachable> {
        let len = from.len().min(self.writable - self.written.len());
        self.written.extend_from_slice(&from[..len]);
        Ok(len)
    }
}

fn chain(kind: u32, sector: u64, payload: &[u8], writable: usize) -> Bytes {
    Bytes {
        readable: [&header(kind, sector)[..], payload].concat(),
        writable,
        written: Vec::new(),
    }
}

fn ask_on(info: &DiskInfo, writeback: bool, mut chain: Bytes) -> Parsed {
    parse(
        &mut chain,
        &Terms {
            info,
            capacity: CAPACITY,
            writeback,
        },
    )
}

fn ask(chain: Bytes) -> Parsed {
    ask_on(&info(), true, chain)
}

fn read(sector: u64, len: usize) -> Parsed {
    ask(chain(VIRTIO_BLK_T_IN, sector, &[], len))
}

fn write(sector: u64, len: usize) -> Parsed {
    ask(chain(VIRTIO_BLK_T_OUT, sector, &vec![0; len], 0))
}

const IOERR: Parsed = Parsed::Done(Status::IoErr, 0);
const UNSUPP: Parsed = Parsed::Done(Status::Unsupp, 0);
const NOTHING: Parsed = Parsed::Done(Status::Ok, 0);

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

fn discard(payload: &[u8]) -> Parsed {
    ask(chain(VIRTIO_BLK_T_DISCARD, 0, payload, 0))
}

fn zero(payload: &[u8]) -> Parsed {
    ask(chain(VIRTIO_BLK_T_WRITE_ZEROES, 0, payload, 0))
}

#[test]
fn blk_08_the_header_is_16_bytes_and_reserved_is_ignored() {
    let mut noisy = chain(VIRTIO_BLK_T_IN, 3, &[], 512);
    noisy.readable[4..8].fill(0xff);
    assert_eq!(
        ask(noisy),
        Parsed::Io(Op::Read { offset: 1536 }, Data::Writable(512))
    );
    for len in 0..16 {
        let mut short = chain(VIRTIO_BLK_T_IN, 0, &[], 512);
        short.readable.truncate(len);
        assert_eq!(ask(short), IOERR, "{len}");
    }
}

#[test]
fn blk_13_a_read_only_disk_is_not_written() {
    let info = DiskInfo {
        read_only: true,
        ..info()
    };
    for kind in [
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ] {
        assert_eq!(ask_on(&info, true, chain(kind, 0, &[0; 512], 0)), IOERR);
        assert_eq!(
            ask_on(&info, true, chain(kind, 0, &segment(0, 1, 0), 0)),
            IOERR,
            "BLK-30"
        );
    }
    assert_ne!(
        ask_on(&info, true, chain(VIRTIO_BLK_T_IN, 0, &[], 512)),
        IOERR
    );
}

#[test]
fn blk_14_transfers_are_whole_sectors() {
    for len in [1, 511, 513, 1023] {
        assert_eq!(read(0, len), IOERR);
        assert_eq!(write(0, len), IOERR);
    }
    assert_eq!(
        write(1, 1024),
        Parsed::Io(
            Op::Write {
                offset: 512,
                stable: false
            },
            Data::Readable
        )
    );
}

#[test]
fn blk_15_nothing_beyond_the_capacity() {
    assert_eq!(
        read(CAPACITY - 1, 512),
        Parsed::Io(
            Op::Read {
                offset: (CAPACITY - 1) * 512
            },
            Data::Writable(512)
        )
    );
    for (sector, len) in [
        (CAPACITY - 1, 1024),
        (CAPACITY, 512),
        (u64::MAX, 512),
        (u64::MAX - 1, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (CAPACITY + 1, 0),
    ] {
        assert_eq!(read(sector, len), IOERR, "{sector}");
        assert_eq!(write(sector, len), IOERR, "{sector}");
    }
}

#[test]
fn blk_15_offsets_do_not_overflow_whatever_the_capacity() {
    let terms = Terms {
        info: &info(),
        capacity: u64::MAX,
        writeback: true,
    };
    let mut far = chain(VIRTIO_BLK_T_IN, u64::MAX / 512, &[], 512);
    assert_eq!(parse(&mut far, &terms), IOERR);
}

#[test]
fn blk_18_unknown_types_are_unsupported() {
    // BLK-33: 10 is GET_LIFETIME, 14 SECURE_ERASE. BLK-38: bit 31.
    for kind in [
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        12,
        14,
        15,
        100,
        1 << 31,
        (1 << 31) | 1,
        u32::MAX,
    ] {
        assert_eq!(ask(chain(kind, 0, &[0; 512], 512)), UNSUPP, "{kind}");
    }
    let bare = DiskInfo {
        discard: None,
        write_zeroes: None,
        ..info()
    };
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(
            ask_on(&bare, true, chain(kind, 0, &segment(0, 1, 0), 0)),
            UNSUPP
        );
    }
}

#[test]
fn blk_19_flush_ignores_the_sector() {
    assert_eq!(
        ask(chain(VIRTIO_BLK_T_FLUSH, u64::MAX, &[], 0)),
        Parsed::Io(Op::Flush, Data::None)
    );
}

#[test]
fn blk_21_without_writeback_writes_are_stable() {
    let stable = Parsed::Io(
        Op::Write {
            offset: 0,
            stable: true,
        },
        Data::Readable,
    );
    assert_eq!(
        ask_on(&info(), false, chain(VIRTIO_BLK_T_OUT, 0, &[0; 512], 0)),
        stable
    );
    let stable = Parsed::Io(
        Op::WriteZeroes {
            offset: 0,
            len: 512,
            unmap: false,
            stable: true,
        },
        Data::None,
    );
    assert_eq!(
        ask_on(
            &info(),
            false,
            chain(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 0), 0)
        ),
        stable
    );
}

#[test]
fn blk_24_unknown_flags_are_unsupported() {
    for bit in 1..32 {
        assert_eq!(discard(&segment(0, 1, 1 << bit)), UNSUPP);
        assert_eq!(zero(&segment(0, 1, 1 << bit)), UNSUPP);
    }
}

#[test]
fn blk_25_discard_with_unmap_is_unsupported() {
    assert_eq!(discard(&segment(0, 1, 1)), UNSUPP);
}

#[test]
fn blk_26_write_zeroes_may_unmap_where_that_is_offered() {
    let wanted = |unmap| {
        Parsed::Io(
            Op::WriteZeroes {
                offset: 512,
                len: 1024,
                unmap,
                stable: false,
            },
            Data::None,
        )
    };
    assert_eq!(zero(&segment(1, 2, 0)), wanted(false));
    assert_eq!(zero(&segment(1, 2, 1)), wanted(true));
    let keep = DiskInfo {
        write_zeroes: Some(crate::WriteZeroesLimits {
            max_sectors: 9,
            may_unmap: false,
        }),
        ..info()
    };
    assert_eq!(
        ask_on(
            &keep,
            true,
            chain(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(1, 2, 1), 0)
        ),
        wanted(false)
    );
}

#[test]
fn blk_28_the_payload_is_exactly_one_segment() {
    for ask in [discard, zero] {
        assert_eq!(ask(&[]), IOERR);
        for len in [1, 15, 17, 24, 31] {
            assert_eq!(ask(&vec![0; len]), IOERR, "{len}");
        }
        assert_eq!(ask(&[0; 32]), UNSUPP);
        assert_eq!(ask(&segment(7, 0, 0)), NOTHING);
    }
    assert_eq!(
        discard(&segment(8, 100, 0)),
        Parsed::Io(
            Op::Discard {
                offset: 4096,
                len: 51200
            },
            Data::None
        )
    );
    assert_eq!(discard(&segment(8, 101, 0)), IOERR);
    assert_eq!(zero(&segment(8, 201, 0)), IOERR);
}

#[test]
fn blk_29_segments_lie_within_the_capacity() {
    for ask in [discard, zero] {
        assert_ne!(ask(&segment(CAPACITY - 2, 2, 0)), IOERR);
        for (sector, sectors) in [
            (CAPACITY - 1, 2),
            (CAPACITY, 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 2),
            (1 << 56, 1),
        ] {
            assert_eq!(ask(&segment(sector, sectors, 0)), IOERR, "{sector}");
        }
    }
}

#[test]
fn blk_32_get_id_writes_what_fits() {
    for (room, fits) in [(0, 0), (5, 5), (20, 20), (512, 20)] {
        let mut chain = chain(VIRTIO_BLK_T_GET_ID, 0, &[], room);
        let parsed = parse(
            &mut chain,
            &Terms {
                info: &info(),
                capacity: 0,
                writeback: true,
            },
        );
        assert_eq!(
            parsed,
            Parsed::Done(Status::Ok, u32::try_from(fits).unwrap())
        );
        assert_eq!(chain.written, info().serial[..fits]);
    }
}

#[test]
fn blk_40_transfers_of_nothing_succeed() {
    assert_eq!(read(0, 0), NOTHING);
    assert_eq!(write(CAPACITY, 0), NOTHING);
}

proptest! {
    #[test]
    fn blk_15_whatever_is_asked_stays_within_the_disk(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0..2 * CAPACITY, any::<u64>()],
        payload in proptest::collection::vec(any::<u8>(), 0..40),
        sectors in 0usize..20,
        writable in 0usize..20,
        read_only in any::<bool>(),
    ) {
        let info = DiskInfo { read_only, ..info() };
        let mut data = payload;
        data.extend(vec![0; sectors * 512]);
        let mut chain = chain(kind, sector, &data, writable * 256);
        let parsed = parse(&mut chain, &Terms { info: &info, capacity: CAPACITY, writeback: true });
        let (offset, len) = match parsed {
            Parsed::Done(..) | Parsed::Io(Op::Flush, Data::None) => (0, 0),
            Parsed::Io(Op::Read { offset }, Data::Writable(len)) => {
                prop_assert_eq!(u64::from(len), chain.writable());
                (offset, u64::from(len))
            }
            Parsed::Io(Op::Write { offset, .. }, Data::Readable) => {
                prop_assert!(!read_only);
                (offset, chain.readable())
            }
            Parsed::Io(Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. }, Data::None) => {
                prop_assert!(!read_only);
                prop_assert!(len > 0);
                (offset, len)
            }
            other => panic!("{other:?}"),
        };
        prop_assert!(offset % 512 == 0 && len % 512 == 0);
        prop_assert!(offset + len <= CAPACITY * 512);
    }
}
