//! One queue: requests go out from slots that are there already.

use std::time::{Duration, Instant};

use super::error::{LoadError, LoadResult};
use super::plan::Place;
use super::stamp::Stamps;
use super::tally::Tally;
use crate::codes::status;
use crate::driver::{Driver, Op, Segment};
use crate::memory::GuestMemory;
use crate::process::LIMIT;
use crate::ring::Buffer;

/// The time, read once for all requests that are found ended together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(pub Instant);

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Flight {
    began: Instant,
    op: Op,
    block: u64,
}

/// A request that has ended well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub read: bool,
    pub latency: Duration,
}

/// A queue of the device and what it is driven with.
#[derive(Debug)]
pub(super) struct Lane {
    driver: Driver,
    memory: GuestMemory,
    /// The guest address of the first slot's buffer; one block is the stride.
    data: u64,
    place: Place,
    flights: Box<[Flight]>,
    /// Slots without a request; its capacity is never exceeded.
    idle: Vec<u16>,
    stamps: Option<Stamps>,
    /// The clock was read since the last publication.
    fresh: bool,
    pub tally: Tally,
}

impl Lane {
    /// With `depth` slots, whose buffers lie from guest address `data`.
    pub(super) fn new(
        (driver, memory, data): (Driver, &GuestMemory, u64),
        place: Place,
        depth: u16,
        stamps: Option<Stamps>,
    ) -> LoadResult<Self> {
        let none = Flight {
            began: Instant::now(),
            op: Op::Read,
            block: 0,
        };
        Ok(Self {
            driver,
            memory: memory.clone(),
            data,
            place,
            flights: vec![none; depth.into()].into(),
            idle: (0..depth).rev().collect(),
            stamps,
            fresh: false,
            tally: Tally::new()?,
        })
    }

    /// The driver.
    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    /// What is read is checked.
    pub(super) fn verifies(&self) -> bool {
        self.stamps.is_some()
    }

    /// Blocks in its place.
    pub(super) fn blocks(&self) -> u64 {
        self.place.blocks
    }

    /// Nothing is in flight.
    pub(super) fn quiet(&self) -> bool {
        self.idle.len() == self.flights.len()
    }

    /// Another request can begin.
    pub(super) fn has_room(&self) -> bool {
        !self.idle.is_empty()
    }

    fn slot_data(&self, slot: u16) -> u64 {
        self.data + u64::from(slot) * u64::from(self.place.size)
    }

    /// Takes a request that has ended; reads the clock for the first of them.
    #[inline]
    pub(super) fn finish(&mut self, clock: &mut Clock) -> LoadResult<Option<Ended>> {
        let Some(done) = self.driver.pop()? else {
            return Ok(None);
        };
        if !self.fresh {
            clock.0 = Instant::now();
            self.fresh = true;
        }
        // The tag is the slot that `begin` gave with it.
        let slot = u16::try_from(done.tag).unwrap_or(u16::MAX);
        let flight = self.flights[usize::from(slot)];
        if done.status != status::OK {
            return Err(self.failure(flight, done.status));
        }
        if self.stamps.is_some() {
            self.settle(slot, flight)?;
        }
        self.idle.push(slot);
        Ok(Some(Ended {
            read: flight.op == Op::Read,
            latency: clock.0.saturating_duration_since(flight.began),
        }))
    }

    #[cold]
    fn failure(&self, flight: Flight, status: u8) -> LoadError {
        LoadError::Status {
            what: match flight.op {
                Op::Read => "a read",
                Op::Write => "a write",
                _ => "a discard",
            },
            offset: self.place.offset(flight.block),
            length: self.place.size,
            status,
        }
    }

    fn settle(&mut self, slot: u16, flight: Flight) -> LoadResult<()> {
        let from = self.slot_data(slot);
        let offset = self.place.offset(flight.block);
        let Some(stamps) = &mut self.stamps else {
            return Ok(());
        };
        if flight.op == Op::Read {
            self.memory.read_into(from, stamps.room())?;
            stamps.check(flight.block, offset)?;
        }
        if flight.op != Op::Discard {
            stamps.release(flight.block);
        }
        Ok(())
    }

