//! What a guest and its host may rely on: no I/O for holes, one flush of the
//! disk for a FLUSH, one failed request for a lack of room, and readers on the
//! host that see what was flushed.

use std::sync::atomic::AtomicBool;

use front_end::codes::status;
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::{BYTES, Image, Kind, PIECE, SECTORS, kind, sectors};
use rig::model::{Model, SECTOR, Value, content, holds};

use crate::client::Client;
use crate::disturb::{self, fill_up};
use crate::served::{Guest, QUEUE_DATA, Served};

/// What is written here.
const VALUE: Value = 9;
/// Where data of the first queue lies.
const DATA: u64 = QUEUE_DATA;

/// A disk's counters, in the order of /sys/block/*/stat.
fn counters(host: &Mounted) -> Vec<u64> {
    let name = host.device().rsplit('/').next().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    text.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

/// Of those: reads that have ended, and flushes.
const READS: usize = 0;
const FLUSHES: usize = 15;

/// The first sectors of the pieces of a kind.
fn pieces(wanted: Kind) -> impl Iterator<Item = u64> {
    (0..SECTORS.div_ceil(PIECE / SECTOR))
        .filter(move |&piece| kind(piece) == wanted)
        .map(|piece| sectors(piece).start as u64)
}

fn with_disk(made: Made, test: impl FnOnce(&Mounted, &Image, &Served, &mut Guest)) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::scattered(&host);
    let served = Served::start(&image.path, &[], &[]);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    test(&host, &image, &served, &mut guest);
}

/// Reads each piece once, so that the map knows it.
fn load(served: &Served, guest: &mut Guest) {
    for sector in (0..SECTORS as u64).step_by(PIECE / SECTOR) {
        guest.drivers[0].read(sector, DATA, 4096).unwrap();
    }
    let holes = pieces(Kind::Hole).count() as u64;
    served.wait("the map to be loaded", |_| {
        let before = served.info().zero_fills;
        for sector in pieces(Kind::Hole) {
            guest.drivers[0].read(sector, DATA, 4096).unwrap();
        }
        served.info().zero_fills == before + holes
    });
}

fn holes_cost_nothing(made: Made) {
    with_disk(made, |host, _, served, guest| {
        load(served, guest);
        let (before, disk) = (served.info(), counters(host));
        let mut reads = 0;
        for wanted in [Kind::Hole, Kind::Unwritten] {
            for sector in pieces(wanted) {
                guest.memory.fill(DATA, 32768, 0xa5).unwrap();
                let done = guest.drivers[0].read(sector + 8, DATA, 32768).unwrap();
                assert_eq!((done.status, done.length), (status::OK, 32769));
                assert_eq!(guest.memory.read(DATA, 32768).unwrap(), [0; 32768]);
                reads += 1;
            }
        }
        let after = served.wait("counts", |now| now.zero_fills >= before.zero_fills + reads);
        assert_eq!(after.zero_fills, before.zero_fills + reads);
        assert_eq!(after.file_operations, before.file_operations);
        assert_eq!(after.disk_operations, before.disk_operations);
        assert_eq!(counters(host)[READS], disk[READS]);
        // And the counter does count.
        let written = pieces(Kind::Written).next().unwrap();
        guest.drivers[0].read(written, DATA, 4096).unwrap();
        assert_eq!(counters(host)[READS], disk[READS] + 1);
    });
}

#[test]
fn holes_and_unwritten_extents_are_read_without_io_on_ext4() {
    holes_cost_nothing(EXT4);
}

#[test]
fn holes_and_unwritten_extents_are_read_without_io_on_xfs() {
    holes_cost_nothing(XFS);
}

