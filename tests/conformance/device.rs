//! What the disk says of itself, and how it answers requests.

use front_end::codes::{feature, status};
use front_end::{Buffer, Like, Op, Segment, Session, Wanted};

use crate::disk::{Attached, DATA, Disk, IMAGE, assert_ok, content};

/// The size of the image in sectors.
const SECTORS: u64 = IMAGE as u64 / 512;

fn attached(disk: &Disk) -> Attached {
    Attached::new(&disk.socket, Like::Qemu, Wanted::default())
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Segment {
    Segment {
        sector,
        sectors,
        flags,
    }
}

/// The status of a list of segments.
fn answer(front: &mut Attached, op: Op, segments: &[Segment]) -> u8 {
    front.driver.segments(op, DATA, segments).unwrap().status
}

#[test]
fn blk_1_5_34_37_vu_25_configuration_is_readable_first_and_as_long_as_asked() {
    let disk = Disk::start(&["--num-queues", "3", "--logical-block-size", "4096"]);
    // The features of the protocol are negotiated, those of the device not yet.
    let session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    let connection = &session.connection;
    let whole = connection.get_config(0, 256).unwrap();
    assert_eq!(whole.len(), 256);
    assert_eq!(whole[..8], SECTORS.to_le_bytes());
    assert_eq!(whole[20..24], 4096_u32.to_le_bytes());
    assert_eq!((whole[33], &whole[34..36]), (0, &[3, 0][..]));
    assert!(whole[57..].iter().all(|&byte| byte == 0));
    for size in [36, 48, 57, 60] {
        let part = connection.get_config(0, size).unwrap();
        assert_eq!(part, whole[..size as usize]);
    }
    assert_eq!(connection.get_config(34, 2).unwrap(), [3, 0]);
    assert!(connection.get_config(250, 7).unwrap().is_empty());
    assert!(connection.get_config(u32::MAX, 8).unwrap().is_empty());
    assert_eq!(connection.get_queue_num().unwrap(), 3);
}

#[test]
fn blk_13_30_a_read_only_disk_takes_no_change() {
    let disk = Disk::start(&["--read-only"]);
    for features in [feature::ALL, feature::ALL & !feature::RO] {
        let wanted = Wanted {
            features,
            ..Wanted::default()
        };
        let mut front = Attached::new(&disk.socket, Like::Qemu, wanted);
        let done = front.driver.write(0, DATA, 512).unwrap();
        assert_eq!(done.status, status::IOERR);
        for op in [Op::Discard, Op::WriteZeroes] {
            let status = answer(&mut front, op, &[segment(0, 8, 0)]);
            assert_eq!(status, status::IOERR, "{op:?}");
        }
        assert_eq!(front.read(0, 4096), content(0, 4096));
    }
    assert_eq!(std::fs::read(&disk.image).unwrap(), content(0, IMAGE));
}

#[test]
fn blk_14_15_ranges_that_do_not_fit_fail_and_change_nothing() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for (sector, length) in [
        (0, 511),
        (0, 513),
        (0, 1),
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
    ] {
        let read = front.driver.read(sector, DATA, length).unwrap();
        let write = front.driver.write(sector, DATA, length).unwrap();
        let both = (read.status, write.status);
        assert_eq!(both, (status::IOERR, status::IOERR), "{sector} {length}");
    }
    let last = IMAGE - 512;
    assert_eq!(front.read(SECTORS - 1, 512), content(last, 512));
    assert_eq!(std::fs::read(&disk.image).unwrap(), content(0, IMAGE));
}

#[test]
fn blk_16_reads_return_the_image_in_any_number_of_pieces() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    let pieces = [1_u32, 511, 4096, 3, 8189, 512 * 11];
    let mut at = DATA;
    let data: Vec<_> = pieces
        .into_iter()
        .map(|length| {
            let buffer = Buffer::writable(at, length);
            at += u64::from(length) + 7;
            buffer
        })
        .collect();
    let total: u32 = pieces.iter().sum();
    let done = front.driver.run(Op::Read, 21, &data).unwrap();
    assert_ok(done, total + 1);
    let mut read = Vec::new();
    for buffer in data {
        let length = buffer.length as usize;
        read.extend(front.memory.read(buffer.address, length).unwrap());
    }
    assert_eq!(read, content(21 * 512, total as usize));
}

