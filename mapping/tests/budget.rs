//! The budget holds for what grows or becomes evictable without being loaded.
#![allow(clippy::unwrap_used)]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use mapping::{Config, Extent, ExtentSource, Filler, Kind, Map, Sink};

const WINDOW: u64 = 64 << 10;
const WINDOWS: u64 = 16;
/// Memory of a window with one extent.
const ONE: u64 = 8 + 16;

/// One extent, of which each window has a part.
struct Whole;

impl ExtentSource for Whole {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let _stop = sink(Extent {
            start: range.start,
            len: range.end - range.start,
            disk: (1 << 30) + range.start,
            kind: Kind::Written,
        });
        Ok(())
    }
}

fn map(config: Config) -> Map {
    let config = Config {
        window: WINDOW,
        ..config
    };
    let map = Map::new(WINDOWS * WINDOW, config).unwrap();
    map.enable();
    map
}

#[test]
fn holds_that_split_extents_evict_other_windows() {
    let map = map(Config {
        budget: WINDOWS * ONE,
        ..Config::default()
    });
    map.load(&Whole, 0..WINDOWS * WINDOW).unwrap();
    assert_eq!(map.stats().resident_bytes, WINDOWS * ONE);
    let _holds: Vec<_> = (0..WINDOWS)
        .map(|window| {
            let at = window * WINDOW + WINDOW / 2;
            let hold = map.hold(at..at + 4096).unwrap();
            let stats = map.stats();
            assert!(stats.resident_bytes <= WINDOWS * ONE, "{stats:?}");
            hold
        })
        .collect();
    let stats = map.stats();
    assert!(
        stats.evictions > 0 && stats.resident_windows > 0,
        "{stats:?}"
    );
}

#[test]
fn windows_that_are_no_longer_pinned_are_evicted_where_they_exceed_it() {
    let map = map(Config {
        budget: 4 * ONE,
        pin_reserve: 1 << 20,
        ..Config::default()
    });
    let filler = Filler::spawn(&map, Arc::new(Whole)).unwrap();
    let whole = 0..WINDOWS * WINDOW;
    filler.pin(whole.clone()).unwrap();
    assert_eq!(map.stats().resident_bytes, WINDOWS * ONE);
    filler.unpin(whole).unwrap();
    let stats = map.stats();
    assert_eq!(
        (stats.resident_bytes, stats.resident_windows),
        (4 * ONE, 4),
        "{stats:?}"
    );
}
