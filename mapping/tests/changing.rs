//! A file that changes underneath: with holds and fences, raw reads through the map never see anything
//! but the file, even while another file takes over the blocks that were freed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mapping::device::BackingDevice;
use mapping::{Config, Fiemap, Filler, Kind, Lookup, Map, Reason};
use rig::file_systems::{EXT4, EXT4_1K, EXT4_BIGALLOC, Made, Mounted, XFS};
use rig::files::{fallocate, open_direct, pattern, punch};
use rig::random::Random;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2048;
const TIME: Duration = Duration::from_millis(1500);

#[repr(align(4096))]
struct Page([u8; BLOCK as usize]);

/// The bytes of a block in its `version`th version; version 0 is a hole.
fn content(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        vec![0; BLOCK as usize]
    } else {
        pattern(version, block * BLOCK, BLOCK as usize)
    }
}

struct Scene {
    map: Map,
    file: Arc<File>,
    device: BackingDevice,
    /// What each block holds; [`BUSY`] while it changes.
    versions: Vec<AtomicU64>,
    stop: AtomicBool,
}

const BUSY: u64 = u64::MAX;

/// Reads blocks through the map until told to stop; how many came from the disk, as zeros, and not at all.
fn read(scene: &Scene, seed: u64) -> [u64; 3] {
    let mut random = Random::seeded(seed);
    let mut reader = scene.map.reader().unwrap();
    let mut page = Box::new(Page([0; BLOCK as usize]));
    let mut counts = [0; 3];
    while !scene.stop.load(Ordering::Relaxed) {
        let block = random.number(BLOCKS);
        let offset = block * BLOCK;
        let before = scene.versions[block as usize].load(Ordering::SeqCst);
        let Lookup::Found(extent) = reader.lookup(offset) else {
            counts[2] += 1;
            reader.quiescent();
            std::thread::yield_now();
            continue;
        };
        // Where the file system's blocks are smaller, what follows may lie elsewhere.
        let len = BLOCK.min(extent.end() - offset) as usize;
        match extent.kind {
            Kind::Written => {
                let part = &mut page.0[..len];
                let disk = extent.disk_at(offset).unwrap();
                scene.device.file().read_exact_at(part, disk).unwrap();
                counts[0] += 1;
            }
            Kind::Hole | Kind::Unwritten => {
                page.0.fill(0);
                counts[1] += 1;
            }
            Kind::Opaque(Reason::Changing) => {
                counts[2] += 1;
                reader.quiescent();
                std::thread::yield_now();
                continue;
            }
            other => panic!("block {block}: {other}"),
        }
        // A block that changed in the meantime proves nothing either way.
        let after = scene.versions[block as usize].load(Ordering::SeqCst);
        if before == after && before != BUSY {
            let want = content(block, before);
            assert!(
                page.0[..len] == want[..len],
                "block {block}, version {before}, {extent:?}"
            );
        }
        reader.quiescent();
    }
    counts
}

/// Writes and punches ranges, each under a hold whose fence has passed.
fn change(scene: &Scene, seed: u64) -> u64 {
    let mut random = Random::seeded(seed);
    let mut version = 1 + seed;
    let mut changes = 0;
    let mut page = Box::new(Page([0; BLOCK as usize]));
    while !scene.stop.load(Ordering::Relaxed) {
        let first = random.number(BLOCKS);
        let count = (1 + random.number(16)).min(BLOCKS - first);
        let range = first * BLOCK..(first + count) * BLOCK;
        let Ok(hold) = scene.map.hold(range.clone()) else {
            continue;
        };
        let touched = &scene.versions[first as usize..(first + count) as usize];
        touched
            .iter()
            .for_each(|version| version.store(BUSY, Ordering::SeqCst));
        assert!(hold.fence().wait(Duration::from_secs(20)));
        let write = random.number(2) == 0;
        version += 2;
        if write {
            for block in first..first + count {
                page.0.copy_from_slice(&content(block, version));
                scene.file.write_all_at(&page.0, block * BLOCK).unwrap();
            }
        } else {
            punch(&scene.file, range.start, range.end - range.start);
        }
        let now = if write { version } else { 0 };
        touched
            .iter()
            .for_each(|version| version.store(now, Ordering::SeqCst));
        drop(hold);
        changes += 1;
    }
    changes
}

