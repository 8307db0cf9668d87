//! The map against a model, operation by operation: whatever is found is what the file is at that moment.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

use mapping::{Config, Error, Extent, ExtentSource, Hold, Kind, Lookup, Map, Reader, Reason, Sink};
use proptest::prelude::*;

const BLOCK: u64 = 4096;
const WINDOW: u64 = 64 << 10;
/// Blocks of the file at most.
const BLOCKS: u64 = 100;

type Block = (Kind, u64);

#[derive(Clone, Debug)]
enum Op {
    Lookup(u64),
    Load(Range<u64>),
    /// A load during which other things happen, after it has read everything.
    LoadDuring(Range<u64>, Vec<Op>),
    Hold(Range<u64>),
    Extend(usize, Range<u64>),
    /// Changes the blocks of a hold.
    Change(usize, u8),
    Release(usize),
    Forget(Range<u64>),
    DontNeed(Range<u64>),
    Disable,
    Enable,
    Quiescent,
    Offline,
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0..BLOCKS, 1u64..40).prop_map(|(start, len)| start..(start + len).min(BLOCKS))
}

fn simple_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..BLOCKS).prop_map(Op::Lookup),
        4 => range().prop_map(Op::Load),
        3 => range().prop_map(Op::Hold),
        1 => (0usize..4, range()).prop_map(|(at, range)| Op::Extend(at, range)),
        3 => (0usize..4, any::<u8>()).prop_map(|(at, seed)| Op::Change(at, seed)),
        3 => (0usize..4).prop_map(Op::Release),
        1 => range().prop_map(Op::Forget),
        1 => range().prop_map(Op::DontNeed),
        1 => Just(Op::Disable),
        2 => Just(Op::Enable),
        1 => Just(Op::Quiescent),
        1 => Just(Op::Offline),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => simple_op(),
        1 => (range(), prop::collection::vec(simple_op(), 1..6)).prop_map(|(range, ops)| Op::LoadDuring(range, ops)),
    ]
}

struct File(Mutex<Vec<Block>>);

impl File {
    fn extents(&self, range: &Range<u64>) -> Vec<Extent> {
        let blocks = self.0.lock().unwrap();
        let all = blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| block.0 != Kind::Hole);
        let extents = all.map(|(at, (kind, disk))| Extent {
            start: at as u64 * BLOCK,
            len: BLOCK,
            disk: *disk,
            kind: *kind,
        });
        extents.filter_map(|extent| extent.clip(range)).collect()
    }
}

