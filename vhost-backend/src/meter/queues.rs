//! What is counted of each queue, for others to read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{Histogram, Times, add};

/// The counters of one queue, in cache lines of its own. Its worker alone
/// writes to them.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct QueueMeter {
    answers: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    in_flight: AtomicU64,
    times: Histogram,
}

impl QueueMeter {
    /// So many more were answered.
    #[inline(always)]
    pub(super) fn told(&self, answers: u16) {
        add(&self.answers, u64::from(answers));
    }

    /// One that was timed has taken so long.
    pub(super) fn took(&self, ns: u64) {
        self.times.note(ns);
    }

    fn read(&self, number: usize) -> QueueActivity {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut times = Times::default();
        self.times.add_to(&mut times);
        QueueActivity {
            number,
            requests: read(&self.answers),
            read_bytes: read(&self.read_bytes),
            written_bytes: read(&self.written_bytes),
            in_flight: read(&self.in_flight),
            times,
        }
    }
}

/// What has happened to one queue since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueActivity {
    /// As the front-end counts, from 0.
    pub number: usize,
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of reads that were fetched.
    pub read_bytes: u64,
    /// Bytes of writes that were fetched.
    pub written_bytes: u64,
    /// Requests that were fetched and had not ended when the worker looked
    /// last.
    pub in_flight: u64,
    /// From when a request's chain was read until the driver was shown the
    /// answer: one request in [`SAMPLED`](super::SAMPLED).
    pub times: Times,
}

/// The worker's own side: plain numbers, shown once for many requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Carried {
    /// Has others see it.
    #[inline(always)]
    pub(super) fn show(self, meter: &QueueMeter, in_flight: usize) {
        meter.read_bytes.store(self.read, Ordering::Relaxed);
        meter.written_bytes.store(self.written, Ordering::Relaxed);
        meter.in_flight.store(in_flight as u64, Ordering::Relaxed);
    }
}

/// Those that something was asked of, in their order.
pub(super) fn used(meters: &[std::sync::Arc<QueueMeter>]) -> Vec<QueueActivity> {
    let read = meters.iter().zip(0..).map(|(one, number)| one.read(number));
    read.filter(|one| one.requests > 0 || one.in_flight > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn queues_that_were_used_are_told_with_their_numbers() {
        let meters: Vec<_> = (0..4).map(|_| Arc::<QueueMeter>::default()).collect();
        meters[1].told(3);
        meters[1].took(2000);
        let carried = Carried {
            read: 4096,
            written: 512,
        };
        carried.show(&meters[3], 2);
        let told = used(&meters);
        let numbers: Vec<_> = told.iter().map(|one| one.number).collect();
        assert_eq!(numbers, [1, 3]);
        assert_eq!((told[0].requests, told[0].times.count()), (3, 1));
        let carried = (told[1].read_bytes, told[1].written_bytes, told[1].in_flight);
        assert_eq!(carried, (4096, 512, 2));
    }
}
