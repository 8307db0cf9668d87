//! Readers, filler, holds, eviction, resizing and advice all at once, for a second or for as many
//! milliseconds as `MAPPING_STRESS_MS` says. The blocks are plain memory, so a thread sanitizer sees
//! every use that a fence should have excluded:
//! `RUSTFLAGS=-Zsanitizer=thread cargo +nightly test -Zbuild-std --target x86_64-unknown-linux-gnu -p extentd-mapping --test stress`
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::cell::UnsafeCell;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mapping::{Access, Config, Extent, ExtentSource, Filler, Kind, Lookup, Map, Reason, Sink};
use rig::random::Random;

const BLOCK: u64 = 4096;
const WINDOW: u64 = 64 << 10;
const WINDOWS: u64 = 32;
const BLOCKS: u64 = WINDOWS * WINDOW / BLOCK;

/// A disk whose blocks hold their version; a file whose blocks lie where their version says.
struct Disk {
    blocks: Vec<UnsafeCell<u64>>,
    versions: Vec<AtomicU64>,
}

// SAFETY: what is under test is exactly that block accesses are ordered; the sanitizer tells if not.
unsafe impl Sync for Disk {}

fn place(block: u64, version: u64) -> u64 {
    (1 + version * BLOCKS + block) * BLOCK
}

impl ExtentSource for Disk {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK).min(BLOCKS) {
            let version = self.versions[block as usize].load(Ordering::Acquire);
            let whole = Extent {
                start: block * BLOCK,
                len: BLOCK,
                disk: place(block, version),
                kind: Kind::Written,
            };
            let Some(extent) = whole.clip(&range) else {
                continue;
            };
            if sink(extent) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

fn read(map: &Map, disk: &Disk, stop: &AtomicBool, seed: u64) -> [u64; 2] {
    let mut random = Random::seeded(seed);
    let mut reader = map.reader().unwrap();
    let mut counts = [0; 2];
    while !stop.load(Ordering::Relaxed) {
        let start = random.number(BLOCKS);
        for block in start..(start + 20).min(BLOCKS) {
            match reader.lookup(block * BLOCK + 7) {
                Lookup::Found(extent) if extent.kind == Kind::Written => {
                    // SAFETY: nobody changes a block that a reader found before its next quiescent point.
                    let version = unsafe { *disk.blocks[block as usize].get() };
                    assert_eq!(extent.disk, place(block, version), "block {block}");
                    counts[0] += 1;
                }
                Lookup::Found(extent) => {
                    let gone = matches!(
                        extent.kind,
                        Kind::Opaque(Reason::Changing | Reason::BeyondEnd)
                    );
                    assert!(gone, "{extent:?}");
                    counts[1] += 1;
                }
                Lookup::Missing => counts[1] += 1,
            }
        }
        match random.number(50) {
            0 => {
                reader.offline();
                std::thread::yield_now();
            }
            1 => reader = map.reader().unwrap(),
            _ => reader.quiescent(),
        }
    }
    counts
}

fn change(map: &Map, disk: &Disk, stop: &AtomicBool, seed: u64) -> u64 {
    let mut random = Random::seeded(seed);
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let first = random.number(BLOCKS);
        let end = (first + 1 + random.number(24)).min(BLOCKS);
        // Refused where another thread holds, or beyond the end for the moment.
        let Ok(mut hold) = map.hold(first * BLOCK..end * BLOCK) else {
            continue;
        };
        let end = match hold.extend(end * BLOCK..(end + 1) * BLOCK) {
            Ok(()) => end + 1,
            Err(_) => end,
        };
        assert_eq!(hold.range(), first * BLOCK..end * BLOCK);
        assert!(hold.fence().wait(Duration::from_secs(60)));
        for block in first..end {
            // SAFETY: held, and every reader has passed the fence.
            let version = unsafe {
                *disk.blocks[block as usize].get() += 1;
                *disk.blocks[block as usize].get()
            };
            disk.versions[block as usize].store(version, Ordering::Release);
        }
        drop(hold);
        changes += 1;
    }
    changes
}

/// Stops the threads also when a check fails, so that the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn everything_at_once_never_shows_what_was() {
    let time = std::env::var("MAPPING_STRESS_MS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1000);
    let size = BLOCKS * BLOCK;
    let config = Config {
        window: WINDOW,
        budget: 12 * (8 + 16 * 16),
        pin_reserve: 4 * (8 + 17 * 16),
        quiet: Duration::from_micros(200),
        ..Config::default()
    };
    let map = Map::new(size, config).unwrap();
    map.enable();
    let disk = Arc::new(Disk {
        blocks: (0..BLOCKS).map(|_| UnsafeCell::new(0)).collect(),
        versions: (0..BLOCKS).map(|_| AtomicU64::new(0)).collect(),
    });
    let filler = Filler::spawn(&map, Arc::clone(&disk)).unwrap();
    let stop = AtomicBool::new(false);
    let (mut reads, mut changes) = ([0; 2], 0);
    std::thread::scope(|scope| {
        let (map, disk, stop) = (&map, &*disk, &stop);
        let guard = Stop(stop);
        let readers: Vec<_> = (1..4)
            .map(|seed| scope.spawn(move || read(map, disk, stop, seed)))
            .collect();
        let changers: Vec<_> = (1..3)
            .map(|seed| scope.spawn(move || change(map, disk, stop, seed)))
            .collect();
        let end = Instant::now() + Duration::from_millis(time);
        let mut random = Random::seeded(99);
        let mut on = |_: mapping::Progress| ControlFlow::Continue(());
        while Instant::now() < end && !readers.iter().any(|thread| thread.is_finished()) {
            let window = random.number(WINDOWS - 1) * WINDOW;
            let few = window..(window + WINDOW * 3).min(size / 2);
            match random.number(12) {
                0 => drop(map.disable()),
                1..=4 => map.enable(),
                5 => drop(map.forget(window..window + 1)),
                6 => drop(map.dontneed(0..size / 2)),
                7 => drop(filler.willneed(0..size / 2)),
                8 => drop(filler.access(
                    0..size / 2,
                    if window.is_multiple_of(3) {
                        Access::Random
                    } else {
                        Access::Sequential
                    },
                )),
                9 => drop(filler.pin_with(few, &mut on)),
                10 => drop(filler.unpin(0..size / 2)),
                // The last window comes and goes; changes there are refused meanwhile.
                _ => drop(map.resize(if random.number(2) == 0 {
                    size
                } else {
                    size - WINDOW / 2
                })),
            }
            let stats = map.stats();
            assert!(stats.resident_bytes - stats.pinned_bytes <= map.config().budget);
            std::thread::sleep(Duration::from_micros(300));
        }
        map.enable();
        drop(guard);
        for reader in readers {
            reads
                .iter_mut()
                .zip(reader.join().unwrap())
                .for_each(|(sum, one)| *sum += one);
        }
        changes = changers
            .into_iter()
            .map(|changer| changer.join().unwrap())
            .sum();
    });
    drop(filler);
    assert!(
        reads[0] > 0 && reads[1] > 0 && changes > 10,
        "{reads:?} reads, {changes} changes"
    );
    let _ = map.disable();
    let stats = map.stats();
    assert_eq!(
        (stats.resident_bytes, stats.retired, stats.holds),
        (0, 0, 0),
        "{stats:?}"
    );
}
