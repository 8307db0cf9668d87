//! How many bytes of large operations a worker has in flight beside small ones.
//!
//! A disk that serves one request after the other makes a 4 KiB read wait for
//! all that was given to it before. While small requests come, large ones are
//! kept to a window, which follows what is measured: it shrinks where large
//! operations take much longer than one that flies alone, because then they
//! only wait for each other, and grows where they do not. (As TCP Vegas does
//! with packets in a path.) Without small requests it is as large as it gets:
//! more than any disk needs to be busy, and less than keeps the next front-end
//! waiting for long.

use std::time::{Duration, Instant};

/// Bytes of the largest operation that is not a large one.
const NOT_LARGE: u64 = 32 << 10;
/// Bytes of the largest request that counts as a small one.
pub(super) const SMALL: u64 = 16 << 10;
/// The smallest window, and what a time is measured for, in bytes.
const UNIT: u64 = 128 << 10;
/// The longest operation beside small requests.
const PIECE: u64 = 64 << 10;
/// The largest window, and what is in flight at most where there is no other.
const LARGEST: u64 = 64 << 20;
/// The longest operation at any time: one that was begun has to end.
const LONGEST: u64 = 4 << 20;
/// Large operations that end without a small request meanwhile, until they have
/// the largest window.
const QUIET: u32 = 64;
/// Of so many large operations, one flies alone.
const ALONE: u32 = 64;
/// So many times what one takes that flies alone is no queue yet.
const QUEUED: u32 = 2;

/// A large operation in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    began: Instant,
    bytes: u64,
    alone: bool,
}

/// What a worker knows of its large operations.
#[derive(Debug)]
pub(super) struct Bulk {
    in_flight: u64,
    window: u64,
    /// How long [`UNIT`] bytes take that fly alone; zero while unknown.
    base: Duration,
    /// Large operations that have ended since a small request came.
    quiet: u32,
    /// Operations until one is to fly alone.
    until_alone: u32,
    /// One is flying that is to stay alone.
    alone: bool,
}

impl Bulk {
    pub(super) fn new() -> Self {
        Self {
            in_flight: 0,
            window: UNIT,
            base: Duration::ZERO,
            quiet: QUIET,
            until_alone: 0,
            alone: false,
        }
    }

    /// Bytes of the longest operation to be begun now: a kernel that is copying
    /// or compressing gives up the CPU, or the disk, only between two.
    pub(super) fn longest(&self) -> u64 {
        if self.quiet >= QUIET { LONGEST } else { PIECE }
    }

    /// An operation of so many bytes is to begin: whether it may. It waits for
    /// others of this worker to end if not.
    pub(super) fn may_begin(&self, bytes: u64) -> bool {
        bytes <= NOT_LARGE
            || self.in_flight == 0
            || self.quiet >= QUIET && self.in_flight + bytes <= LARGEST
            || !self.alone && self.until_alone > 0 && self.in_flight + bytes <= self.window
    }

    /// It begins; to be [ended](Self::end) if it is a large one.
    pub(super) fn begin(&mut self, bytes: u64) -> Option<Flight> {
        if bytes <= NOT_LARGE {
            return None;
        }
        let alone = self.in_flight == 0 && self.until_alone == 0;
        self.until_alone = if alone {
            ALONE
        } else {
            self.until_alone.saturating_sub(1)
        };
        self.alone |= alone;
        self.in_flight += bytes;
        Some(Flight {
            began: Instant::now(),
            bytes,
            alone,
        })
    }

    /// It has ended, carried out or not; `small` if a small request has come
    /// since one ended last.
    pub(super) fn end(&mut self, flight: Flight, carried_out: bool, small: bool) {
        let took = carried_out.then(|| flight.began.elapsed());
        self.ended(flight, took, small);
    }

    fn ended(&mut self, flight: Flight, took: Option<Duration>, small: bool) {
        let was = self.in_flight;
        self.in_flight = was.saturating_sub(flight.bytes);
        self.alone &= !flight.alone;
        let Some(took) = took else { return };
        self.quiet = if small {
            0
        } else {
            self.quiet.saturating_add(1)
        };
        let units = u32::try_from(flight.bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let took = took / units.max(1);
        if flight.alone && self.in_flight == 0 {
            self.base = if self.base.is_zero() {
                took
            } else {
                (self.base * 7 + took) / 8
            };
        }
        if took > self.base * QUEUED {
            self.window = (self.window - flight.bytes.min(self.window) / 4).max(UNIT);
        } else if was + flight.bytes > self.window {
            self.window = (self.window + flight.bytes / 8).min(LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations of [`UNIT`] bytes, as many as may fly, on a disk that takes
    /// `each` for one and serves so many at a time; the most in flight of the
    /// last ones.
    fn fly(bulk: &mut Bulk, small: bool, each: Duration, parallel: u64) -> u64 {
        let mut flights = std::collections::VecDeque::new();
        let mut most = 0;
        for turn in 0..4000 {
            while bulk.may_begin(UNIT) && flights.len() < 1000 {
                flights.push_back(bulk.begin(UNIT).unwrap());
            }
            if turn > 3000 {
                most = most.max(flights.len() as u64);
            }
            let waves = (flights.len() as u64).div_ceil(parallel);
            let flight = flights.pop_front().unwrap();
            let took = each * u32::try_from(waves).unwrap();
            bulk.ended(flight, Some(took), small);
        }
        for flight in flights {
            bulk.ended(flight, Some(each), small);
        }
        most
    }

    #[test]
    fn without_small_requests_there_is_no_limit_but_the_largest() {
        let mut bulk = Bulk::new();
        let most = fly(&mut bulk, false, Duration::from_micros(40), 1);
        assert_eq!(most, LARGEST / UNIT);
    }

    #[test]
    fn a_disk_that_serves_one_after_the_other_gets_few_and_others_what_they_bear() {
        let mut bulk = Bulk::new();
        let most = fly(&mut bulk, true, Duration::from_micros(40), 1);
        assert!((1..=3).contains(&most), "{most}");
        let most = fly(&mut bulk, true, Duration::from_millis(1), 32);
        assert!((32..=70).contains(&most), "{most}");
        let most = fly(&mut bulk, true, Duration::from_micros(400), 4);
        assert!((4..=10).contains(&most), "{most}");
        assert_eq!(bulk.in_flight, 0);
    }

    #[test]
    fn whatever_the_window_one_may_always_fly() {
        let mut bulk = Bulk::new();
        let flight = bulk.begin(16 << 20).unwrap();
        bulk.ended(flight, Some(Duration::from_millis(1)), true);
        assert!(bulk.may_begin(16 << 20));
        let flight = bulk.begin(16 << 20).unwrap();
        assert!(!bulk.may_begin(16 << 20) && bulk.may_begin(4096));
        bulk.ended(flight, Some(Duration::from_secs(9)), true);
        assert!(bulk.may_begin(16 << 20));
    }
}
