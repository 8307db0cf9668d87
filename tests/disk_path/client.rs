//! Random requests on one queue, each answer compared with a model.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use front_end::codes::status;
use front_end::{Buffer, Done, Driver, GuestMemory, LIMIT, Op, Segment};

use crate::model::{Model, SECTOR, Value, content};
use crate::random::Random;
use crate::rig::{QUEUE_DATA, QUEUE_MEMORY, QUEUES};

/// The disk is dealt out to the queues in parts of this many sectors: a prime
/// number, so that neither blocks nor windows of the map begin where they do.
const PART: usize = 193;
/// Requests in flight.
const DEPTH: usize = 8;
/// Guest memory of a request, in bytes.
const ROOM: u64 = 256 << 10;

#[derive(Debug, Clone)]
struct Request {
    op: Op,
    sectors: Range<usize>,
    value: Value,
    /// Write-zeroes may free what it zeroes.
    unmap: bool,
    at: u64,
    /// The file system was full when it began.
    pardoned: bool,
}

/// Which queue a sector belongs to.
pub fn owner(sector: usize) -> usize {
    sector / PART % QUEUES
}

/// One queue and what its sectors may hold.
pub struct Client<'a> {
    driver: Driver,
    memory: GuestMemory,
    queue: usize,
    pub model: Model,
    random: Random,
    value: Value,
    sectors: usize,
    requests: Vec<Option<Request>>,
    /// Requests may fail now: the file system is full.
    full: &'a AtomicBool,
    /// What came out wrong.
    pub wrong: Vec<String>,
    /// Requests that ended well, and those that failed while they might.
    pub ended: usize,
    pub pardoned: usize,
}

