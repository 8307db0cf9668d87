//! What workers count of their own doings, for others to read: interrupts,
//! looks for work, and how long the stages of some requests take.
//!
//! Each worker has a meter of its own and is the only one that writes to it, so
//! that counting takes plain loads and stores.

mod histogram;
pub(crate) mod probe;
mod queues;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use self::histogram::{BOUNDS, BUCKETS, Times};
use self::histogram::{Histogram, add};
pub use self::probe::SAMPLED;
pub use self::queues::QueueActivity;
pub(crate) use self::queues::QueueMeter;
use crate::device::OpKind;

/// A part of a request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From when its chain was read until it is given to the kernel with the
    /// others of its batch.
    Submit,
    /// Until the worker takes its result.
    Io,
    /// Until the driver is shown the answer.
    Publish,
    /// Until it is interrupted for that, where it wants to be.
    Interrupt,
}

impl Stage {
    /// In the order in which a request comes to them.
    pub const ALL: [Stage; 4] = [Stage::Submit, Stage::Io, Stage::Publish, Stage::Interrupt];

    /// A lower-case word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Io => "io",
            Self::Publish => "publish",
            Self::Interrupt => "interrupt",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Submit => 0,
            Self::Io => 1,
            Self::Publish => 2,
            Self::Interrupt => 3,
        }
    }
}

/// The counters of one worker, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Meter {
    interrupts: AtomicU64,
    spared: AtomicU64,
    found: AtomicU64,
    found_ns: AtomicU64,
    vain: AtomicU64,
    vain_ns: AtomicU64,
    stages: [Histogram; Stage::ALL.len()],
    requests: [Histogram; OpKind::ALL.len()],
}

impl Meter {
    /// The driver was told of so many answers, at least one, by an interrupt or
    /// by none.
    pub(crate) fn told(&self, answers: u16, interrupt: bool) {
        if interrupt {
            add(&self.interrupts, 1);
        }
        let saved = answers.wrapping_sub(u16::from(interrupt));
        add(&self.spared, u64::from(saved));
    }

    /// The worker has looked for work for so long.
    pub(crate) fn looked(&self, found: bool, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (count, sum) = if found {
            (&self.found, &self.found_ns)
        } else {
            (&self.vain, &self.vain_ns)
        };
        add(count, 1);
        add(sum, ns);
    }

    fn stage(&self, stage: Stage, ns: u64) {
        if let Some(histogram) = self.stages.get(stage.index()) {
            histogram.note(ns);
        }
    }

    fn request(&self, kind: OpKind, ns: u64) {
        if let Some(histogram) = self.requests.get(kind.index()) {
            histogram.note(ns);
        }
    }
}

/// What all workers have counted since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    /// Interrupts sent to drivers.
    pub interrupts: u64,
    /// Answers that took no interrupt of their own: the driver was awake, or
    /// one was sent for several.
    pub interrupts_saved: u64,
    /// Looks for work that found some, and the time they took.
    pub looks_found: u64,
    /// See `looks_found`.
    pub looks_found_time: Duration,
    /// Looks for work in vain, and the time they took.
    pub looks_vain: u64,
    /// See `looks_vain`.
    pub looks_vain_time: Duration,
    /// How long stages took, by [`Stage::index`]: one request in [`SAMPLED`].
    pub stages: [Times; Stage::ALL.len()],
    /// From when a request's chain was read until the driver was shown the
    /// answer, by [`OpKind::index`]: one request in [`SAMPLED`].
    pub requests: [Times; OpKind::ALL.len()],
    /// Queues that something was asked of, in their order.
    pub queues: Vec<QueueActivity>,
}

/// The meters of all workers and queues of a server.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    workers: Vec<Arc<Meter>>,
    queues: Vec<Arc<QueueMeter>>,
}

impl Meters {
    /// Those of so many queues, whose workers are still to come.
    pub(crate) fn of_queues(queues: usize) -> Self {
        Self {
            workers: Vec::new(),
            queues: (0..queues).map(|_| Arc::default()).collect(),
        }
    }

    /// Of each queue.
    pub(crate) fn queues(&self) -> &[Arc<QueueMeter>] {
        &self.queues
    }

    /// One for one more worker.
    pub(crate) fn another(&mut self) -> Arc<Meter> {
        let meter = Arc::new(Meter::default());
        self.workers.push(Arc::clone(&meter));
        meter
    }

    /// The sums over all workers, and each queue.
    #[must_use]
    pub fn read(&self) -> Activity {
        let mut sum = Activity {
            queues: queues::used(&self.queues),
            ..Activity::default()
        };
        for meter in &self.workers {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            sum.interrupts += read(&meter.interrupts);
            sum.interrupts_saved += read(&meter.spared);
            sum.looks_found += read(&meter.found);
            sum.looks_found_time += Duration::from_nanos(read(&meter.found_ns));
            sum.looks_vain += read(&meter.vain);
            sum.looks_vain_time += Duration::from_nanos(read(&meter.vain_ns));
            for (times, one) in sum.stages.iter_mut().zip(&meter.stages) {
                one.add_to(times);
            }
            for (times, one) in sum.requests.iter_mut().zip(&meter.requests) {
                one.add_to(times);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meters_of_all_workers_are_added_up() {
        let mut meters = Meters::default();
        let (one, two) = (meters.another(), meters.another());
        one.told(3, true);
        two.told(4, false);
        two.told(1, true);
        one.looked(true, Duration::from_micros(2));
        two.looked(false, Duration::from_micros(5));
        two.looked(false, Duration::from_micros(1));
        one.stage(Stage::Io, 2000);
        two.request(OpKind::Write, 3000);
        let sum = meters.read();
        assert_eq!((sum.interrupts, sum.interrupts_saved), (2, 6));
        assert_eq!((sum.looks_found, sum.looks_vain), (1, 2));
        assert_eq!(sum.looks_found_time, Duration::from_micros(2));
        assert_eq!(sum.looks_vain_time, Duration::from_micros(6));
        assert_eq!(sum.stages[Stage::Io.index()].count(), 1);
        assert_eq!(sum.requests[OpKind::Write.index()].sum_ns, 3000);
    }

    #[test]
    fn places_of_stages_are_their_own() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage.index(), at, "{}", stage.name());
        }
        for (at, kind) in OpKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), at, "{}", kind.name());
        }
    }
}