    /// Adds a read or a write of `block`, or of a free one near by if that
    /// is verified and in flight; nothing where there is [no room](Self::has_room).
    /// It goes out with [`publish`](Self::publish).
    #[inline]
    pub(super) fn begin(&mut self, read: bool, block: u64, clock: Clock) -> LoadResult<()> {
        let Some(&slot) = self.idle.last() else {
            return Ok(());
        };
        let op = if read { Op::Read } else { Op::Write };
        let data = self.slot_data(slot);
        let block = match &mut self.stamps {
            None => block,
            Some(stamps) => {
                let block = stamps.take(block);
                if !read {
                    let bytes = stamps.next(block, self.place.offset(block));
                    self.memory.write(data, bytes)?;
                }
                block
            }
        };
        let buffer = Buffer {
            address: data,
            length: self.place.size,
            writable: read,
        };
        let sector = self.place.offset(block) / 512;
        self.send(slot, (op, sector), buffer, block, clock)
    }

    /// Adds a discard of the `bytes` from `block` on, a multiple of 512.
    pub(super) fn discard(&mut self, block: u64, bytes: u64, clock: Clock) -> LoadResult<()> {
        let Some(&slot) = self.idle.last() else {
            return Ok(());
        };
        let segment = Segment {
            sector: self.place.offset(block) / 512,
            sectors: u32::try_from(bytes / 512).unwrap_or(u32::MAX),
            flags: 0,
        };
        let data = self.slot_data(slot);
        self.memory.write(data, &segment.bytes())?;
        let buffer = Buffer::readable(data, 16);
        self.send(slot, (Op::Discard, 0), buffer, block, clock)
    }

    #[inline]
    fn send(
        &mut self,
        slot: u16,
        (op, sector): (Op, u64),
        buffer: Buffer,
        block: u64,
        clock: Clock,
    ) -> LoadResult<()> {
        if !self.driver.submit(op, sector, &[buffer], slot.into()) {
            // Without indirect tables a ring holds a third of its size; what
            // does not fit would have to be given back, so it is an error.
            return Err(LoadError::Plan(
                "the ring has no room: give a smaller --depth or a larger --queue-size".to_owned(),
            ));
        }
        self.idle.pop();
        self.flights[usize::from(slot)] = Flight {
            began: clock.0,
            op,
            block,
        };
        Ok(())
    }

    /// Lets the device see what was begun.
    #[inline]
    pub(super) fn publish(&mut self) -> LoadResult<()> {
        self.fresh = false;
        self.tally.kicks += u64::from(self.driver.publish()?);
        Ok(())
    }

    /// Counts the calls so far; waits for none.
    pub(super) fn count_calls(&mut self) -> LoadResult<()> {
        self.tally.calls += self.driver.ring().take_calls()?;
        Ok(())
    }

    /// Reads back all that this run has written here; how many blocks.
    pub(super) fn prove(&mut self) -> LoadResult<u64> {
        let mut clock = Clock(Instant::now());
        let known = |lane: &Self, block| lane.stamps.as_ref().is_some_and(|s| s.knows(block));
        let blocks = self.stamps.as_ref().map_or(0, Stamps::blocks);
        let mut proved = 0;
        for block in (0..blocks).filter(|&b| known(self, b)).collect::<Vec<_>>() {
            while !self.has_room() {
                self.publish()?;
                self.finish_or_wait(&mut clock)?;
            }
            self.begin(true, block, clock)?;
            proved += 1;
        }
        self.publish()?;
        while !self.quiet() {
            self.finish_or_wait(&mut clock)?;
        }
        Ok(proved)
    }

    fn finish_or_wait(&mut self, clock: &mut Clock) -> LoadResult<()> {
        if self.finish(clock)?.is_none() {
            self.driver.ring().wait(LIMIT)?;
        }
        Ok(())
    }
}