impl<'a> Client<'a> {
    pub fn new(
        (queue, driver): (usize, Driver),
        memory: &GuestMemory,
        model: Model,
        sectors: usize,
        full: &'a AtomicBool,
    ) -> Client<'a> {
        Client {
            driver,
            memory: memory.clone(),
            queue,
            model,
            random: Random(0x9e37_79b9 + 77 * queue as u64),
            value: 1000,
            sectors,
            requests: vec![None; DEPTH],
            full,
            wrong: Vec::new(),
            ended: 0,
            pardoned: 0,
        }
    }

    /// Another process serves the disk now, and another ring leads to it.
    /// What was in flight may or may not have been done.
    pub fn move_to(&mut self, driver: Driver, memory: &GuestMemory) {
        for request in self.requests.iter_mut().filter_map(Option::take) {
            if changes(request.op) {
                self.model.maybe(request.sectors, request.value);
            }
        }
        self.driver = driver;
        self.memory = memory.clone();
    }

    /// Goes on until `stop` is set.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.submit();
            self.finish();
        }
        self.drain();
    }

    /// So many requests; as many as possible stay in flight.
    pub fn requests(&mut self, count: usize) {
        for _ in 0..count {
            self.submit();
            self.finish();
        }
        self.submit();
    }

    /// One request, with nothing else in flight.
    pub fn ask(&mut self, op: Op, sectors: Range<usize>, unmap: bool) {
        self.drain();
        self.value += 1;
        let request = Request {
            op,
            sectors,
            value: if op == Op::Write { self.value } else { 0 },
            unmap,
            at: self.room(0),
            pardoned: false,
        };
        self.send(0, request);
        self.driver.publish().unwrap();
        self.finish();
    }

    /// Waits for all that is in flight.
    pub fn drain(&mut self) {
        while self.requests.iter().any(Option::is_some) {
            self.finish();
        }
    }

    /// Everything has ended, and is stable as it is.
    pub fn settle(&mut self) {
        self.drain();
        self.model.flushed();
    }

    /// Flushes what has ended; everything has.
    pub fn flush(&mut self) {
        self.drain();
        assert_eq!(self.driver.flush().unwrap().status, status::OK);
        self.model.flushed();
    }

    /// Fills the ring up.
    fn submit(&mut self) {
        for slot in 0..DEPTH {
            if self.requests[slot].is_none()
                && let Some(request) = self.choose(slot)
            {
                self.send(slot, request);
            }
        }
        self.driver.publish().unwrap();
    }

    /// A request whose sectors are not in flight.
    fn choose(&mut self, slot: usize) -> Option<Request> {
        let parts = self.sectors / PART / QUEUES;
        let part = (self.random.below(parts) * QUEUES + self.queue) * PART;
        let (mut start, mut len) = (part + self.random.below(PART), 1 + self.random.below(PART));
        if self.random.below(3) > 0 {
            start = start.next_multiple_of(8);
            len = len
                .next_multiple_of(8)
                .min((part + PART).saturating_sub(start) / 8 * 8);
        }
        let sectors = start..(start + len).min(part + PART);
        let flying = |other: &Request| {
            other.sectors.start < sectors.end && sectors.start < other.sectors.end
        };
        if sectors.is_empty() || self.requests.iter().flatten().any(flying) {
            return None;
        }
        let op = match self.random.below(20) {
            0..8 => Op::Write,
            8..15 => Op::Read,
            15..17 => Op::Discard,
            17..19 => Op::WriteZeroes,
            _ => Op::Flush,
        };
        self.value += 1;
        let shift = if self.random.below(8) == 0 { 64 } else { 512 };
        Some(Request {
            op,
            sectors: if op == Op::Flush { 0..0 } else { sectors },
            value: if op == Op::Write { self.value } else { 0 },
            unmap: self.random.below(2) == 0,
            at: self.room(slot) + (shift * self.random.below(32)) as u64,
            pardoned: self.full.load(Ordering::Relaxed),
        })
    }

    /// Guest memory for the data of a slot's requests.
    fn room(&self, slot: usize) -> u64 {
        self.queue as u64 * QUEUE_MEMORY + QUEUE_DATA + slot as u64 * ROOM
    }

    fn send(&mut self, slot: usize, request: Request) {
        let bytes = u32::try_from(request.sectors.len() * SECTOR).unwrap();
        let mut first = self.random.below(request.sectors.len().max(1));
        if (request.sectors.start | request.sectors.end).is_multiple_of(8) {
            first -= first % 8;
        }
        let first = u32::try_from(first * SECTOR).unwrap();
        let at = request.at;
        // In one piece or in two.
        let pieces = |piece: fn(u64, u32) -> Buffer| match first {
            0 => vec![piece(at, bytes)],
            _ => vec![
                piece(at, first),
                piece(at + u64::from(first), bytes - first),
            ],
        };
        let data = match request.op {
            Op::Write => {
                let bytes = content(request.value, request.sectors.clone());
                self.memory.write(at, &bytes).unwrap();
                pieces(Buffer::readable)
            }
            Op::Read => {
                self.memory.fill(at, bytes as usize, 0xa5).unwrap();
                pieces(Buffer::writable)
            }
            Op::Discard | Op::WriteZeroes => {
                let unmap = request.op == Op::WriteZeroes && request.unmap;
                let segment = Segment {
                    sector: request.sectors.start as u64,
                    sectors: u32::try_from(request.sectors.len()).unwrap(),
                    flags: u32::from(unmap),
                };
                self.memory.write(at, &segment.bytes()).unwrap();
                vec![Buffer::readable(at, 16)]
            }
            _ => Vec::new(),
        };
        let sector = match request.op {
            Op::Read | Op::Write => request.sectors.start as u64,
            _ => 0,
        };
        if changes(request.op) {
            self.model.begin(request.sectors.clone(), request.value);
        }
        assert!(self.driver.submit(request.op, sector, &data, slot as u64));
        self.requests[slot] = Some(request);
    }

    /// Waits for one request, and looks at what it did.
    fn finish(&mut self) {
        if self.requests.iter().all(Option::is_none) {
            return;
        }
        let Done { tag, status, .. } = self.driver.wait(LIMIT).unwrap();
        let request = self.requests[usize::try_from(tag).unwrap()].take().unwrap();
        let sectors = request.sectors.clone();
        self.ended += 1;
        if status != status::OK {
            if changes(request.op) {
                self.model.maybe(sectors, request.value);
            }
            let full = request.pardoned || self.full.load(Ordering::Relaxed);
            if changes(request.op) && full && status == status::IOERR {
                self.pardoned += 1;
            } else {
                self.wrong.push(format!("status {status} of {request:?}"));
            }
            return;
        }
        match request.op {
            Op::Write | Op::WriteZeroes => self.model.end(sectors, request.value),
            Op::Discard => self.model.maybe(sectors, 0),
            Op::Read => {
                let bytes = self
                    .memory
                    .read(request.at, sectors.len() * SECTOR)
                    .unwrap();
                if let Err(wrong) = self.model.read(sectors, &bytes) {
                    self.wrong.push(wrong);
                }
            }
            _ => {}
        }
    }
}

fn changes(op: Op) -> bool {
    matches!(op, Op::Write | Op::WriteZeroes | Op::Discard)
}
