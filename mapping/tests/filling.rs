//! Windows that are being filled: first writes into them go on without the map, which comes back once it is quiet.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mapping::{Config, Extent, ExtentSource, Filler, Kind, Lookup, Map, Reader, Reason, Sink};

const WINDOW: u64 = 64 << 10;
const BLOCK: u64 = 4096;
const WINDOWS: u64 = 40;
const CHANGING: Kind = Kind::Opaque(Reason::Changing);

/// A file whose blocks are written one by one; counts how often it is read.
struct Growing {
    blocks: Mutex<Vec<bool>>,
    calls: Mutex<Vec<Range<u64>>>,
}

impl Growing {
    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn write(&self, block: u64) {
        self.blocks.lock().unwrap()[usize::try_from(block).unwrap()] = true;
    }
}

impl ExtentSource for Growing {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        self.calls.lock().unwrap().push(range.clone());
        for (start, written) in (0..).step_by(4096).zip(&*self.blocks.lock().unwrap()) {
            let extent = Extent {
                start,
                len: BLOCK,
                disk: start + (1 << 30),
                kind: Kind::Written,
            };
            if let Some(extent) = extent.clip(&range).filter(|_| *written)
                && sink(extent).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

struct Scene {
    map: Map,
    source: Arc<Growing>,
    filler: Filler<Growing>,
    reader: Reader,
}

impl Scene {
    /// A file in which every window but the last has one block.
    fn new(quiet: Duration) -> Scene {
        let config = Config {
            window: WINDOW,
            quiet,
            pin_reserve: 64 << 10,
            ..Config::default()
        };
        let map = Map::new(WINDOWS * WINDOW, config).unwrap();
        map.enable();
        let each = WINDOW / BLOCK;
        let blocks = (0..WINDOWS * each).map(|block| block % each == 0);
        let source = Arc::new(Growing {
            blocks: Mutex::new(
                blocks
                    .take(usize::try_from((WINDOWS - 1) * each).unwrap())
                    .chain((0..each).map(|_| false))
                    .collect(),
            ),
            calls: Mutex::default(),
        });
        let filler = Filler::spawn(&map, Arc::clone(&source)).unwrap();
        let reader = map.reader().unwrap();
        Scene {
            map,
            source,
            filler,
            reader,
        }
    }

    /// What a guest's write does.
    fn write(&mut self, block: u64) {
        let range = block * BLOCK..(block + 1) * BLOCK;
        self.reader.quiescent();
        if self.kind(block) != Some(Kind::Written) {
            let _hold = self.map.hold(range).unwrap();
            self.source.write(block);
        }
    }

    fn kind(&mut self, block: u64) -> Option<Kind> {
        match self.reader.lookup(block * BLOCK) {
            Lookup::Found(extent) => Some(extent.kind),
            Lookup::Missing => None,
        }
    }

    fn load(&mut self, block: u64) {
        self.until("the window is loaded", |scene| {
            scene.kind(block).is_some_and(|kind| kind != CHANGING)
        });
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Scene) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            self.reader.quiescent();
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

#[test]
fn a_few_first_writes_leave_the_rest_of_a_window() {
    let mut scene = Scene::new(Duration::from_millis(200));
    scene.load(0);
    for block in [3, 5] {
        scene.write(block);
        assert_eq!(scene.kind(block), Some(CHANGING));
        assert_eq!(scene.kind(0), Some(Kind::Written));
        assert_eq!(scene.kind(7), Some(Kind::Hole));
    }
    assert_eq!(scene.source.calls(), 1);
    scene.load(3);
    assert_eq!(scene.kind(5), Some(Kind::Written));
    assert_eq!(scene.source.calls(), 3, "each of the two gaps was read");
}

#[test]
fn first_writes_in_a_row_cost_one_reading_when_they_are_over() {
    let quiet = Duration::from_millis(100);
    let mut scene = Scene::new(quiet);
    scene.load(0);
    let mut last = Instant::now();
    let start = last;
    for block in (1..15).chain((1..15).cycle()) {
        scene.write(block);
        let now = Instant::now();
        if now.duration_since(last) > quiet / 2 || now.duration_since(start) > quiet * 2 {
            // Something else has had the CPU, or it was long enough.
            break;
        }
        last = now;
        if block > 3 {
            assert_eq!(scene.kind(block), None, "the window is being filled");
        }
    }
    assert_eq!(
        scene.source.calls(),
        1,
        "it was read while it was being filled"
    );
    scene.load(15);
    assert_eq!(scene.source.calls(), 2);
    assert_eq!(scene.kind(14), Some(Kind::Written));
    assert_eq!(scene.kind(15), Some(Kind::Hole));
}

#[test]
fn nobody_reads_a_window_that_was_filled_and_is_not_used() {
    let quiet = Duration::from_millis(1);
    let mut scene = Scene::new(quiet);
    scene.load(0);
    (1..16).for_each(|block| scene.write(block));
    // What waits for it asks for other windows meanwhile, of which each is read.
    let long = quiet * 300;
    let (start, mut window) = (Instant::now(), 0);
    while start.elapsed() < long {
        scene.load((2 + window % 37) * 16);
        window += 2;
        std::thread::sleep(Duration::from_millis(1));
    }
    let read = |range: &&Range<u64>| range.start == 0;
    let calls = scene.source.calls.lock().unwrap();
    assert_eq!(calls.iter().filter(read).count(), 1);
}

#[test]
fn an_empty_window_goes_with_its_first_write() {
    let mut scene = Scene::new(Duration::from_millis(10));
    let last = (WINDOWS - 1) * (WINDOW / BLOCK);
    scene.load(last);
    scene.write(last);
    assert_eq!(scene.kind(last), None);
    assert_eq!(scene.kind(last + 1), None);
    scene.load(last);
    assert_eq!(scene.kind(last), Some(Kind::Written));
}

#[test]
fn a_window_whose_data_are_used_stays() {
    let mut scene = Scene::new(Duration::from_secs(10));
    scene.load(0);
    for block in 1..16 {
        // A cached answer is no use of the window.
        for _ in 0..16 {
            assert_eq!(scene.kind(0), Some(Kind::Written));
            scene.kind(block);
        }
        scene.write(block);
        assert_eq!(scene.kind(block), Some(CHANGING));
    }
    assert_eq!(scene.source.calls(), 1);
}

#[test]
fn a_pinned_window_stays() {
    let mut scene = Scene::new(Duration::from_millis(10));
    scene.filler.pin(0..WINDOW).unwrap();
    for block in 1..16 {
        scene.write(block);
        assert_eq!(scene.kind(0), Some(Kind::Written));
    }
    scene.load(15);
}

#[test]
fn a_window_that_is_written_for_ever_is_looked_at_again() {
    let mut scene = Scene::new(Duration::from_micros(100));
    scene.load(0);
    // What is written again and again has long been there: only the map does not know.
    let mut writes = 0;
    scene.until("the window comes back", |scene| {
        (1..16).for_each(|block| scene.write(block));
        writes += 15;
        scene.kind(15) == Some(Kind::Written) && writes > 1000
    });
    (1..16).for_each(|block| assert_eq!(scene.kind(block), Some(Kind::Written)));
}

#[test]
fn streams_leave_out_what_is_being_filled() {
    let mut scene = Scene::new(Duration::from_secs(10));
    scene.load(20 * 16);
    (1..6).for_each(|block| scene.write(20 * 16 + block));
    assert_eq!(scene.kind(20 * 16), None);
    for window in 10..19 {
        scene.load(window * 16);
    }
    scene.until("the stream is ahead", |scene| {
        scene.kind(21 * 16).is_some() && scene.kind(22 * 16).is_some()
    });
    assert_eq!(scene.kind(20 * 16), None);
}
