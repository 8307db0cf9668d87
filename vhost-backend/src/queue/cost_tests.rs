//! What the record of requests in flight and the log of dirty pages cost: the
//! instructions of a request through a queue, as callgrind counts them. The
//! test program runs itself there, with one thread and without a kernel that
//! could make a difference, so each count comes out the same every time.
//!
//! To see them: `cargo test -p vhost-backend cost -- --show-output`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::chain::Scratch;
use super::disk::Disk;
use super::tags::Tags;
use super::*;
use crate::command::Mode;
use crate::device::{Completion, DiskInfo, HostRegion, Op};
use crate::held::Holding;
use crate::limits::gate::Gate;
use crate::memory::dirty::tests::log;
use crate::memory::inflight::{self, Inflight, Shape};
use crate::testing::fake::{CAPACITY, info};
use crate::testing::guest::{Driver, Guest, WRITE, header};

const SIZE: u16 = 64;
/// Requests that are fetched and answered together.
const BATCH: u16 = 16;
/// Batches by which the longer run is longer.
const BATCHES: u32 = 200;
/// Names what the program is to run under callgrind, and how many batches.
const SUBJECT: &str = "VHOST_BACKEND_COST";
/// What a test of this name does.
const NAME: &str = "queue::cost_tests::what_is_counted_runs_under_callgrind";

/// What is kept besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    Record,
    Log,
    /// A log that was kept before, and is not any more.
    NoLog,
}

impl Kept {
    const ALL: [Kept; 4] = [Kept::Nothing, Kept::Record, Kept::Log, Kept::NoLog];
}

/// A disk whose requests end at once, at no cost that varies.
struct Instant;

impl Device for Instant {
    type Channel = Ended;

    fn info(&self) -> DiskInfo {
        info()
    }

    fn capacity_sectors(&self) -> u64 {
        CAPACITY
    }

    fn channel(&self, _worker: usize, slots: usize) -> io::Result<Ended> {
        Ok(Ended(Vec::with_capacity(slots)))
    }

    fn rings_started(&self) -> io::Result<()> {
        Ok(())
    }

    fn rings_stopped(&self) {}
}

/// The requests that have ended.
struct Ended(Vec<Tag>);

impl IoChannel for Ended {
    fn room(&mut self, _requests: usize) {}

    fn memory(&mut self, _regions: &[HostRegion]) {}

    unsafe fn submit(&mut self, tag: Tag, _op: Op, _data: &[libc::iovec]) {
        self.0.push(tag);
    }

    fn flush_submissions(&mut self) {}

    fn reap(&mut self, done: &mut impl FnMut(Completion)) {
        for tag in self.0.drain(..) {
            let status = Status::Ok;
            done(Completion { tag, status });
        }
    }

    fn has_ended(&mut self) -> bool {
        !self.0.is_empty()
    }

    fn watch(&mut self, _index: usize, _fd: Option<RawFd>) {}

    fn wait(&mut self, _timeout: Option<Duration>) {}
}

#[inline(never)]
fn serve(kept: Kept, batches: u32) {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let mut driver = Driver::new(&guest, 0x1000, SIZE);
    let disk = Arc::new(Instant);
    let (log, _file) = log(128);
    let tracker = || {
        Tracker::new(
            Arc::clone(&log),
            usize::from(SIZE),
            crate::queue::chain::MOST_RANGES,
        )
    };
    let mut common = Common {
        channel: disk.channel(0, usize::from(SIZE)).unwrap(),
        epochs: Epochs::new(Arc::clone(&guest.memory)),
        scratch: Scratch::new(),
        disk: Disk::new(disk, Arc::new(Mode::default())),
        tags: Tags::full(usize::from(SIZE)),
        dirty: (kept == Kept::Log || kept == Kept::NoLog).then(tracker),
        gate: Gate::default(),
        timed: false,
        holding: Holding::default(),
    };
    let shape = Shape {
        queues: 1,
        entries: SIZE,
    };
    let record = inflight::create(shape).unwrap();
    let record = Inflight::open(record, 0, shape.bytes(), shape).unwrap();
    let setup = crate::command::RingSetup {
        size: SIZE,
        addresses: driver.at,
        next_avail: 0,
        inflight: (kept == Kept::Record).then(|| record.region(0).unwrap()),
        used_log: Some(0x1000),
        event_idx: true,
        kick: None,
        enabled: true,
    };
    let mut queue = Queue::new(0, 0, <_>::default());
    assert!(queue.start(&setup, &common.epochs));
    queue.set_log(common.dirty.is_some().then_some(&log));
    if kept == Kept::NoLog {
        common.dirty = None;
        queue.set_log(None);
    }
    for slot in 0..BATCH {
        let at = 0x1_0000 + 0x1000 * u64::from(slot);
        guest.write(at, &header(VIRTIO_BLK_T_IN, 0));
        let chain = [
            (at, 16, 0),
            (at + 0x200, 512, WRITE),
            (at + 0x800, 1, WRITE),
        ];
        driver.chain(3 * slot, &chain);
    }
    for _ in 0..batches {
        for slot in 0..BATCH {
            driver.offer(3 * slot);
        }
        common.scratch.begin_turn();
        queue.fetch(64, &mut common);
        common.reap(std::slice::from_mut(&mut queue));
        queue.publish();
        assert_eq!(driver.used_idx().load(Ordering::Acquire), driver.avail);
    }
}

#[test]
fn what_is_counted_runs_under_callgrind() {
    let Ok(subject) = std::env::var(SUBJECT) else {
        return;
    };
    let (name, batches) = subject.split_once(' ').unwrap();
    let kept = Kept::ALL.into_iter().find(|k| format!("{k:?}") == name);
    serve(kept.unwrap(), batches.parse().unwrap());
}

/// Instructions of a whole run; `None` where there is no valgrind.
fn total(kept: Kept, batches: u32) -> Option<f64> {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("callgrind");
    let output = Command::new("valgrind")
        .args(["-q", "--tool=callgrind"])
        // Not what the runner of the tests does, which tells of a slow one.
        .arg("--toggle-collect=*cost_tests*serve*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--test-threads=1"])
        .env(SUBJECT, format!("{kept:?} {batches}"))
        .output()
        .ok()?;
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&out).unwrap();
    let mut totals = text
        .lines()
        .filter_map(|line| line.strip_prefix("totals: "));
    Some(totals.next().unwrap().trim().parse().unwrap())
}

/// Instructions per request, with the little that driver and disk take.
fn each(kept: Kept) -> Option<f64> {
    let requests = f64::from(BATCHES) * f64::from(BATCH);
    Some((total(kept, 2 * BATCHES)? - total(kept, BATCHES)?) / requests)
}

#[test]
fn a_record_costs_few_instructions_and_a_log_that_is_off_none() {
    let Some(nothing) = each(Kept::Nothing) else {
        println!("SKIP: there is no valgrind");
        return;
    };
    let more = |kept| each(kept).unwrap() - nothing;
    let (record, log, no_log) = (more(Kept::Record), more(Kept::Log), more(Kept::NoLog));
    println!(
        "{nothing:.1} instructions per request with driver and disk; the record adds {record:.1}, the log {log:.1}, a log that is off {no_log:.1}"
    );
    // Measured: 113; optimized 41. The points at which tests crash are counted.
    let ceiling = if cfg!(debug_assertions) { 130.0 } else { 55.0 };
    // Less than this, and no record was kept.
    assert!((5.0..ceiling).contains(&record), "the record: {record}");
    assert!(log > 5.0, "no log was kept: {log}");
    assert!(no_log.abs() < 0.5, "a log that is off: {no_log}");
}
