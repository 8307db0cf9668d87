//! The record of requests in flight that outlives this process: the
//! front-end keeps the buffer and hands it to whoever serves the rings next
//! (vhost-user, "Inflight I/O tracking").
//!
//! The front-end can write it at any time, so nothing read from it is used
//! before it was checked, and nothing of it is read while requests are
//! served but the links of the batch that is being published, whose only use
//! is to find bytes within the buffer.
//!
//! The order of the stores is what a successor relies on. A process that is
//! killed has made a prefix of its stores; each is a release, so that the
//! compiler keeps that order too.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::crash;
use crate::memory::backing::SharedError;
use crate::memory::shared::Shared;
use crate::sys;

/// The version of a queue's region; 0: nobody has used it yet.
const VERSION: u16 = 1;

/// Bytes before the first entry of a region, and bytes of an entry.
const HEADER: usize = 16;
const ENTRY: usize = 16;

/// Offsets in a region. The features before the version are 0.
const FEATURES_AT: usize = 0;
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_AT: usize = 14;

/// Offsets in an entry.
const IN_FLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// Why a buffer is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error("the record of requests in flight {0}")]
    Shared(#[from] SharedError),
    #[error("the record of requests in flight is too short for its queues")]
    Short,
    #[error("the record of requests in flight is not aligned")]
    Unaligned,
    #[error(
        "the record of requests in flight is for {0} queues of {1}: give --num-queues and --queue-size to match"
    )]
    Shape(u16, u16),
    #[error("the record of requests in flight of queue {0} is damaged")]
    Damaged(u16),
    #[error("a ring runs")]
    Busy,
    #[error("cannot make a record of requests in flight: {0}")]
    Create(io::Error),
}

/// How a buffer is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub queues: u16,
    /// Entries of each queue's region.
    pub entries: u16,
}

impl Shape {
    /// Bytes of one queue's region.
    fn region(self) -> usize {
        ENTRY
            .saturating_mul(usize::from(self.entries))
            .saturating_add(HEADER)
            .next_multiple_of(64)
    }

    /// Bytes of the whole buffer.
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.queues).saturating_mul(self.region() as u64)
    }
}

/// Makes an empty buffer, which nobody can shrink or grow (VU-30).
pub(crate) fn create(shape: Shape) -> Result<File, InflightError> {
    sys::sealed_memory(c"inflight", shape.bytes()).map_err(InflightError::Create)
}

/// A buffer that the front-end has handed over.
#[derive(Debug)]
pub(crate) struct Inflight {
    shared: Arc<Shared>,
    shape: Shape,
    /// Where it begins in its file.
    offset: u64,
}

impl Inflight {
    /// Maps a buffer of `size` bytes at `offset` of a file and looks whether
    /// it can be trusted so far (VU-34).
    pub(crate) fn open(
        file: File,
        offset: u64,
        size: u64,
        shape: Shape,
    ) -> Result<Self, InflightError> {
        if shape.queues == 0 || shape.entries == 0 {
            return Err(InflightError::Shape(shape.queues, shape.entries));
        }
        if size < shape.bytes() {
            return Err(InflightError::Short);
        }
        if !offset.is_multiple_of(8) {
            return Err(InflightError::Unaligned);
        }
        let shared = Arc::new(Shared::map(file, offset, shape.bytes())?);
        let inflight = Self {
            shared,
            shape,
            offset,
        };
        for queue in 0..shape.queues {
            let sound = inflight.region(queue).is_some_and(|region| region.sound());
            if !sound {
                return Err(InflightError::Damaged(queue));
            }
        }
        if inflight.shared.is_lost() {
            return Err(SharedError::Lost.into());
        }
        Ok(inflight)
    }

    /// How the front-end has handed it over: its shape, where it begins in its
    /// file, and that.
    pub(crate) fn origin(&self) -> Option<(Shape, u64, &File)> {
        Some((self.shape, self.offset, self.shared.file()?))
    }

    /// The part of one queue.
    pub(crate) fn region(&self, queue: u16) -> Option<Region> {
        (queue < self.shape.queues).then(|| Region {
            start: usize::from(queue).saturating_mul(self.shape.region()),
            entries: self.shape.entries,
            shared: Arc::clone(&self.shared),
        })
    }
}

/// The part of the buffer that belongs to one queue.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// Its offset in the buffer, a multiple of 64.
    start: usize,
    entries: u16,
    shared: Arc<Shared>,
}

impl Region {
    fn at(&self, offset: usize) -> *mut u8 {
        self.shared.at(self.start.wrapping_add(offset))
    }

    fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: callers pass offsets of fields of the header or of entries
        // below `entries`, all within the mapping that `shared` keeps. The
        // front-end may write them at any time, which an atomic allows.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }
    }

    fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `u8`; the buffer begins at a multiple of 8 and each
        // field lies at a multiple of its size.
        unsafe { AtomicU16::from_ptr(self.at(offset).cast()) }
    }

    fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }

    /// It could not be reached: nothing that was read from it means anything.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    fn entry(head: u16, field: usize) -> usize {
        // A head has 16 bits.
        ENTRY
            .wrapping_mul(usize::from(head))
            .wrapping_add(HEADER)
            .wrapping_add(field)
    }

    /// Nothing in it is out of bounds, now.
    fn sound(&self) -> bool {
        match self.u16(VERSION_AT).load(Ordering::Acquire) {
            0 => true,
            VERSION => {
                let entry_is_sound = |head| {
                    self.u8(Self::entry(head, IN_FLIGHT_AT))
                        .load(Ordering::Relaxed)
                        <= 1
                        && self.u16(Self::entry(head, NEXT_AT)).load(Ordering::Relaxed)
                            < self.entries
                };
                self.u64(FEATURES_AT).load(Ordering::Relaxed) == 0
                    && self.u16(ENTRIES_AT).load(Ordering::Relaxed) == self.entries
                    && self.u16(LAST_BATCH_AT).load(Ordering::Relaxed) < self.entries
                    && (0..self.entries).all(entry_is_sound)
            }
            _ => false,
        }
    }

    /// Somebody has fetched requests and not answered them.
    pub(crate) fn has_requests(&self) -> bool {
        let in_flight = |head| self.u8(Self::entry(head, IN_FLIGHT_AT));
        self.u16(VERSION_AT).load(Ordering::Acquire) == VERSION
            && (0..self.entries).any(|head| in_flight(head).load(Ordering::Relaxed) != 0)
    }

    /// Takes the record over for a ring of `size` entries whose used index in
    /// guest memory is `used`. Returns with it the heads that a predecessor
    /// has fetched and not answered, in the order in which it fetched them.
    /// `None`: it is too small or makes no sense.
    pub(crate) fn recover(self, size: u16, used: u16) -> Option<(Record, Vec<u16>)> {
        if size > self.entries || !self.sound() {
            return None;
        }
        let mut record = Record {
            region: self,
            size,
            counter: 0,
        };
        let region = &record.region;
        if region.u16(VERSION_AT).load(Ordering::Acquire) == 0 {
            // Whatever a front-end has left there says nothing (VU-32), and
            // would to a successor.
            region.u64(FEATURES_AT).store(0, Ordering::Release);
            region.u16(LAST_BATCH_AT).store(0, Ordering::Release);
            for head in 0..region.entries {
                let entry = |field| Region::entry(head, field);
                region.u8(entry(IN_FLIGHT_AT)).store(0, Ordering::Release);
                region.u16(entry(NEXT_AT)).store(0, Ordering::Release);
            }
            region
                .u16(ENTRIES_AT)
                .store(region.entries, Ordering::Release);
            region.u16(USED_AT).store(used, Ordering::Release);
            crash::point();
            region.u16(VERSION_AT).store(VERSION, Ordering::Release);
            crash::point();
            return Some((record, Vec::new()));
        }

        let in_flight = |head| region.u8(Region::entry(head, IN_FLIGHT_AT));
        if (0..region.entries).all(|head| in_flight(head).load(Ordering::Relaxed) == 0) {
            // Nothing to repair, whatever ring it was used for before (VU-35).
            region.u16(USED_AT).store(used, Ordering::Release);
            crash::point();
            return Some((record, Vec::new()));
        }

        // The predecessor may have ended between publishing a batch and
        // recording that.
        let batch = used.wrapping_sub(region.u16(USED_AT).load(Ordering::Relaxed));
        if batch > size {
            return None;
        }
        record.published(batch, used);

        let region = &record.region;
        let mut heads = Vec::new();
        for head in 0..region.entries {
            let in_flight = region.u8(Region::entry(head, IN_FLIGHT_AT));
            if in_flight.load(Ordering::Relaxed) != 0 {
                if head >= size {
                    return None;
                }
                let counter = region.u64(Region::entry(head, COUNTER_AT));
                heads.push((counter.load(Ordering::Relaxed), head));
            }
        }
        heads.sort_unstable();
        let last = heads.last().map_or(0, |(counter, _)| *counter);
        record.counter = last.wrapping_add(1);
        Some((record, heads.into_iter().map(|(_, head)| head).collect()))
    }
}

/// The record of a running ring. Heads are below the ring's size.
#[derive(Debug)]
pub(crate) struct Record {
    region: Region,
    size: u16,
    /// Given to the next request.
    counter: u64,
}

impl Record {
    /// It could not be reached, so no successor will learn from it.
    pub(crate) fn is_lost(&self) -> bool {
        self.region.is_lost()
    }

    /// A request was fetched and is about to be carried out.
    pub(crate) fn fetched(&mut self, head: u16) {
        let region = &self.region;
        region
            .u64(Region::entry(head, COUNTER_AT))
            .store(self.counter, Ordering::Release);
        crash::point();
        region
            .u8(Region::entry(head, IN_FLIGHT_AT))
            .store(1, Ordering::Release);
        crash::point();
        self.counter = self.counter.wrapping_add(1);
    }

    /// A request joins the batch that is published next.
    pub(crate) fn answered(&mut self, head: u16) {
        let region = &self.region;
        let last = region.u16(LAST_BATCH_AT);
        region
            .u16(Region::entry(head, NEXT_AT))
            .store(last.load(Ordering::Relaxed), Ordering::Release);
        crash::point();
        last.store(head, Ordering::Release);
        crash::point();
    }

    /// The used index that guest memory has now covers a batch of so many.
    pub(crate) fn published(&mut self, batch: u16, used: u16) {
        let region = &self.region;
        let mut head = region.u16(LAST_BATCH_AT).load(Ordering::Relaxed);
        for _ in 0..batch {
            // Somebody else wrote there: the links are lost, the buffer is
            // not left.
            if head >= self.size {
                break;
            }
            region
                .u8(Region::entry(head, IN_FLIGHT_AT))
                .store(0, Ordering::Release);
            crash::point();
            head = region
                .u16(Region::entry(head, NEXT_AT))
                .load(Ordering::Relaxed);
        }
        region.u16(USED_AT).store(used, Ordering::Release);
        crash::point();
    }
}

#[cfg(test)]
mod tests;
