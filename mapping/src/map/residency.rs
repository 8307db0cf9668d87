//! Which parts of the file a map knows now, for those who show it.

use std::ops::Range;

use crate::map::Map;
use crate::map::table::{PINNED, Table};
use crate::sync::Ordering;

/// Windows looked at under the writers' lock at a time.
const CHUNK: usize = 4096;

impl Map {
    /// The parts of `range` whose windows are loaded: in order, neighbours joined, clipped to the range and
    /// the file. Loads nothing, and counts as no use of a window.
    ///
    /// Loading and eviction go on meanwhile, so parts far apart may not have been loaded at the same time.
    #[must_use]
    pub fn resident(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.parts(range, |table, window| {
            !table.window(window).load(Ordering::Relaxed).is_null()
        })
    }

    /// As [`resident`](Map::resident), of windows that are pinned, loaded or not.
    #[must_use]
    pub fn pinned(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.parts(range, |table, window| {
            table.state(window).load(Ordering::Relaxed) & PINNED != 0
        })
    }

    /// As [`resident`](Map::resident), of windows that were looked up since they were loaded, or since
    /// [`cool`](Map::cool) was last called.
    #[must_use]
    pub fn used(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.parts(range, |table, window| {
            self.shared
                .with_slab(table, window, |slab| slab.is_warm())
                .unwrap_or(false)
        })
    }

    /// From now on no window of `range` counts as [`used`](Map::used) before it is looked up again. Changes
    /// nothing about which windows are evicted.
    pub fn cool(&self, range: Range<u64>) {
        let all = self.parts(range, |table, window| {
            self.shared.with_slab(table, window, |slab| slab.cool());
            false
        });
        debug_assert!(all.is_empty());
        // Readers that know their last answer look up again, and mark what they find.
        self.shared.quiesce.raise();
    }

    fn parts(
        &self,
        range: Range<u64>,
        is_meant: impl Fn(&Table, usize) -> bool,
    ) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let writer = self.shared.lock();
            let table = self.shared.table(&writer);
            let first = table.window_of(at);
            let last = table.len().min(first.saturating_add(CHUNK));
            for window in first..last {
                let base = table.base(window);
                let part = base.max(range.start)
                    ..(base + u64::from(table.window_end(window))).min(range.end);
                if part.is_empty() || !is_meant(&table, window) {
                    continue;
                }
                match found.last_mut() {
                    Some(before) if before.end == part.start => before.end = part.end,
                    _ => found.push(part),
                }
            }
            if last >= table.len() {
                break;
            }
            at = table.base(last);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filler::Filler;
    use crate::map::config::Config;
    use crate::source::Identity;
    use crate::sync::Arc;

    const WINDOW: u64 = 64 << 10;

    fn one(part: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(part).collect()
    }

    fn map(size: u64) -> Map {
        let config = Config {
            window: WINDOW,
            ..Config::default()
        };
        let map = Map::new(size, config).unwrap();
        map.enable();
        map
    }

    #[test]
    fn loaded_windows_are_joined_and_clipped() {
        let size = 10 * WINDOW + 4096;
        let map = map(size);
        assert_eq!(map.resident(0..u64::MAX), []);
        let source = Identity::new(size);
        for window in [1, 2, 5, 10] {
            map.load(&source, window * WINDOW..window * WINDOW + 1)
                .unwrap();
        }
        assert_eq!(
            map.resident(0..u64::MAX),
            [
                WINDOW..3 * WINDOW,
                5 * WINDOW..6 * WINDOW,
                10 * WINDOW..size
            ]
        );
        assert_eq!(
            map.resident(2 * WINDOW + 512..5 * WINDOW + 512),
            [2 * WINDOW + 512..3 * WINDOW, 5 * WINDOW..5 * WINDOW + 512]
        );
        assert_eq!(map.resident(3 * WINDOW..5 * WINDOW), []);
        assert_eq!(map.resident(7..7), []);
        assert_eq!(map.stats().resident_windows, 4, "it loads nothing");
    }

    #[test]
    fn what_is_looked_up_is_warm_until_it_is_cooled() {
        let size = 4 * WINDOW;
        let map = map(size);
        let source = Identity::new(size);
        map.load(&source, 0..size).unwrap();
        map.cool(0..size);
        assert_eq!(map.used(0..size), []);
        let mut reader = map.reader().unwrap();
        reader.lookup(WINDOW + 5);
        assert_eq!(map.used(0..size), one(WINDOW..2 * WINDOW));
        map.cool(0..size);
        assert_eq!(map.used(0..size), []);
        // The same answer again, which the reader need not look up.
        reader.lookup(WINDOW + 6);
        assert_eq!(map.used(0..size), one(WINDOW..2 * WINDOW));
        reader.lookup(3 * WINDOW);
        map.cool(0..2 * WINDOW);
        assert_eq!(map.used(0..size), one(3 * WINDOW..size));
    }

    #[test]
    fn pinned_windows_are_told() {
        let size = 4 * WINDOW;
        let config = Config {
            window: WINDOW,
            pin_reserve: 4096,
            ..Config::default()
        };
        let map = Map::new(size, config).unwrap();
        map.enable();
        let filler = Filler::spawn(&map, Arc::new(Identity::new(size))).unwrap();
        filler.pin(WINDOW..3 * WINDOW).unwrap();
        map.load(&**filler.source(), 0..size).unwrap();
        assert_eq!(map.pinned(0..u64::MAX), one(WINDOW..3 * WINDOW));
        filler.unpin(WINDOW..WINDOW + 1).unwrap();
        assert_eq!(map.pinned(0..u64::MAX), one(2 * WINDOW..3 * WINDOW));
    }

    #[test]
    fn neighbours_are_joined_over_the_pieces_it_looks_at() {
        let windows = 2 * CHUNK as u64 + 1;
        let map = map(windows * WINDOW);
        let source = Identity::new(windows * WINDOW);
        let middle = CHUNK as u64 * WINDOW;
        map.load(&source, middle - WINDOW..middle + WINDOW).unwrap();
        map.load(&source, 2 * middle..2 * middle + 1).unwrap();
        assert_eq!(
            map.resident(0..u64::MAX),
            [
                middle - WINDOW..middle + WINDOW,
                2 * middle..2 * middle + WINDOW
            ]
        );
    }
}