fn a_flush_flushes_once(made: Made) {
    with_disk(made, |host, _, served, guest| {
        load(served, guest);
        let written: Vec<_> = pieces(Kind::Written).take(20).collect();
        // The first syncs the file, which nobody had synced before.
        assert_eq!(guest.drivers[0].flush().unwrap().status, status::OK);
        for &sector in &written {
            let (before, disk) = (served.info(), counters(host));
            let bytes = content(VALUE, 0..8);
            guest.memory.write(DATA, &bytes).unwrap();
            let done = guest.drivers[0].write(sector, DATA, 4096).unwrap();
            assert_eq!(done.status, status::OK);
            assert_eq!(guest.drivers[0].flush().unwrap().status, status::OK);
            assert_eq!(counters(host)[FLUSHES], disk[FLUSHES] + 1);
            let after = served.wait("the count", |now| {
                now.disk_operations > before.disk_operations
            });
            assert_eq!(after.file_operations, before.file_operations);
        }
    });
}

#[test]
fn a_flush_after_raw_writes_is_one_flush_of_the_disk_on_ext4() {
    a_flush_flushes_once(EXT4);
}

#[test]
fn a_flush_after_raw_writes_is_one_flush_of_the_disk_on_xfs() {
    a_flush_flushes_once(XFS);
}

fn a_full_file_system_fails_one_request(made: Made) {
    with_disk(made, |host, _, served, guest| {
        load(served, guest);
        let hole = pieces(Kind::Hole).next().unwrap();
        let written = pieces(Kind::Written).next().unwrap();
        let full = AtomicBool::new(false);
        let bytes = content(VALUE, 0..PIECE / SECTOR);
        guest.memory.write(DATA, &bytes).unwrap();
        let length = u32::try_from(PIECE).unwrap();
        fill_up(host, &full, || {
            let write = |guest: &mut Guest, sector, length| {
                guest.drivers[0].write(sector, DATA, length).unwrap().status
            };
            assert_eq!(write(guest, hole, length), status::IOERR);
            let told = |line: &str| line.contains("the image's file system is full");
            served.daemon.wait_stderr(told).unwrap();
            assert_eq!(write(guest, written, length), status::OK);
            assert_eq!(guest.drivers[0].flush().unwrap().status, status::OK);
            let done = guest.drivers[0].read(written, DATA + (1 << 20), length);
            assert_eq!(done.unwrap().status, status::OK);
            let read = guest.memory.read(DATA + (1 << 20), PIECE).unwrap();
            assert_eq!(read, bytes);
        });
        for sector in [hole, hole + 3] {
            let done = guest.drivers[0].write(sector, DATA, length).unwrap();
            assert_eq!(done.status, status::OK);
            let done = guest.drivers[0].read(sector, DATA + (1 << 20), length);
            assert_eq!(done.unwrap().status, status::OK);
            let read = guest.memory.read(DATA + (1 << 20), PIECE).unwrap();
            assert_eq!(read, bytes);
        }
        assert!(served.info().on_disk);
    });
}

#[test]
fn a_full_ext4_fails_the_request_that_needs_room() {
    a_full_file_system_fails_one_request(EXT4);
}

#[test]
fn a_full_xfs_fails_the_request_that_needs_room() {
    a_full_file_system_fails_one_request(XFS);
}

fn readers_see_what_was_flushed(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::scattered(&host);
    let served = Served::start(&image.path, &[], &[]);
    let mut guest = Guest::attach(&served);
    let full = AtomicBool::new(false);
    let mut client = Client::new(
        (0, guest.drivers.remove(0)),
        &guest.memory,
        Model::new(&image.values),
        SECTORS,
        &full,
    );
    for round in 0..4 {
        served.wait_disk();
        client.requests(500);
        client.flush();
        let bytes = disturb::cat(&image.path);
        assert_eq!(bytes.len(), BYTES);
        for (sector, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
            let may = client.model.now(sector);
            let fits = may.iter().any(|&value| holds(value, sector, bytes));
            assert!(fits, "round {round}: sector {sector} is not {may:?}");
        }
    }
    assert!(served.info().entries >= 4);
    assert!(client.wrong.is_empty(), "{:?}", client.wrong);
}

#[test]
fn a_reader_on_the_host_sees_what_was_flushed_on_ext4() {
    readers_see_what_was_flushed(EXT4);
}

#[test]
fn a_reader_on_the_host_sees_what_was_flushed_on_xfs() {
    readers_see_what_was_flushed(XFS);
}
