//! The image ends within a block of the file system and changes its length by
//! single sectors, so that the kernel zeroes the rest of that block by itself,
//! while the guest writes there: no write may be lost by that.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use front_end::codes::status;
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::{FIRST, Image};
use rig::model::{SECTOR, Value, holds};

use crate::disturb::Stopper;
use crate::lane::all;
use crate::served::{Guest, Served};

/// Where the last block begins.
const WHOLE: usize = (16 << 20) / SECTOR;
/// The block before it.
const BELOW: Range<usize> = WHOLE - 8..WHOLE;
/// Sectors of it that are always there, and most that are.
const LEAST: usize = 4;
const MOST: usize = 7;
/// How often the length changes, and for how long where that is to go wrong.
const CHANGES: usize = 60;
const CHANCES: Duration = Duration::from_secs(20);
/// Requests between two changes.
const BETWEEN: u64 = 20;

/// What came of it.
struct Outcome {
    /// The writes that were lost.
    lost: Vec<String>,
    requests: u64,
    raw: u64,
}

/// Changes the length, up and down, until `enough`.
fn change_length(
    made: Made,
    left_out: &str,
    enough: impl Fn(usize, usize) -> bool,
) -> Option<Outcome> {
    let host = Mounted::new(made)?;
    let image = Image::written(&host, (WHOLE + LEAST) * SECTOR);
    let served = Served::start_without(&image.path, &[], left_out);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, WHOLE - 8..WHOLE + LEAST);
    let (stop, count, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let before = served.info();
    let lost = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut wrong = Vec::new();
            let mut lane = guest.lane(0);
            let mut model = [FIRST; LEAST];
            for value in FIRST + 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let at = value as usize % LEAST;
                let sector = WHOLE + at;
                assert_eq!(lane.write(sector..sector + 1, value), status::OK);
                model[at] = value;
                if at == 0 {
                    // The block before the last, which stays as it is.
                    lane.fill(BELOW, value);
                    assert_eq!(lane.see(BELOW), all(value, BELOW.len()));
                    let bytes = lane.read(WHOLE..WHOLE + LEAST);
                    wrong.extend(differ(&model, &bytes));
                    lost.store(wrong.len() as u64, Ordering::Relaxed);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        });
        let stopper = Stopper(&stop);
        let sizes = (LEAST..MOST).chain((LEAST + 1..=MOST).rev()).cycle();
        for (change, sectors) in sizes.enumerate() {
            let lost = usize::try_from(lost.load(Ordering::Relaxed)).unwrap();
            if enough(change, lost) {
                break;
            }
            let before = count.load(Ordering::Relaxed);
            served.resize((WHOLE + sectors) * SECTOR);
            while count.load(Ordering::Relaxed) < before + BETWEEN && !writer.is_finished() {
                std::thread::yield_now();
            }
        }
        drop(stopper);
        writer.join().unwrap()
    });
    let after = served.info();
    Some(Outcome {
        lost,
        requests: after.requests - before.requests,
        raw: after.disk_operations - before.disk_operations,
    })
}

/// The sectors that are not as they were written.
fn differ(model: &[Value; LEAST], bytes: &[u8]) -> Vec<String> {
    let wrong = |at: &usize| !holds(model[*at], WHOLE + at, &bytes[at * SECTOR..][..SECTOR]);
    let name = |at| format!("sector {} does not hold {}", WHOLE + at, model[at]);
    (0..LEAST).filter(wrong).map(name).collect()
}

/// At least one in so many requests goes by the disk.
fn no_write_is_lost(made: Made, share: u64) {
    if let Some(outcome) = change_length(made, "", |changes, _| changes >= CHANGES) {
        let (raw, requests) = (outcome.raw, outcome.requests);
        eprintln!("{}: {raw} raw operations, {requests} requests", made.name);
        assert_eq!(outcome.lost, Vec::<String>::new());
        assert!(raw > requests / share, "the disk path was hardly used");
    }
}

#[test]
fn no_write_to_the_last_block_is_lost_while_its_end_moves_on_ext4() {
    // Raw writes are whole blocks there.
    no_write_is_lost(EXT4, 10);
}

#[test]
fn no_write_to_the_last_block_is_lost_while_its_end_moves_on_xfs() {
    no_write_is_lost(XFS, 5);
}

#[test]
fn where_the_last_block_is_not_held_xfs_loses_writes() {
    let start = Instant::now();
    let enough = |_, lost| lost > 0 || start.elapsed() > CHANCES;
    if let Some(Outcome { lost, .. }) = change_length(XFS, "resizehold", enough) {
        eprintln!("{lost:?}");
        assert!(!lost.is_empty(), "nothing was lost");
    }
}
