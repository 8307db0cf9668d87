//! What is offered, and that it holds.

use std::os::unix::fs::MetadataExt;

use front_end::codes::{feature, protocol, request, status};
use front_end::{Buffer, Driver, GuestMemory, Like, Op, Segment, Session, Setup, Wanted, limit};

use crate::disk::{Attached, DATA, Disk, IMAGE, MEMORY, assert_ok, content};

/// Bits of features that need what is not there: virtio 1.2, 5.2.3 and 6.
const NEVER: [(u32, &str); 13] = [
    (0, "BARRIER"),
    (1, "SIZE_MAX"),
    (4, "GEOMETRY"),
    (7, "SCSI"),
    (15, "LIFETIME"),
    (16, "SECURE_ERASE"),
    (17, "ZONED"),
    (33, "ACCESS_PLATFORM"),
    (34, "PACKED"),
    (35, "IN_ORDER"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (40, "RING_RESET"),
];

fn open(disk: &Disk) -> Session {
    Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn blk_2_6_ring_18_19_vu_41_42_only_what_holds_is_offered() {
    for arguments in [&[][..], &["--read-only"], &["--logical-block-size", "4096"]] {
        let disk = Disk::start(arguments);
        let session = open(&disk);
        let offered = session.connection.get_features().unwrap();
        for (bit, name) in NEVER {
            assert_eq!(offered >> bit & 1, 0, "{name} {arguments:?}");
        }
        let read_only = arguments.contains(&"--read-only");
        assert_eq!(offered & feature::RO != 0, read_only);
        let changing = feature::CONFIG_WCE | feature::DISCARD | feature::WRITE_ZEROES;
        assert_eq!(offered & changing, if read_only { 0 } else { changing });
        let always = feature::FLUSH
            | feature::MQ
            | feature::VERSION_1
            | feature::EVENT_IDX
            | feature::INDIRECT
            | feature::PROTOCOL_FEATURES;
        assert_eq!(offered & always, always);
        // Without it QEMU lets no guest migrate.
        let extensions = session.connection.get_protocol_features().unwrap();
        assert_ne!(extensions & protocol::LOG_SHMFD, 0);
        // What is not offered cannot be taken.
        for (bit, name) in NEVER {
            let features = (session.features | 1 << bit).to_ne_bytes();
            let answer = session
                .connection
                .acknowledge(request::SET_FEATURES, &features, &[])
                .unwrap();
            assert_ne!(answer, 0, "{name}");
        }
    }
}

#[test]
fn blk_4_27_padding_is_zero_and_limits_are_there() {
    let disk = Disk::start(&[]);
    let config = open(&disk).connection.get_config(0, 60).unwrap();
    assert_eq!(config[33], 0);
    assert_eq!(config[57..60], [0; 3]);
    for at in [36, 40, 44, 48, 52] {
        assert_ne!(u32_at(&config, at), 0, "{at}");
    }
    // It says that WRITE_ZEROES may free blocks, and it can.
    assert_eq!(config[56], 1);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let blocks = || std::fs::metadata(&disk.image).unwrap().blocks();
    let before = blocks();
    let segment = Segment {
        sector: 2048,
        sectors: 2048,
        flags: 1,
    };
    let done = front.driver.segments(Op::WriteZeroes, DATA, &[segment]);
    assert_ok(done.unwrap(), 1);
    assert!(blocks() < before);
    assert_eq!(front.read(2048, 512), [0; 512]);
}

#[test]
fn blk_3_writeback_reads_zero_where_nobody_can_flush() {
    let disk = Disk::start(&[]);
    for (without, expected) in [(feature::FLUSH, 0), (0, 1), (feature::CONFIG_WCE, 1)] {
        let wanted = Wanted {
            features: feature::ALL & !without,
            ..Wanted::default()
        };
        let front = Attached::new(&disk.socket, Like::Qemu, wanted);
        let read = front.session.connection.get_config(32, 1).unwrap();
        assert_eq!(read, [expected], "without {without:#x}");
    }
}

#[test]
fn blk_8_the_reserved_field_is_ignored_and_all_is_little_endian() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    for reserved in [0_u32, 1, u32::MAX] {
        let mut header = 0_u32.to_le_bytes().to_vec();
        header.extend(reserved.to_le_bytes());
        header.extend(0x0102_u64.to_le_bytes());
        front.memory.write(DATA, &header).unwrap();
        let chain = [
            Buffer::readable(DATA, 16),
            Buffer::writable(DATA + 512, 512),
            Buffer::writable(DATA + 16, 1),
        ];
        let driver = &mut front.driver;
        driver.submit_chain(&chain, DATA + 16, false, 0).unwrap();
        driver.publish().unwrap();
        assert_ok(driver.wait(limit()).unwrap(), 513);
        let read = front.memory.read(DATA + 512, 512).unwrap();
        assert_eq!(read, content(0x0102 * 512, 512), "{reserved}");
    }
}

#[test]
fn blk_12_what_lies_in_writable_buffers_means_nothing() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    // All of a request in buffers that the device may only write to.
    for op in [Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes] {
        let mut header = op.code().to_le_bytes().to_vec();
        header.resize(16, 0);
        front.memory.write(DATA, &header).unwrap();
        front.memory.write(DATA + 4096, &[0x55; 512]).unwrap();
        let chain = [
            Buffer::writable(DATA, 16),
            Buffer::writable(DATA + 4096, 512),
            Buffer::writable(DATA + 16, 1),
        ];
        front.memory.write(DATA + 16, &[status::UNTOUCHED]).unwrap();
        let driver = &mut front.driver;
        driver.submit_chain(&chain, DATA + 16, false, 0).unwrap();
        driver.publish().unwrap();
        let done = driver.wait(limit()).unwrap();
        assert_ne!(done.status, status::OK, "{op:?}");
        // A write whose data is in such a buffer has none.
        let data = [Buffer::writable(DATA + 4096, 512)];
        front.driver.run(op, 0, &data).unwrap();
    }
    assert!(std::fs::read(&disk.image).unwrap() == content(0, IMAGE));
}

#[test]
fn blk_31_as_many_segments_as_promised_are_served() {
    for (size, indirect) in [(16, 0), (64, 0), (128, 0), (256, 128)] {
        let disk = Disk::start(&["--queue-size", &size.to_string()]);
        let mut session = open(&disk);
        let config = session.connection.get_config(0, 60).unwrap();
        let segments = u32_at(&config, 12);
        assert!(segments >= 1 && segments + 2 <= size);
        let memory = GuestMemory::flat(MEMORY).unwrap();
        let setup = Setup {
            size: u16::try_from(size).unwrap(),
            features: session.features,
            indirect,
        };
        let mut driver = Driver::new(&memory, 0, setup).unwrap();
        session.start(&memory, &[driver.ring()]).unwrap();
        let data: Vec<_> = (0..u64::from(segments))
            .map(|index| Buffer::writable(DATA + index * 1024, 512))
            .collect();
        let done = driver.run(Op::Read, 0, &data).unwrap();
        assert_ok(done, segments * 512 + 1);
        for (index, buffer) in data.iter().enumerate() {
            let read = memory.read(buffer.address, 512).unwrap();
            assert_eq!(read, content(index * 512, 512));
        }
    }
}
