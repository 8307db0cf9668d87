//! Files of sizes that file systems allow and nobody fills: what is not used takes no memory and no time.

#![allow(clippy::unwrap_used, missing_docs)]

use mapping::{Config, Error, Identity, Kind, Lookup, Map};

const TIB: u64 = 1 << 40;

/// Bytes of this process in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_map_of_256_tib_takes_memory_only_where_it_is_used() {
    let size = 256 * TIB;
    let map = Map::new(size, Config::default()).unwrap();
    assert!(map.stats().table_bytes > 500 << 20);
    let source = Identity::new(size);
    let before = resident();
    let mut reader = map.reader().unwrap();
    for round in 0..3 {
        map.enable();
        for at in [0, size / 2, size - 4096] {
            map.load(&source, at..at + 4096).unwrap();
            assert!(
                matches!(reader.lookup(at), Lookup::Found(extent) if extent.kind == Kind::Written)
            );
        }
        reader.offline();
        assert_eq!(map.stats().resident_windows, 3, "round {round}");
        // As when somebody else asks for the image, and when that is longer then.
        let _ = map.disable();
        assert_eq!(map.stats().resident_windows, 0);
        let _ = map.resize(size + round * 4096).unwrap();
    }
    map.enable();
    map.load(&source, size / 2..size / 2 + 1).unwrap();
    let _ = map.resize(size - TIB).unwrap();
    assert_eq!(map.stats().resident_windows, 1, "it is below the new end");
    assert!(matches!(reader.lookup(size / 2), Lookup::Found(extent) if extent.disk == size / 2));
    let more = resident().saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes were touched");
}

#[test]
fn a_table_that_no_memory_holds_is_an_error_and_no_abort() {
    let size = 60 << 50;
    let smallest = Config {
        window: 64 << 10,
        ..Config::default()
    };
    assert!(smallest.table_bytes(size) > 1 << 42);
    assert!(matches!(
        Map::new(size, smallest.clone()),
        Err(Error::Memory)
    ));
    let map = Map::new(1 << 30, smallest).unwrap();
    assert!(matches!(map.resize(size), Err(Error::Memory)));
    assert_eq!(map.size(), 1 << 30, "nothing was changed");
}
