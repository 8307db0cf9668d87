//! The three complaints of the 2008 thread about mapping a loop device's file, each with a test: a long
//! setup, memory for what is never touched, and file blocks allocated by mapping.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use mapping::{Config, Extent, ExtentSource, Fiemap, Filler, Kind, Lookup, Map, Sink};
use rig::file_systems::{BTRFS, EXT4, Mounted, XFS};
use rig::files::{fallocate, pattern};

/// A file of a million extents, each of whose readings takes long; counts the extents it was asked for.
struct Slow {
    handed: AtomicU64,
    answer: Barrier,
}

impl ExtentSource for Slow {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        self.answer.wait();
        for start in (range.start..range.end).step_by(65536) {
            self.handed.fetch_add(1, Ordering::Relaxed);
            if sink(Extent {
                start,
                len: 4096,
                disk: start + 4096,
                kind: Kind::Written,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

#[test]
fn complaint_1_setup_takes_no_time_whatever_the_file_is_like() {
    let size = 64u64 << 30;
    let source = Arc::new(Slow {
        handed: AtomicU64::new(0),
        answer: Barrier::new(2),
    });
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            let map = Map::new(size, Config::default()).unwrap();
            map.enable();
            let filler = Filler::spawn(&map, Arc::clone(&source)).unwrap();
            let mut reader = map.reader().unwrap();
            // The file system does not answer yet, and still the first lookup is.
            assert_eq!(reader.lookup(size / 2), Lookup::Missing);
            let took = start.elapsed();
            source.answer.wait();
            while reader.lookup(size / 2) == Lookup::Missing {
                reader.quiescent();
                std::thread::sleep(Duration::from_micros(100));
            }
            drop(filler);
            took
        })
        .min()
        .unwrap();
    // Of a million extents, one window of 64 was read each time.
    assert_eq!(source.handed.load(Ordering::Relaxed), 5 * 64);
    assert!(
        best < Duration::from_millis(20),
        "the first answer took {best:?}"
    );
}

/// Bytes of memory that this process really has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn complaint_2_what_is_never_touched_takes_no_memory() {
    let size = 64u64 << 40;
    let before = resident();
    let map = Map::new(size, Config::default()).unwrap();
    map.enable();
    let source = mapping::Identity::new(size);
    let mut reader = map.reader().unwrap();
    for window in 0..100 {
        let offset = window * (4 << 20);
        map.load(&source, offset..offset + 1).unwrap();
        assert!(matches!(reader.lookup(offset), Lookup::Found(_)));
    }
    let stats = map.stats();
    assert_eq!(stats.resident_windows, 100);
    assert_eq!(
        stats.resident_bytes,
        100 * 24,
        "one extent of 16 bytes and a head of 8 for each window touched"
    );
    let grown = resident().saturating_sub(before);
    // Other tests of this process run meanwhile; a table of 64 TiB would be 144 MiB.
    assert!(grown < 32 << 20, "64 TiB took {grown} bytes");
    assert!(
        stats.table_bytes <= 3 * (64 << 20),
        "3 MiB per TiB of image"
    );
}

#[test]
fn complaint_3_mapping_never_allocates_blocks_of_the_file() {
    for made in [EXT4, XFS, BTRFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let sparse = fs.create("sparse");
        sparse.set_len(512 << 20).unwrap();
        sparse
            .write_all_at(&pattern(3, 0, 8192), 100 << 20)
            .unwrap();
        fallocate(&sparse, libc::FALLOC_FL_KEEP_SIZE, 200 << 20, 4 << 20).unwrap();
        sparse.sync_all().unwrap();
        drop(sparse);
        let file = Arc::new(File::open(fs.path("sparse")).unwrap());
        let before = (file.metadata().unwrap().blocks(), extents(&file));
        let map = Map::new(512 << 20, Config::default()).unwrap();
        map.enable();
        let filler =
            Filler::spawn(&map, Arc::new(Fiemap::new(Arc::clone(&file)).exclusive())).unwrap();
        filler.populate(0..512 << 20).unwrap();
        let mut reader = map.reader().unwrap();
        for offset in (0..512 << 20).step_by(65536) {
            assert!(matches!(reader.lookup(offset), Lookup::Found(_)));
        }
        drop(map.hold(0..1 << 20).unwrap());
        file.sync_all().unwrap();
        assert_eq!(
            (file.metadata().unwrap().blocks(), extents(&file)),
            before,
            "{}",
            made.name
        );
    }
}

fn extents(file: &Arc<File>) -> u64 {
    Fiemap::new(Arc::clone(file)).count(0..512 << 20).unwrap()
}