#[test]
fn blk_18_33_38_unknown_types_are_unsupported() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for code in [2, 3, 5, 7, 9, 10, 12, 14, 15, 99, 1 << 31, 1 << 31 | 1] {
        let data = [Buffer::writable(DATA, 512)];
        let done = front.driver.run(Op::Other(code), 0, &data).unwrap();
        assert_eq!(done.status, status::UNSUPP, "{code}");
    }
    assert_eq!(front.read(0, 512), content(0, 512));
}

#[test]
fn blk_24_25_segments_with_unknown_flags_are_unsupported() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for (op, flags) in [
        (Op::Discard, 1),
        (Op::Discard, 2),
        (Op::WriteZeroes, 2),
        (Op::WriteZeroes, 3),
        (Op::WriteZeroes, 1 << 31),
    ] {
        let status = answer(&mut front, op, &[segment(0, 8, flags)]);
        assert_eq!(status, status::UNSUPP, "{op:?} {flags}");
    }
    assert_eq!(std::fs::read(&disk.image).unwrap(), content(0, IMAGE));
}

#[test]
fn blk_26_write_zeroes_reads_as_zeros_and_leaves_the_rest() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    let mut expected = content(0, IMAGE);
    for (flags, sector, sectors) in [(0, 3, 61), (1, 2001, 1023), (0, 4096, 8), (1, 8191, 1)] {
        let status = answer(
            &mut front,
            Op::WriteZeroes,
            &[segment(sector, sectors, flags)],
        );
        assert_eq!(status, status::OK);
        let start = usize::try_from(sector).unwrap() * 512;
        let length = sectors * 512;
        expected[start..start + length as usize].fill(0);
        assert_eq!(front.read(sector, length), vec![0; length as usize]);
    }
    assert_ok(front.driver.flush().unwrap(), 1);
    assert!(std::fs::read(&disk.image).unwrap() == expected);
}

#[test]
fn blk_28_29_segment_lists_are_checked_as_a_whole() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for op in [Op::Discard, Op::WriteZeroes] {
        for (sector, sectors) in [
            (SECTORS, 1),
            (SECTORS - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (0, u32::MAX),
        ] {
            let status = answer(&mut front, op, &[segment(sector, sectors, 0)]);
            assert_eq!(status, status::IOERR, "{op:?} {sector} {sectors}");
        }
        // One segment is allowed; for more, this is what QEMU's own export answers.
        let two = [segment(0, 1, 0), segment(8, 1, 0)];
        assert_eq!(answer(&mut front, op, &two), status::UNSUPP);
        for length in [1, 15, 17, 24] {
            let done = front.driver.run(op, 0, &[Buffer::readable(DATA, length)]);
            assert_eq!(done.unwrap().status, status::IOERR, "{op:?} {length}");
        }
    }
    assert_eq!(std::fs::read(&disk.image).unwrap(), content(0, IMAGE));
}

#[test]
fn blk_32_the_serial_number_is_padded_and_never_overruns() {
    for (serial, expected) in [
        ("short", *b"short\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("exactly-20-character", *b"exactly-20-character"),
    ] {
        let disk = Disk::start(&["--serial", serial]);
        let mut front = attached(&disk);
        for length in [20, 4, 512] {
            front.memory.fill(DATA, 600, 0xee).unwrap();
            let data = [Buffer::writable(DATA, length)];
            let done = front.driver.run(Op::GetId, 0, &data).unwrap();
            let seen = front.memory.read(DATA, 600).unwrap();
            let written = (length as usize).min(20);
            if done.status == status::OK {
                assert_eq!(seen[..written], expected[..written]);
            } else {
                assert_eq!((done.status, length), (status::IOERR, 4));
            }
            assert!(seen[written..].iter().all(|&byte| byte == 0xee));
        }
    }
}

#[test]
fn blk_39_sectors_smaller_than_a_block_are_served() {
    let disk = Disk::start(&["--logical-block-size", "4096"]);
    let mut front = attached(&disk);
    let mut expected = content(0, IMAGE);
    front.write(13, &[0x31; 1536]);
    expected[13 * 512..16 * 512].fill(0x31);
    assert_eq!(front.read(11, 4096), expected[11 * 512..19 * 512]);
    assert_ok(front.driver.flush().unwrap(), 1);
    assert!(std::fs::read(&disk.image).unwrap() == expected);
}

#[test]
fn blk_40_requests_without_data_are_answered() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for op in [Op::Read, Op::Write, Op::GetId, Op::Discard, Op::WriteZeroes] {
        let done = front.driver.run(op, 0, &[]).unwrap();
        assert!([status::OK, status::IOERR].contains(&done.status), "{op:?}");
        assert_eq!(done.length, 1);
    }
}
