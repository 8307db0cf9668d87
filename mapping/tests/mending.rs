//! Windows of which a little has changed: only that is read again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::single_range_in_vec_init
)]

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mapping::{Config, Extent, ExtentSource, Hold, Kind, Lookup, Map, Reason, Sink};

const BLOCK: u64 = 4096;
const WINDOW: u64 = 64 << 10;
const SIZE: u64 = 4 * WINDOW;

/// Each block lies where this says, in blocks from its offset; the first is a hole. What was asked for is noted, and
/// `then` is called in the midst of it.
#[derive(Default)]
struct Blocks {
    moved: AtomicU64,
    calls: Mutex<Vec<Range<u64>>>,
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl ExtentSource for Blocks {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        self.calls.lock().unwrap().push(range.clone());
        let moved = self.moved.load(Ordering::SeqCst);
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            let extent = Extent {
                start: block * BLOCK,
                len: BLOCK,
                disk: (block * 2 + moved) * BLOCK,
                kind: Kind::Written,
            };
            if block > 0 && sink(extent) == ControlFlow::Break(()) {
                break;
            }
        }
        if let Some(then) = self.then.lock().unwrap().take() {
            then();
        }
        Ok(())
    }
}

impl Blocks {
    fn take_calls(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn loaded(source: &Blocks) -> Map {
    let config = Config {
        window: WINDOW,
        ..Config::default()
    };
    let map = Map::new(SIZE, config).unwrap();
    map.enable();
    map.load(source, 0..SIZE).unwrap();
    assert_eq!(source.take_calls(), [0..SIZE]);
    map
}

fn hold(map: &Map, block: u64) -> Hold {
    map.hold(block * BLOCK..(block + 1) * BLOCK).unwrap()
}

/// Where each block of the map is, in blocks; `None` where it changes.
fn places(map: &Map) -> Vec<Option<u64>> {
    let mut reader = map.reader().unwrap();
    let mut place = |block: u64| match reader.lookup(block * BLOCK) {
        Lookup::Found(extent) if extent.kind == Kind::Opaque(Reason::Changing) => None,
        Lookup::Found(extent) if extent.kind == Kind::Hole => Some(0),
        Lookup::Found(extent) => Some(extent.disk_at(block * BLOCK).unwrap() / BLOCK),
        Lookup::Missing => panic!("block {block} is not loaded"),
    };
    (0..SIZE / BLOCK).map(&mut place).collect()
}

fn unmoved(block: u64) -> Option<u64> {
    Some(block * 2)
}

#[test]
fn only_what_has_changed_is_read_again() {
    let source = Blocks::default();
    let map = loaded(&source);
    for block in [0, 20, 21, 25] {
        drop(hold(&map, block));
    }
    source.moved.store(1, Ordering::SeqCst);
    map.load(&source, WINDOW..2 * WINDOW).unwrap();
    let calls = [20 * BLOCK..22 * BLOCK, 25 * BLOCK..26 * BLOCK];
    assert_eq!(source.take_calls(), calls);
    for (block, place) in (0..).zip(places(&map)) {
        let expected = match block {
            0 => None,
            20 | 21 | 25 => Some(block * 2 + 1),
            _ => unmoved(block),
        };
        assert_eq!(place, expected, "block {block}");
    }
    map.load(&source, 0..WINDOW).unwrap();
    assert_eq!(source.take_calls(), [0..BLOCK]);
    assert_eq!(places(&map)[0], Some(0), "a hole stays one");
}

#[test]
fn of_a_window_with_many_gaps_all_is_read() {
    let source = Blocks::default();
    let config = Config::default();
    let map = Map::new(config.window, config).unwrap();
    map.enable();
    map.load(&source, 0..map.size()).unwrap();
    source.take_calls();
    for block in 0..17 {
        drop(hold(&map, 2 * block));
    }
    map.load(&source, 0..map.size()).unwrap();
    assert_eq!(source.take_calls(), [0..map.size()]);
}

#[test]
fn what_changes_while_it_is_read_is_not_believed() {
    for forgets in [false, true] {
        let source = Blocks::default();
        let map = loaded(&source);
        drop(hold(&map, 20));
        let other = map.clone();
        let changes = move || {
            if forgets {
                drop(other.forget(20 * BLOCK..21 * BLOCK));
            } else {
                // One in the gap, one beside it, and one elsewhere.
                for block in [20, 21, 30] {
                    drop(hold(&other, block));
                }
            }
        };
        *source.then.lock().unwrap() = Some(Box::new(changes));
        map.load(&source, WINDOW..2 * WINDOW).unwrap();
        assert_eq!(source.take_calls()[0], 20 * BLOCK..21 * BLOCK);
        if forgets {
            // It went away as a whole, and came back as a whole.
            assert_eq!(places(&map)[20], unmoved(20));
            continue;
        }
        for (block, place) in (0..).zip(places(&map)) {
            let changed = [20, 21, 30].contains(&block);
            assert_eq!(place.is_none(), changed, "block {block}");
        }
    }
}