/// Another file that grows into whatever is freed, and starts over when the disk is full.
fn intrude(fs: &Mounted, stop: &AtomicBool) {
    let path = fs.path("intruder");
    let bytes = vec![0xEE; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let file = File::create(&path).unwrap();
        for at in 0..256 {
            if stop.load(Ordering::Relaxed)
                || file.write_all_at(&bytes, at * bytes.len() as u64).is_err()
            {
                break;
            }
            let _ = file.sync_data();
        }
    }
}

/// Stops the threads also when a check fails, so that the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run(made: Made) {
    let Some(fs) = Mounted::new(made) else { return };
    fs.create("image").set_len(BLOCKS * BLOCK).unwrap();
    // Leaves little room, so that freed blocks are soon another file's.
    let ballast = fs.create("ballast");
    let free = made.megabytes << 20;
    let mut size = free;
    while size > 24 << 20 && fallocate(&ballast, 0, 0, size).is_err() {
        size -= 8 << 20;
    }
    ballast.set_len(size - (20 << 20).min(size)).unwrap();
    let file = Arc::new(open_direct(fs.path("image")));
    let device = BackingDevice::find(&file).unwrap();
    let config = Config {
        window: 1 << 20,
        quiet: Duration::from_millis(1),
        ..Config::default()
    };
    let map = Map::new(BLOCKS * BLOCK, config).unwrap();
    map.enable();
    let source = Arc::new(Fiemap::new(Arc::clone(&file)).exclusive());
    let _filler = Filler::spawn(&map, source).unwrap();
    let versions = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    let scene = Scene {
        map,
        file,
        device,
        versions,
        stop: AtomicBool::new(false),
    };
    let (mut reads, mut changes) = ([0; 3], 0);
    std::thread::scope(|scope| {
        let scene = &scene;
        let guard = Stop(&scene.stop);
        let readers: Vec<_> = (1..3)
            .map(|seed| scope.spawn(move || read(scene, seed)))
            .collect();
        let changers: Vec<_> = (0..2)
            .map(|seed| scope.spawn(move || change(scene, seed)))
            .collect();
        scope.spawn(|| intrude(&fs, &scene.stop));
        let end = Instant::now() + TIME;
        // Now and then the lease breaks, memory is short, somebody gives advice.
        let mut round = 0u64;
        while Instant::now() < end && !changers.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            round += 1;
            match round % 10 {
                0 => drop(scene.map.disable()),
                1 => scene.map.enable(),
                5 => drop(scene.map.dontneed(0..BLOCKS * BLOCK / 2).unwrap()),
                8 => drop(scene.map.forget(BLOCK..4 << 20)),
                _ => {}
            }
        }
        drop(guard);
        for reader in readers {
            let counts = reader.join().unwrap();
            reads
                .iter_mut()
                .zip(counts)
                .for_each(|(sum, one)| *sum += one);
        }
        changes = changers
            .into_iter()
            .map(|changer| changer.join().unwrap())
            .sum();
    });
    assert!(changes > 20, "{}: only {changes} changes", made.name);
    assert!(
        reads[0] > 50 && reads[1] > 50,
        "{}: reads from disk, zeros, none: {reads:?}",
        made.name
    );
    assert_eq!(scene.map.stats().holds, 0);
}

#[test]
fn an_ext4_file_that_changes_underneath_is_never_misread() {
    run(EXT4);
}

#[test]
fn an_ext4_file_of_small_blocks_that_changes_underneath_is_never_misread() {
    run(EXT4_1K);
}

#[test]
fn an_ext4_file_of_clusters_that_changes_underneath_is_never_misread() {
    run(EXT4_BIGALLOC);
}

#[test]
fn an_xfs_file_that_changes_underneath_is_never_misread() {
    run(XFS);
}
