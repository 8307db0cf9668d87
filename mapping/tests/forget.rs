//! Windows are forgotten whole, also by loads that are reading them.
#![allow(clippy::unwrap_used)]

use std::io;
use std::ops::Range;

use mapping::{Config, Error, Extent, ExtentSource, Identity, Kind, Lookup, Map, Sink};

const WINDOW: u64 = 64 << 10;

/// Has a byte forgotten between its first block and the rest.
struct Forgetful {
    map: Map,
    byte: u64,
}

impl ExtentSource for Forgetful {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let extent = Extent {
            start: range.start,
            len: range.end - range.start,
            disk: (1 << 30) + range.start,
            kind: Kind::Written,
        };
        let first = extent.clip(&(range.start..range.start + 4096));
        let rest = extent.clip(&(range.start + 4096..range.end));
        let mut told = |extent: Option<Extent>| extent.is_none_or(|one| sink(one).is_continue());
        if told(first) {
            drop(self.map.forget(self.byte..self.byte + 1));
            told(rest);
        }
        Ok(())
    }
}

#[test]
fn a_byte_that_is_forgotten_takes_its_window_out_of_loads_under_way() {
    let config = Config {
        window: WINDOW,
        ..Config::default()
    };
    let map = Map::new(4 * WINDOW, config).unwrap();
    map.enable();
    let source = Forgetful {
        map: map.clone(),
        byte: 2 * WINDOW + 5000,
    };
    map.load(&source, 0..4 * WINDOW).unwrap();
    let mut reader = map.reader().unwrap();
    assert_eq!(reader.lookup(2 * WINDOW + 5000), Lookup::Missing);
    assert_eq!(reader.lookup(2 * WINDOW), Lookup::Missing);
    let Lookup::Found(beside) = reader.lookup(WINDOW) else {
        unreachable!("windows beside it were loaded");
    };
    assert_eq!(beside.kind, Kind::Written);
}

#[test]
fn a_new_map_loads_nothing_until_it_is_enabled() {
    let map = Map::new(WINDOW, Config::default()).unwrap();
    let source = Identity::new(WINDOW);
    assert!(matches!(map.load(&source, 0..1), Err(Error::Disabled)));
    assert_eq!(map.reader().unwrap().lookup(0), Lookup::Missing);
    map.enable();
    map.load(&source, 0..1).unwrap();
    assert_ne!(map.reader().unwrap().lookup(0), Lookup::Missing);
}