impl ExtentSource for File {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        for extent in self.extents(&range) {
            if sink(extent).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Reads everything, lets things happen, and only then hands over what it read.
struct Late {
    world: Arc<World>,
    meanwhile: Mutex<Vec<Op>>,
}

impl ExtentSource for Late {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let extents = self.world.file.extents(&range);
        for op in self.meanwhile.lock().unwrap().drain(..) {
            self.world.run(op);
        }
        for extent in extents {
            if sink(extent) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

struct World {
    map: Map,
    file: Arc<File>,
    reader: Mutex<Reader>,
    holds: Mutex<Vec<Hold>>,
    size: u64,
}

impl World {
    fn new(blocks: Vec<Block>, tail: u64) -> Arc<World> {
        let size = blocks.len() as u64 * BLOCK - tail;
        let map = Map::new(
            size,
            Config {
                window: WINDOW,
                ..Config::default()
            },
        )
        .unwrap();
        map.enable();
        let reader = Mutex::new(map.reader().unwrap());
        let file = Arc::new(File(Mutex::new(blocks)));
        Arc::new(World {
            map,
            file,
            reader,
            holds: Mutex::default(),
            size,
        })
    }

    fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * BLOCK..(blocks.end * BLOCK).min(self.size)
    }

    fn held(&self, offset: u64) -> bool {
        self.holds
            .lock()
            .unwrap()
            .iter()
            .any(|hold| hold.range().contains(&offset))
    }

    fn run(self: &Arc<Self>, op: Op) {
        match op {
            Op::Lookup(block) => self.check(block * BLOCK),
            Op::Load(range) => self.load(&*Arc::clone(&self.file), range),
            Op::LoadDuring(range, meanwhile) => {
                self.load(
                    &Late {
                        world: Arc::clone(self),
                        meanwhile: Mutex::new(meanwhile),
                    },
                    range,
                );
            }
            Op::Hold(range) => {
                let bytes = self.bytes(&range);
                let mut holds = self.holds.lock().unwrap();
                let overlaps =
                    |hold: &Hold| hold.range().start < bytes.end && bytes.start < hold.range().end;
                let taken = holds.iter().any(overlaps);
                match self.map.hold(bytes) {
                    Ok(hold) => {
                        assert!(!taken);
                        holds.push(hold);
                    }
                    Err(Error::Overlap(_)) => assert!(taken),
                    Err(other) => panic!("{other}"),
                }
            }
            Op::Extend(at, range) => {
                let bytes = self.bytes(&range);
                let mut holds = self.holds.lock().unwrap();
                let count = holds.len();
                if let Some(hold) = holds.get_mut(at % count.max(1)) {
                    let before = hold.range();
                    match hold.extend(bytes.clone()) {
                        Ok(()) => assert_eq!(
                            hold.range(),
                            before.start.min(bytes.start)..before.end.max(bytes.end)
                        ),
                        Err(_) => assert_eq!(hold.range(), before),
                    }
                }
            }
            Op::Change(at, seed) => {
                let holds = self.holds.lock().unwrap();
                let Some(hold) = holds.get(at % holds.len().max(1)) else {
                    return;
                };
                let mut blocks = self.file.0.lock().unwrap();
                for block in hold.range().start / BLOCK..hold.range().end.div_ceil(BLOCK) {
                    blocks[block as usize] = make(
                        seed.wrapping_add(block as u8),
                        1000 + u64::from(seed) * 200 + block,
                    );
                }
            }
            Op::Release(at) => {
                let mut holds = self.holds.lock().unwrap();
                if !holds.is_empty() {
                    let at = at % holds.len();
                    drop(holds.remove(at));
                }
            }
            Op::Forget(range) => {
                let bytes = self.bytes(&range);
                let _ = self.map.forget(bytes.clone());
                let mut reader = self.reader.lock().unwrap();
                assert_eq!(reader.lookup(bytes.start), Lookup::Missing);
                assert_eq!(reader.lookup(bytes.end - 1), Lookup::Missing);
            }
            Op::DontNeed(range) => drop(self.map.dontneed(self.bytes(&range)).unwrap()),
            Op::Disable => {
                let _ = self.map.disable();
                assert_eq!(self.map.stats().resident_windows, 0);
            }
            Op::Enable => self.map.enable(),
            Op::Quiescent => self.reader.lock().unwrap().quiescent(),
            Op::Offline => self.reader.lock().unwrap().offline(),
        }
    }

    fn load<S: ExtentSource>(&self, source: &S, range: Range<u64>) {
        match self.map.load(source, self.bytes(&range)) {
            Ok(()) | Err(Error::Disabled) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// What is found at the offset is what the file is there now.
    fn check(&self, offset: u64) {
        if offset >= self.size {
            return;
        }
        let found = self.reader.lock().unwrap().lookup(offset);
        let (kind, disk) = self.file.0.lock().unwrap()[(offset / BLOCK) as usize];
        let Lookup::Found(extent) = found else { return };
        assert!(extent.range().contains(&offset), "{extent:?} at {offset}");
        assert!(extent.end() <= self.size);
        assert_eq!(extent.start / WINDOW, (extent.end() - 1) / WINDOW);
        if extent.kind == Kind::Opaque(Reason::Changing) {
            return;
        }
        assert!(
            !self.held(offset),
            "{extent:?} found at {offset}, which is held"
        );
        assert!(self.map.enabled());
        assert_eq!(extent.kind, kind, "at {offset}");
        if extent.kind.on_disk() {
            assert_eq!(extent.disk_at(offset), Some(disk), "at {offset}");
        }
    }

    /// With everything released and loaded again, nothing is missing and nothing is changing any more.
    fn settle(&self) {
        self.holds.lock().unwrap().clear();
        self.map.enable();
        self.map.load(&*self.file, 0..self.size).unwrap();
        for block in 0..self.size.div_ceil(BLOCK) {
            let found = self.reader.lock().unwrap().lookup(block * BLOCK);
            let Lookup::Found(extent) = found else {
                panic!("block {block} is missing")
            };
            assert_ne!(extent.kind, Kind::Opaque(Reason::Changing), "block {block}");
            self.check(block * BLOCK);
        }
        let stats = self.map.stats();
        assert_eq!(stats.resident_windows, self.size.div_ceil(WINDOW));
        // A head of 8 bytes per window, 16 per extent that is not a hole.
        let entries: u64 = stats.extents.iter().sum::<u64>() - stats.extents[Kind::Hole.index()];
        assert_eq!(
            stats.resident_bytes,
            stats.resident_windows * 8 + entries * 16
        );
        assert_eq!(stats.holds, 0);
        let _ = self.map.disable();
        self.reader.lock().unwrap().quiescent();
        let stats = self.map.stats();
        assert_eq!(
            (stats.resident_bytes, stats.extents, stats.retired),
            (0, [0; 5], 0)
        );
    }
}

fn make(kind: u8, disk: u64) -> Block {
    match kind % 5 {
        0 | 1 => (Kind::Written, disk * BLOCK),
        2 => (Kind::Unwritten, disk * BLOCK),
        3 => (Kind::Shared, disk * BLOCK),
        _ => (Kind::Hole, 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_map_never_tells_anything_but_what_the_file_is(
        kinds in prop::collection::vec(any::<u8>(), BLOCKS as usize),
        tail in prop_oneof![Just(0), 1u64..BLOCK],
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let blocks = kinds.iter().enumerate().map(|(at, kind)| make(*kind, 5000 + at as u64)).collect();
        let world = World::new(blocks, tail);
        for op in ops {
            world.run(op);
            for block in 0..BLOCKS {
                world.check(block * BLOCK);
            }
        }
        world.settle();
    }
}
