//! Random requests on one queue, each answer compared with a model.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use front_end::codes::status;
use front_end::{Buffer, Done, Driver, Error, GuestMemory, LIMIT, Op, Segment};
use rig::image::FIRST;
use rig::model::{Found, Model, SECTOR, Value, content};
use rig::random::Random;

use crate::length::{Length, Seen};
use crate::requests::{Habits, Past, Request, changes};
use crate::served::{QUEUE_DATA, QUEUE_MEMORY, QUEUES};

/// The disk is dealt out to the queues in parts of this many sectors: a prime
/// number, so that neither blocks nor windows of the map begin where they do.
const PART: usize = 193;
/// Sectors of a request that is not long.
const SHORT: usize = 16;
/// Requests in flight.
const DEPTH: usize = 8;
/// Guest memory of a request, in bytes.
const ROOM: u64 = 256 << 10;

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
    habits: Habits,
    value: Value,
    length: Arc<Length>,
    /// The disk is being cut off here, or was while requests were on their way
    /// to what is beyond.
    cut: Option<usize>,
    requests: Vec<Option<Request>>,
    past: Past,
    /// Requests may fail now: the file system is full.
    full: &'a AtomicBool,
    /// What came out wrong.
    pub wrong: Vec<String>,
    /// Sectors that came out wrong.
    pub found: Found,
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
            random: Random(Habits::default().seed + 77 * queue as u64),
            habits: Habits::default(),
            value: 1000,
            length: Arc::new(Length::new(sectors)),
            cut: None,
            requests: vec![None; DEPTH],
            past: Past::new(),
            full,
            wrong: Vec::new(),
            found: Found::default(),
            ended: 0,
            pardoned: 0,
        }
    }

    /// With other habits, on a disk whose length others change.
    pub fn with(mut self, habits: Habits, length: &Arc<Length>) -> Self {
        self.random = Random(habits.seed + 77 * self.queue as u64);
        self.habits = habits;
        self.length = Arc::clone(length);
        self
    }

    /// The ring, for a process that is to serve it.
    pub fn driver(&self) -> &Driver {
        &self.driver
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

    /// Keeps the ring full, and takes what ends within `patience`; whether
    /// anything has.
    pub fn step(&mut self, patience: Duration) -> bool {
        self.submit();
        self.take(patience)
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
            there: true,
            began: Instant::now(),
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
        let length = self.follow();
        let parts = length.most.div_ceil(PART * QUEUES);
        // Where the end is being moved, many requests reach beyond it.
        let at_end = length.least < length.most && self.random.below(2) == 0;
        let part = if at_end {
            length.least / (PART * QUEUES)
        } else {
            self.random.below(parts)
        };
        let part = (part * QUEUES + self.queue) * PART;
        let end = (part + PART).min(length.most);
        let most = match self.random.below(self.habits.long) {
            _ if at_end => PART,
            0 => PART,
            _ => SHORT,
        };
        let (mut start, mut len) = (part + self.random.below(PART), 1 + self.random.below(most));
        if self.random.below(self.habits.ragged) > 0 {
            start = start.next_multiple_of(8);
            len = len
                .next_multiple_of(8)
                .min(end.saturating_sub(start) / 8 * 8);
        }
        let mut sectors = start..(start + len).min(end);
        let still = start < self.habits.still;
        if still {
            sectors.end = sectors.end.min(self.habits.still);
        }
        let flying = |other: &Request| {
            other.sectors.start < sectors.end && sectors.start < other.sectors.end
        };
        if sectors.is_empty() || self.requests.iter().flatten().any(flying) {
            return None;
        }
        let op = match self.habits.op(&mut self.random) {
            Op::Discard | Op::WriteZeroes if still => Op::Write,
            Op::Read if at_end && self.habits.discards > 0 => Op::Discard,
            op => op,
        };
        self.value += 1;
        let shift = if self.random.below(8) == 0 { 64 } else { 512 };
        Some(Request {
            op,
            there: op == Op::Flush || sectors.end <= length.least,
            sectors: if op == Op::Flush { 0..0 } else { sectors },
            value: match op {
                Op::Write if still => FIRST,
                Op::Write => self.value,
                _ => 0,
            },
            unmap: self.random.below(2) == 0,
            at: self.room(slot) + (shift * self.random.below(32)) as u64,
            pardoned: self.full.load(Ordering::Relaxed),
            began: Instant::now(),
        })
    }

    /// Learns how long the disk is. What was cut off is zeros when it comes
    /// back, once nothing is on its way there.
    fn follow(&mut self) -> Seen {
        let seen = self.length.seen(self.queue);
        if seen.cut {
            let beyond = seen.least..self.model.sectors();
            if self.cut.is_none() {
                self.cut = Some(seen.least);
                self.model.maybe(beyond.clone(), 0);
            }
            let flying = |request: &Request| request.sectors.end > seen.least;
            if seen.least == seen.most && !self.requests.iter().flatten().any(flying) {
                self.model.end(beyond, 0);
                self.cut = None;
                self.length.settle(self.queue);
            }
        }
        seen
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
        if self.requests.iter().any(Option::is_some) {
            assert!(self.take(LIMIT), "a request does not end");
        }
    }

    /// As [`finish`](Self::finish), if one ends within `patience`.
    fn take(&mut self, patience: Duration) -> bool {
        match self.driver.wait(patience) {
            Ok(done) => self.judge(done),
            Err(Error::Late(_)) => return false,
            Err(Error::NotInFlight(head)) => self.wrong.push(format!("{head} ended twice")),
            Err(error) => panic!("{error}"),
        }
        true
    }

    fn judge(&mut self, Done { tag, status, .. }: Done) {
        // Before: what is judged now may have been cut off.
        let least = self.follow().least;
        let request = self.requests[usize::try_from(tag).unwrap()].take().unwrap();
        let sectors = request.sectors.clone();
        self.ended += 1;
        match (request.op, status) {
            (_, status::OK) => self.succeed(&request),
            (op, status::IOERR) if !request.there || sectors.end > least => {
                // What is not there is not changed.
                if changes(op) {
                    let there = sectors.start..sectors.end.min(least);
                    self.model.maybe(there, request.value);
                }
            }
            (op, status) => {
                if changes(op) {
                    self.model.maybe(sectors.clone(), request.value);
                }
                let full = request.pardoned || self.full.load(Ordering::Relaxed);
                if changes(op) && full && status == status::IOERR {
                    self.pardoned += 1;
                } else {
                    self.wrong.push(format!("status {status} of {request:?}"));
                }
            }
        }
        self.past.remember(request, status);
        if let Some(cut) = self.cut
            && cut < sectors.end
        {
            self.model.maybe(cut.max(sectors.start)..sectors.end, 0);
        }
    }

    fn succeed(&mut self, request: &Request) {
        let sectors = request.sectors.clone();
        match request.op {
            Op::Write | Op::WriteZeroes => self.model.end(sectors, request.value),
            Op::Discard => self.model.maybe(sectors, 0),
            Op::Read => {
                let bytes = self
                    .memory
                    .read(request.at, sectors.len() * SECTOR)
                    .unwrap();
                let faults: Vec<_> = self.model.faults(sectors.clone(), &bytes).collect();
                for fault in &faults {
                    self.found.count(fault.kind);
                }
                if let Some(first) = faults.into_iter().next() {
                    self.wrong.push(first.text);
                    self.wrong.extend(self.past.tell(&sectors));
                }
            }
            _ => {}
        }
    }
}
