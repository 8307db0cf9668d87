//! One queue of a guest, for requests one at a time whose sectors all tell
//! what they are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use front_end::codes::status;
use front_end::{Buffer, Driver, GuestMemory, Op, Segment};
use rig::model::{self, SECTOR, Value, content};

use crate::served::{Guest, QUEUE_DATA, QUEUE_MEMORY, Served};

/// Sectors of a request where a range is gone through.
pub const STEP: usize = 128;

/// What sectors hold, and how many of them.
pub type Seen = BTreeMap<String, usize>;

/// What sectors hold that all hold the same.
pub fn all(value: Value, sectors: usize) -> Seen {
    Seen::from([(name(Some(value)), sectors)])
}

fn name(value: Option<Value>) -> String {
    match value {
        Some(0) => "zeros".to_owned(),
        Some(value) => format!("{value}"),
        None => "foreign".to_owned(),
    }
}

/// What the sectors from `first` hold.
pub fn look(first: usize, bytes: &[u8]) -> Seen {
    let mut seen = Seen::new();
    for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR)) {
        *seen.entry(name(model::value(sector, bytes))).or_default() += 1;
    }
    seen
}

/// A queue.
pub struct Lane<'a> {
    pub driver: &'a mut Driver,
    memory: &'a GuestMemory,
    /// Where its data lie in guest memory.
    data: u64,
}

impl Guest {
    /// One of its queues.
    pub fn lane(&mut self, queue: usize) -> Lane<'_> {
        self.lanes().swap_remove(queue)
    }

    /// All of its queues.
    pub fn lanes(&mut self) -> Vec<Lane<'_>> {
        let memory = &self.memory;
        let lane = |(queue, driver)| Lane {
            driver,
            memory,
            data: queue * QUEUE_MEMORY + QUEUE_DATA,
        };
        (0..).zip(&mut self.drivers).map(lane).collect()
    }

    /// Reads sectors until all of them come from the disk.
    pub fn load(&mut self, served: &Served, sectors: Range<usize>) {
        served.wait("the map to be loaded", |_| {
            let before = served.info();
            self.lane(0).read(sectors.clone());
            let after = served.info();
            after.on_disk
                && after.file_operations == before.file_operations
                && after.disk_operations > before.disk_operations
        });
    }
}

fn bytes(sectors: &Range<usize>) -> u32 {
    u32::try_from(sectors.len() * SECTOR).unwrap()
}

impl Lane<'_> {
    /// Writes a value; the status.
    pub fn write(&mut self, sectors: Range<usize>, value: Value) -> u8 {
        self.write_from(0, sectors, value)
    }

    /// Writes a value from a buffer that direct I/O does not take.
    pub fn write_ragged(&mut self, sectors: Range<usize>, value: Value) -> u8 {
        self.write_from(4, sectors, value)
    }

    fn write_from(&mut self, skew: u64, sectors: Range<usize>, value: Value) -> u8 {
        let at = self.data + skew;
        let length = bytes(&sectors);
        let first = sectors.start as u64;
        self.memory.write(at, &content(value, sectors)).unwrap();
        self.driver.write(first, at, length).unwrap().status
    }

    /// Writes a value to a range, request by request; all must succeed.
    pub fn fill(&mut self, sectors: Range<usize>, value: Value) {
        for part in parts(sectors) {
            assert_eq!(self.write(part, value), status::OK);
        }
    }

    /// Reads a range, request by request; all must succeed.
    pub fn read(&mut self, sectors: Range<usize>) -> Vec<u8> {
        let mut all = Vec::with_capacity(sectors.len() * SECTOR);
        for part in parts(sectors) {
            let (first, length) = (part.start as u64, part.len() * SECTOR);
            self.memory.fill(self.data, length, 0xa5).unwrap();
            let done = self.driver.read(first, self.data, bytes(&part)).unwrap();
            assert_eq!(done.status, status::OK, "reading sectors {part:?}");
            all.extend(self.memory.read(self.data, length).unwrap());
        }
        all
    }

    /// What a range holds.
    pub fn see(&mut self, sectors: Range<usize>) -> Seen {
        look(sectors.start, &self.read(sectors))
    }

    /// Flushes; it must succeed.
    pub fn flush(&mut self) {
        assert_eq!(self.driver.flush().unwrap().status, status::OK);
    }

    /// Writes a value all over a range, again and again; counts in `count`.
    /// Requests may fail, as they do while others have all of the disk, and
    /// one that takes longer than `limit` is the last.
    pub fn write_until(
        &mut self,
        stop: &AtomicBool,
        sectors: Range<usize>,
        value: Value,
        limit: Duration,
        count: &AtomicU64,
    ) {
        for part in parts(sectors).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            self.put(0, Op::Write, part, value);
            self.driver.publish().unwrap();
            if self.driver.wait(limit).is_err() {
                break;
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts a request in the ring that is not published yet. Data of `slot`
    /// lie apart from those of others.
    pub fn put(&mut self, slot: usize, op: Op, sectors: Range<usize>, value: Value) {
        let at = self.data + slot as u64 * (STEP * SECTOR) as u64;
        let (sector, buffer) = match op {
            Op::Write => {
                let (first, length) = (sectors.start as u64, bytes(&sectors));
                self.memory.write(at, &content(value, sectors)).unwrap();
                (first, Buffer::readable(at, length))
            }
            _ => {
                let segment = Segment {
                    sector: sectors.start as u64,
                    sectors: u32::try_from(sectors.len()).unwrap(),
                    flags: 0,
                };
                self.memory.write(at, &segment.bytes()).unwrap();
                (0, Buffer::readable(at, 16))
            }
        };
        assert!(self.driver.submit(op, sector, &[buffer], slot as u64));
    }
}

fn parts(sectors: Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone {
    let end = sectors.end;
    sectors
        .step_by(STEP)
        .map(move |at| at..(at + STEP).min(end))
}
