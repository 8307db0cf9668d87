//! The filler: misses, streams, advice, pins, budget, and loading again after changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use mapping::{
    Access, Config, Error, Extent, ExtentSource, Filler, Kind, Lookup, Map, Reader, Reason, Sink,
};

const WINDOW: u64 = 64 << 10;

/// Extents of 4 KiB with a hole after each; counts calls, and can be made to wait, fail or be unsettled.
struct Comb {
    size: u64,
    calls: Mutex<Vec<Range<u64>>>,
    gate: Mutex<bool>,
    opened: Condvar,
    fail: AtomicBool,
    unsettled: AtomicU64,
}

impl Comb {
    fn new(windows: u64) -> Arc<Comb> {
        Arc::new(Comb {
            size: windows * WINDOW,
            calls: Mutex::default(),
            gate: Mutex::new(true),
            opened: Condvar::new(),
            fail: AtomicBool::new(false),
            unsettled: AtomicU64::new(0),
        })
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn gate(&self, open: bool) {
        *self.gate.lock().unwrap() = open;
        self.opened.notify_all();
    }
}

impl ExtentSource for Comb {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        self.calls.lock().unwrap().push(range.clone());
        let mut open = self.gate.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        if self.fail.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        for start in (range.start..range.end.min(self.size)).step_by(8192) {
            if sink(Extent {
                start,
                len: 4096,
                disk: start + (1 << 30),
                kind: Kind::Written,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn settle(&self, _range: Range<u64>) -> io::Result<bool> {
        let left = self.unsettled.load(Ordering::Relaxed);
        self.unsettled
            .store(left.saturating_sub(1), Ordering::Relaxed);
        Ok(left == 0)
    }
}

fn setup(windows: u64, config: Config) -> (Map, Arc<Comb>, Filler<Comb>, Reader) {
    let map = Map::new(
        windows * WINDOW,
        Config {
            window: WINDOW,
            ..config
        },
    )
    .unwrap();
    map.enable();
    let source = Comb::new(windows);
    let filler = Filler::spawn(&map, Arc::clone(&source)).unwrap();
    let reader = map.reader().unwrap();
    (map, source, filler, reader)
}

/// Waits for what another thread is about to do.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn found(reader: &mut Reader, offset: u64) -> Extent {
    let mut extent = None;
    until("the window is loaded", || {
        extent = match reader.lookup(offset) {
            Lookup::Found(extent) if extent.kind != Kind::Opaque(Reason::Changing) => Some(extent),
            _ => None,
        };
        reader.quiescent();
        extent.is_some()
    });
    extent.unwrap()
}

/// Bytes of a loaded window of [`Comb`].
const SLAB: u64 = 8 + 16 * (WINDOW / 8192);

#[test]
fn a_miss_returns_at_once_and_the_window_follows() {
    let (map, source, _filler, mut reader) = setup(100, Config::default());
    source.gate(false);
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(reader.lookup(WINDOW * 50), Lookup::Missing);
    }
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "waited for the file system"
    );
    until("one call", || source.calls() == 1);
    source.gate(true);
    let extent = found(&mut reader, WINDOW * 50);
    assert_eq!(
        extent.disk_at(WINDOW * 50 + 5),
        Some(WINDOW * 50 + 5 + (1 << 30))
    );
    assert_eq!(found(&mut reader, WINDOW * 50 + 4096).kind, Kind::Hole);
    assert_eq!(source.calls(), 1, "a thousand misses are one wish");
    let stats = map.stats();
    assert_eq!((stats.loads, stats.resident_windows), (1, 1));
    assert!(stats.misses >= 1000);
}

#[test]
fn a_full_queue_drops_wishes_and_counts_them() {
    let (map, source, _filler, mut reader) = setup(
        1000,
        Config {
            queue: 4,
            ..Config::default()
        },
    );
    source.gate(false);
    reader.lookup(0);
    until("the filler waits", || source.calls() == 1);
    for window in (10..200).step_by(10) {
        assert_eq!(reader.lookup(window * WINDOW), Lookup::Missing);
    }
    assert!(map.stats().wishes_dropped >= 15, "{:?}", map.stats());
    source.gate(true);
    for window in (10..200).step_by(10) {
        found(&mut reader, window * WINDOW);
    }
}

#[test]
fn sequential_streams_find_their_windows_loaded() {
    let (map, _source, _filler, mut reader) = setup(2000, Config::default());
    // Two streams and a random neighbour, turn by turn. Each window is given time to come; what counts is
    // how many were there already.
    let mut missed = 0;
    for step in 0..300 {
        for start in [0, 1000] {
            let offset = (start + step) * WINDOW;
            if reader.lookup(offset) == Lookup::Missing {
                missed += 1;
                found(&mut reader, offset);
            }
            let loads = map.stats().loads;
            if step > 3 {
                until("the stream stays ahead", || {
                    reader.quiescent();
                    map.stats().loads > loads || reader.lookup(offset + WINDOW) != Lookup::Missing
                });
            }
        }
    }
    assert!(
        missed < 20,
        "{missed} of 600 windows were missing when their stream came"
    );
}

#[test]
fn random_advice_loads_nothing_ahead() {
    let (map, _source, filler, mut reader) = setup(200, Config::default());
    filler.access(0..200 * WINDOW, Access::Random).unwrap();
    for window in 0..50 {
        found(&mut reader, window * WINDOW);
    }
    assert_eq!(map.stats().loads, 50);
    filler
        .access(100 * WINDOW..200 * WINDOW, Access::Sequential)
        .unwrap();
    found(&mut reader, 100 * WINDOW);
    until("far ahead at the first use", || {
        map.stats().loads >= 50 + 17
    });
}

#[test]
fn the_budget_is_kept_by_evicting_what_was_not_used() {
    let budget = SLAB * 10;
    let (map, _source, filler, mut reader) = setup(
        100,
        Config {
            budget,
            ..Config::default()
        },
    );
    filler.access(0..100 * WINDOW, Access::Random).unwrap();
    let mut lost = 0;
    for window in 1..100 {
        found(&mut reader, window * WINDOW);
        // Used all the time: only a whole round of the clock without a use in between can take it.
        if reader.lookup(0) == Lookup::Missing {
            lost += 1;
            found(&mut reader, 0);
        }
        assert!(map.stats().resident_bytes <= budget);
    }
    assert!(
        lost <= 20,
        "the window in use was evicted {lost} times in 99"
    );
    let stats = map.stats();
    assert_eq!(stats.evictions, stats.loads - stats.resident_windows);
    assert!(stats.resident_windows >= 9);
}

#[test]
fn reading_ahead_stays_within_its_share_of_the_budget() {
    let budget = SLAB * 40;
    let (map, _source, _filler, mut reader) = setup(
        1000,
        Config {
            budget,
            ..Config::default()
        },
    );
    for window in 0..1000 {
        found(&mut reader, window * WINDOW);
        assert!(map.stats().resident_bytes <= budget);
    }
}

#[test]
fn populate_is_complete_when_it_returns_and_tells_how_far_it_is() {
    let (map, source, filler, mut reader) = setup(100, Config::default());
    let mut steps = Vec::new();
    filler
        .populate_with(5 * WINDOW + 1..90 * WINDOW, &mut |progress| {
            steps.push(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(steps.last().unwrap().done, 85 * WINDOW);
    assert!(
        steps
            .windows(2)
            .all(|pair| pair[0].done <= pair[1].done && pair[0].total == pair[1].total)
    );
    for offset in (5 * WINDOW..90 * WINDOW).step_by(4096) {
        assert!(matches!(reader.lookup(offset), Lookup::Found(_)));
    }
    assert_eq!(map.stats().resident_windows, 85);
    let calls = source.calls();
    filler.populate(5 * WINDOW..90 * WINDOW).unwrap();
    assert_eq!(source.calls(), calls, "nothing is read twice");
    let stopped = filler.populate_with(0..100 * WINDOW, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Stopped)));
}

#[test]
fn populate_beyond_the_budget_says_so_and_evicts_nothing() {
    let (map, _source, filler, _reader) = setup(
        100,
        Config {
            budget: SLAB * 10,
            ..Config::default()
        },
    );
    let result = filler.populate(0..100 * WINDOW);
    assert!(matches!(result, Err(Error::Budget)), "{result:?}");
    assert_eq!(
        (map.stats().resident_windows, map.stats().evictions),
        (10, 0)
    );
}

#[test]
fn willneed_and_dontneed_do_what_they_say() {
    let (map, _source, filler, mut reader) = setup(100, Config::default());
    assert!(filler.willneed(10 * WINDOW..60 * WINDOW).unwrap());
    until("fifty windows", || map.stats().resident_windows == 50);
    assert_eq!(map.stats().misses, 0);
    let _ = filler.dontneed(20 * WINDOW + 1..31 * WINDOW).unwrap();
    assert_eq!(
        map.stats().resident_windows,
        40,
        "the window that is not wholly inside stays"
    );
    assert!(matches!(reader.lookup(20 * WINDOW), Lookup::Found(_)));
    assert_eq!(reader.lookup(21 * WINDOW), Lookup::Missing);
    assert!(matches!(
        filler.willneed(200 * WINDOW..201 * WINDOW),
        Err(Error::Range(_))
    ));
}

#[test]
fn pins_stay_whatever_the_budget_and_fail_at_once_beyond_the_reserve() {
    let config = Config {
        budget: SLAB * 4,
        pin_reserve: SLAB * 30,
        ..Config::default()
    };
    let (map, source, filler, mut reader) = setup(100, config);
    let refused = filler.pin(0..90 * WINDOW);
    assert!(matches!(refused, Err(Error::Reserve { .. })), "{refused:?}");
    assert_eq!(
        map.stats().resident_windows,
        0,
        "nothing was loaded for a pin that cannot be"
    );
    filler.pin(10 * WINDOW..30 * WINDOW).unwrap();
    assert_eq!(map.stats().pinned_bytes, SLAB * 20);
    for window in 40..80 {
        found(&mut reader, window * WINDOW);
    }
    for window in 10..30 {
        assert!(
            matches!(reader.lookup(window * WINDOW), Lookup::Found(_)),
            "window {window} was evicted"
        );
    }
    let _ = map.dontneed(0..100 * WINDOW).unwrap();
    assert_eq!(
        map.stats().resident_windows,
        20,
        "advice does not undo a pin"
    );
    // What was pinned comes back by itself after the map was lost.
    let _ = map.disable();
    assert_eq!(map.stats().resident_windows, 0);
    let calls = source.calls();
    map.enable();
    until("pinned windows come back", || {
        map.stats().pinned_bytes == SLAB * 20
    });
    assert!(source.calls() > calls);
    filler.unpin(10 * WINDOW..20 * WINDOW).unwrap();
    assert_eq!(map.stats().pinned_bytes, SLAB * 10);
    filler.pin(10 * WINDOW..20 * WINDOW).unwrap();
    filler.unpin(0..100 * WINDOW).unwrap();
    assert_eq!(map.stats().pinned_bytes, 0);
}

#[test]
fn a_steady_trickle_of_changes_does_not_keep_a_window_from_being_read_for_ever() {
    let config = Config {
        quiet: Duration::from_millis(20),
        ..Config::default()
    };
    let (map, source, _filler, mut reader) = setup(10, config);
    found(&mut reader, 0);
    let start = Instant::now();
    until("the window is read again", || {
        drop(map.hold(4096..8192));
        reader.lookup(4096);
        reader.quiescent();
        source.calls() > 1
    });
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "read again after {:?}",
        start.elapsed()
    );
}

#[test]
fn what_a_cache_holds_is_not_published_until_it_is_gone() {
    let (map, source, _filler, mut reader) = setup(10, Config::default());
    source.unsettled.store(2, Ordering::Relaxed);
    found(&mut reader, 0);
    assert_eq!(map.stats().unsettled, 2);
    assert_eq!(source.calls(), 1);
}

#[test]
fn an_error_of_the_file_system_is_counted_and_tried_again_later() {
    let (map, source, _filler, mut reader) = setup(10, Config::default());
    source.fail.store(true, Ordering::Relaxed);
    until("an error", || {
        assert_eq!(reader.lookup(0), Lookup::Missing);
        map.stats().load_errors >= 1
    });
    assert!(
        source.calls() <= 3,
        "asks the broken file system all the time"
    );
    source.fail.store(false, Ordering::Relaxed);
    found(&mut reader, 0);
}

#[test]
fn a_load_begun_before_a_hold_does_not_publish_over_it() {
    let (map, source, _filler, mut reader) = setup(10, Config::default());
    source.gate(false);
    reader.lookup(0);
    until("the load has begun", || source.calls() == 1);
    let hold = map.hold(8192..12288).unwrap();
    drop(hold);
    source.gate(true);
    until("published", || reader.lookup(0) != Lookup::Missing);
    let Lookup::Found(extent) = reader.lookup(8192) else {
        panic!("not published")
    };
    assert_eq!(extent.kind, Kind::Opaque(Reason::Changing));
    assert_eq!(extent.range(), 8192..12288);
    assert_eq!(found(&mut reader, 8192).kind, Kind::Written);
}

#[test]
fn nothing_is_loaded_while_the_map_is_disabled() {
    let (map, source, _filler, mut reader) = setup(10, Config::default());
    source.gate(false);
    reader.lookup(0);
    until("the load has begun", || source.calls() == 1);
    let fence = map.disable();
    assert!(!fence.passed() || map.stats().resident_windows == 0);
    source.gate(true);
    assert_eq!(reader.lookup(WINDOW), Lookup::Missing);
    assert!(matches!(
        map.load(&*source, 0..WINDOW),
        Err(Error::Disabled)
    ));
    assert_eq!(map.stats().resident_windows, 0);
    map.enable();
    found(&mut reader, WINDOW);
}

#[test]
fn a_filler_stuck_in_the_file_system_is_left_behind() {
    let (_map, source, filler, mut reader) = setup(10, Config::default());
    source.gate(false);
    reader.lookup(0);
    until("stuck", || source.calls() == 1);
    let start = Instant::now();
    drop(filler);
    assert!(start.elapsed() < Duration::from_secs(5));
    source.gate(true);
}

#[test]
fn a_resized_map_keeps_what_lies_in_both_sizes() {
    let (map, _source, filler, mut reader) = setup(10, Config::default());
    filler.populate(0..10 * WINDOW).unwrap();
    let _ = map.resize(5 * WINDOW + 4096).unwrap();
    assert_eq!(map.stats().resident_windows, 5);
    assert!(matches!(reader.lookup(4 * WINDOW), Lookup::Found(_)));
    assert_eq!(reader.lookup(5 * WINDOW), Lookup::Missing);
    let Lookup::Found(beyond) = reader.lookup(5 * WINDOW + 4096) else {
        panic!()
    };
    assert_eq!(beyond.kind, Kind::Opaque(Reason::BeyondEnd));
    assert_eq!(
        found(&mut reader, 5 * WINDOW).end(),
        5 * WINDOW + 4096,
        "clamped to the file"
    );
    let _ = map.resize(8 * WINDOW).unwrap();
    assert_eq!(
        found(&mut reader, 5 * WINDOW + 8192).kind,
        Kind::Written,
        "read again with the new size"
    );
    reader.offline();
    assert_eq!(map.stats().retired, 0);
}
