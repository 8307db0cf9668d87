//! Models of what readers and writers do at the same time, in every order loom can think of:
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p extentd-mapping --release --test loom`
//!
//! A slab that is read after it was freed, or without being ordered before its freeing, is reported by a
//! loom cell inside every slab; the disk's blocks are cells here.
#![cfg(loom)]
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::ops::{ControlFlow, Range};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use mapping::{Config, Extent, ExtentSource, Hold, Kind, Lookup, Map, Pending, Reason, Sink};

const WINDOW: u64 = 64 << 10;
const CHANGING: Kind = Kind::Opaque(Reason::Changing);

/// A file of one extent, whose place on the disk can change.
struct Moving {
    size: u64,
    disk: AtomicU64,
}

impl Moving {
    fn new(size: u64) -> Arc<Moving> {
        Arc::new(Moving {
            size,
            disk: AtomicU64::new(1 << 20),
        })
    }
}

impl ExtentSource for Moving {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let disk = self.disk.load(Ordering::SeqCst);
        let whole = Extent {
            start: 0,
            len: self.size,
            disk,
            kind: Kind::Written,
        };
        match whole.clip(&range).map(sink) {
            Some(ControlFlow::Break(())) | Some(ControlFlow::Continue(())) | None => Ok(()),
        }
    }
}

fn map(size: u64) -> Map {
    let map = Map::new(
        size,
        Config {
            window: WINDOW,
            queue: 1,
            ..Config::default()
        },
    )
    .unwrap();
    map.enable();
    map
}

fn disk(found: Lookup, offset: u64) -> Option<u64> {
    match found {
        Lookup::Found(extent) if extent.kind != CHANGING => {
            Some(extent.disk_at(offset).unwrap() - offset)
        }
        _ => None,
    }
}

fn wait_for(hold: &Hold) {
    while !hold.fence().passed() {
        thread::yield_now();
    }
}

#[test]
fn what_is_published_is_seen_whole_or_not_at_all() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Moving::new(WINDOW);
        let loader = thread::spawn({
            let (map, source) = (map.clone(), source.clone());
            move || map.load(&*source, 0..WINDOW).unwrap()
        });
        let mut reader = map.reader().unwrap();
        let first = disk(reader.lookup(5), 5);
        let second = disk(reader.lookup(5), 5);
        assert!(first.is_none() || first == Some(1 << 20));
        assert!(
            second.is_some() || first.is_none(),
            "what was seen once is not unseen"
        );
        loader.join().unwrap();
    });
}

#[test]
fn a_replaced_window_is_freed_only_after_its_readers() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Moving::new(WINDOW);
        map.load(&*source, 0..WINDOW).unwrap();
        let writer = thread::spawn({
            let map = map.clone();
            move || {
                let _ = map.forget(0..1);
                let _ = map.stats();
            }
        });
        let mut reader = map.reader().unwrap();
        reader.lookup(5);
        reader.quiescent();
        reader.lookup(9);
        reader.offline();
        reader.lookup(9);
        drop(reader);
        writer.join().unwrap();
        assert_eq!(map.stats().retired, 0, "nobody is left to wait for");
    });
}

#[test]
fn a_replaced_table_is_freed_only_after_its_readers() {
    loom::model(|| {
        let map = map(WINDOW * 2);
        let source = Moving::new(WINDOW * 2);
        map.load(&*source, 0..WINDOW).unwrap();
        let writer = thread::spawn({
            let map = map.clone();
            move || {
                let _ = map.resize(WINDOW).unwrap();
                let _ = map.stats();
            }
        });
        let mut reader = map.reader().unwrap();
        // A window that lies in both tables may seem missing for a moment, but is never wrong.
        assert!(matches!(disk(reader.lookup(5), 5), None | Some(0x10_0000)));
        if let Lookup::Found(extent) = reader.lookup(WINDOW + 5) {
            assert_eq!(extent.kind, Kind::Opaque(Reason::BeyondEnd));
        }
        drop(reader);
        writer.join().unwrap();
        assert_eq!(map.stats().retired, 0);
    });
}

/// A file that begins as a hole and whose first blocks are written.
struct Growing(AtomicU64);

impl ExtentSource for Growing {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let written = Extent {
            start: 0,
            len: self.0.load(Ordering::SeqCst),
            disk: 1 << 20,
            kind: Kind::Written,
        };
        if let Some(written) = Some(written).filter(|all| all.len > 0)
            && let Some(part) = written.clip(&range)
        {
            let _ = sink(part);
        }
        Ok(())
    }
}

#[test]
fn a_window_that_goes_with_its_first_write_never_comes_back_as_it_was() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Arc::new(Growing(AtomicU64::new(0)));
        // Empty: the hold below takes all of it.
        map.load(&*source, 0..WINDOW).unwrap();
        let loader = thread::spawn({
            let (map, source) = (map.clone(), source.clone());
            move || map.load(&*source, 0..WINDOW).unwrap()
        });
        let mut reader = map.reader().unwrap();
        {
            let _hold = map.hold(0..4096).unwrap();
            assert_eq!(reader.lookup(8192), Lookup::Missing, "all of it went");
            source.0.store(4096, Ordering::SeqCst);
            reader.quiescent();
        }
        // The guest was told that it is written.
        if let Lookup::Found(extent) = reader.lookup(5) {
            assert_ne!(extent.kind, Kind::Hole);
        }
        loader.join().unwrap();
        if let Lookup::Found(extent) = reader.lookup(5) {
            assert_ne!(extent.kind, Kind::Hole);
        }
    });
}

/// A block of the disk: reading and reusing it must be ordered.
struct Block(UnsafeCell<u64>);
// SAFETY: loom reports accesses that are not ordered.
unsafe impl Sync for Block {}
// SAFETY: as above.
unsafe impl Send for Block {}

#[test]
fn nobody_uses_a_held_block_once_the_fence_has_passed() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Moving::new(WINDOW);
        map.load(&*source, 0..WINDOW).unwrap();
        let block = Arc::new(Block(UnsafeCell::new(1)));
        let changer = thread::spawn({
            let (map, block) = (map.clone(), block.clone());
            move || {
                let hold = map.hold(0..4096).unwrap();
                wait_for(&hold);
                // The block becomes another file's.
                // SAFETY: loom checks that nobody reads it any more.
                block.0.with_mut(|content| unsafe { *content = 2 });
                hold
            }
        });
        let mut reader = map.reader().unwrap();
        for _ in 0..2 {
            if disk(reader.lookup(5), 5).is_some() {
                // SAFETY: loom checks that nobody writes it at the same time.
                assert_eq!(block.0.with(|content| unsafe { *content }), 1);
            }
            reader.quiescent();
        }
        reader.offline();
        if disk(reader.lookup(5), 5).is_some() {
            // SAFETY: as above.
            assert_eq!(block.0.with(|content| unsafe { *content }), 1);
        }
        // The rest of the window stays usable.
        assert!(disk(reader.lookup(8192), 8192).is_some());
        drop(reader);
        drop(changer.join().unwrap());
    });
}

#[test]
fn a_load_that_raced_with_a_hold_never_publishes_what_was() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Moving::new(WINDOW);
        let changer = thread::spawn({
            let (map, source) = (map.clone(), source.clone());
            move || {
                let hold = map.hold(0..4096).unwrap();
                source.disk.store(2 << 20, Ordering::SeqCst);
                drop(hold);
            }
        });
        map.load(&*source, 0..WINDOW).unwrap();
        changer.join().unwrap();
        let mut reader = map.reader().unwrap();
        let seen = disk(reader.lookup(5), 5);
        assert!(seen.is_none() || seen == Some(2 << 20), "{seen:?}");
    });
}

#[test]
fn a_load_that_raced_with_a_lost_lease_never_publishes() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Moving::new(WINDOW);
        let loser = thread::spawn({
            let map = map.clone();
            move || drop(map.disable())
        });
        let _ = map.load(&*source, 0..WINDOW);
        loser.join().unwrap();
        let mut reader = map.reader().unwrap();
        assert_eq!(reader.lookup(5), Lookup::Missing);
        assert_eq!(map.stats().resident_windows, 0);
    });
}

#[test]
fn who_waits_for_a_fence_is_always_told() {
    loom::model(|| {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        let map = map(WINDOW);
        let source = Moving::new(WINDOW);
        map.load(&*source, 0..WINDOW).unwrap();
        let mut reader = map.reader().unwrap();
        reader.lookup(5);
        // SAFETY: a new descriptor that is ours.
        let event = Arc::new(unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) });
        let waiter = thread::spawn({
            let (map, event) = (map.clone(), event.clone());
            move || map.forget(0..1).notify(event)
        });
        reader.quiescent();
        reader.offline();
        waiter.join().unwrap();
        let mut count = 0u64;
        // SAFETY: reads 8 bytes into a live local.
        let got = unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) };
        assert_eq!(got, 8, "the fence has passed and nobody said so");
    });
}

#[test]
fn a_budget_of_one_window_is_kept_while_readers_run() {
    loom::model(|| {
        let source = Moving::new(WINDOW * 2);
        let probe = map(WINDOW * 2);
        probe.load(&*source, 0..WINDOW).unwrap();
        let one = probe.stats().resident_bytes;
        let config = Config {
            window: WINDOW,
            queue: 1,
            budget: one,
            ..Config::default()
        };
        let map = Map::new(WINDOW * 2, config).unwrap();
        map.enable();
        map.load(&*source, 0..WINDOW).unwrap();
        let loader = thread::spawn({
            let (map, source) = (map.clone(), source.clone());
            move || map.load(&*source, WINDOW..WINDOW * 2).unwrap()
        });
        let mut reader = map.reader().unwrap();
        for offset in [5, WINDOW + 5] {
            assert!(matches!(
                disk(reader.lookup(offset), offset),
                None | Some(0x10_0000)
            ));
        }
        drop(reader);
        loader.join().unwrap();
        let stats = map.stats();
        assert_eq!(
            (
                stats.resident_windows,
                stats.resident_bytes,
                stats.evictions
            ),
            (1, one, 1)
        );
    });
}

/// A file whose only extent is shared once it was cloned.
struct Cloned(AtomicU64);

impl ExtentSource for Cloned {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let shared = self.0.load(Ordering::SeqCst) > 0;
        let whole = Extent {
            start: 0,
            len: WINDOW,
            disk: 1 << 20,
            kind: if shared { Kind::Shared } else { Kind::Written },
        };
        match whole.clip(&range).map(sink) {
            Some(ControlFlow::Break(())) | Some(ControlFlow::Continue(())) | None => Ok(()),
        }
    }
}

#[test]
fn who_may_change_what_was_cloned_does_not_find_it_unshared() {
    loom::model(|| {
        let map = map(WINDOW);
        let source = Arc::new(Cloned(AtomicU64::new(0)));
        map.load(&*source, 0..WINDOW).unwrap();
        let pending = Arc::new(Pending::new(WINDOW));
        let cloner = thread::spawn({
            let (map, source, pending) = (map.clone(), source.clone(), pending.clone());
            move || {
                let piece = pending.piece(&(0..WINDOW), WINDOW).unwrap();
                let clone = || {
                    source.0.store(1, Ordering::SeqCst);
                    Ok::<_, ()>(())
                };
                pending.pass(&piece, Some(&map), clone).unwrap();
            }
        });
        let filler = thread::spawn({
            let (map, source) = (map.clone(), source.clone());
            // What it finds held it leaves alone.
            move || drop(map.load(&*source, 0..WINDOW))
        });
        let mut reader = map.reader().unwrap();
        if !pending.touches(&(5..6)) {
            match reader.lookup(5) {
                Lookup::Found(extent) => assert_ne!(extent.kind, Kind::Written),
                Lookup::Missing => {}
            }
        }
        drop(reader);
        cloner.join().unwrap();
        filler.join().unwrap();
    });
}
