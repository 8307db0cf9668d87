//! Follows some requests of a queue along their way. All others cost a
//! countdown when they begin and a comparison when they end.

use std::sync::Arc;

use super::queues::Carried;
use super::{Meter, QueueMeter, Stage};
use crate::device::{Op, OpKind};
use crate::sys;

/// One request in so many is followed: no power of two, so that it is not
/// always the same one of a batch.
pub const SAMPLED: u32 = 127;

/// Requests of a queue that are followed at a time.
const FOLLOWED: usize = 4;

/// Which of those that are followed a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(u8);

impl Mark {
    /// It is not followed.
    pub(crate) const NONE: Mark = Mark(u8::MAX);
}

/// Where a request is that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// Nowhere: the place is free.
    #[default]
    Free,
    Fetched,
    Submitted,
    Ended,
    Published,
}

#[derive(Debug, Clone, Copy)]
struct Followed {
    at: At,
    kind: OpKind,
    fetched: u64,
    /// Since when it is where it is.
    since: u64,
}

/// Of one queue.
#[derive(Debug)]
pub(crate) struct Probe {
    meter: Arc<Meter>,
    queue: Arc<QueueMeter>,
    carried: Carried,
    /// Requests until the next one that is followed.
    left: u32,
    /// Some have ended, and the driver was not shown that.
    unpublished: bool,
    /// Some were shown, and the driver was not told.
    untold: bool,
    followed: [Followed; FOLLOWED],
}

impl Probe {
    pub(crate) fn new(meter: Arc<Meter>, queue: Arc<QueueMeter>) -> Self {
        Self {
            meter,
            queue,
            carried: Carried::default(),
            left: 1,
            unpublished: false,
            untold: false,
            followed: [Followed {
                at: At::Free,
                kind: OpKind::Flush,
                fetched: 0,
                since: 0,
            }; FOLLOWED],
        }
    }

    /// A request begins; whether it is followed, which sets `timed`.
    #[inline(always)]
    pub(crate) fn fetched(&mut self, op: &Op, timed: &mut bool) -> Mark {
        self.left = self.left.wrapping_sub(1);
        if self.left != 0 {
            return Mark::NONE;
        }
        *timed = true;
        self.follow(op.kind())
    }

    #[cold]
    fn follow(&mut self, kind: OpKind) -> Mark {
        self.left = SAMPLED;
        let free = self.followed.iter_mut().zip(0..);
        let mut free = free.filter(|(one, _)| one.at == At::Free);
        let Some((place, number)) = free.next() else {
            return Mark::NONE;
        };
        let now = sys::monotonic_ns();
        *place = Followed {
            at: At::Fetched,
            kind,
            fetched: now,
            since: now,
        };
        Mark(number)
    }

    /// The request that begins reads so many bytes.
    #[inline(always)]
    pub(crate) fn reads(&mut self, bytes: u32) {
        self.carried.read += u64::from(bytes);
    }

    /// The request that begins writes so many bytes.
    #[inline(always)]
    pub(crate) fn writes(&mut self, bytes: u64) {
        self.carried.written += bytes;
    }

    /// So many are in flight now.
    #[inline(always)]
    pub(crate) fn carries(&self, in_flight: usize) {
        self.carried.show(&self.queue, in_flight);
    }

    /// What was fetched is given to the kernel.
    #[cold]
    pub(crate) fn submitted(&mut self) {
        self.pass(At::Fetched, At::Submitted, Some(Stage::Submit));
    }

    /// A request has ended that is followed, and will be answered or not.
    #[cold]
    pub(crate) fn ended(&mut self, mark: Mark, is_answered: bool) {
        let Some(one) = self.followed.get_mut(usize::from(mark.0)) else {
            return;
        };
        let now = sys::monotonic_ns();
        // It may have needed no I/O, and ended in the turn that fetched it.
        if one.at == At::Fetched {
            self.meter.stage(Stage::Submit, 0);
        }
        self.meter.stage(Stage::Io, now.saturating_sub(one.since));
        one.since = now;
        one.at = if is_answered { At::Ended } else { At::Free };
        self.unpublished |= is_answered;
    }

    /// The driver was shown all answers.
    #[inline(always)]
    pub(crate) fn shown(&mut self) {
        if self.unpublished {
            self.publish();
        }
    }

    #[cold]
    fn publish(&mut self) {
        self.unpublished = false;
        self.untold = true;
        self.pass(At::Ended, At::Published, Some(Stage::Publish));
    }

    /// The driver was told of so many answers that it was shown, by an
    /// interrupt or by none.
    #[inline(always)]
    pub(crate) fn told(&mut self, answers: u16, interrupt: bool) {
        self.meter.told(answers, interrupt);
        self.queue.told(answers);
        if self.untold {
            self.tell(interrupt);
        }
    }

    #[cold]
    fn tell(&mut self, interrupt: bool) {
        self.untold = false;
        self.pass(
            At::Published,
            At::Free,
            interrupt.then_some(Stage::Interrupt),
        );
    }

    /// All that are at one place go on to another, which ends this stage.
    fn pass(&mut self, from: At, to: At, stage: Option<Stage>) {
        let now = sys::monotonic_ns();
        for one in self.followed.iter_mut().filter(|one| one.at == from) {
            if let Some(stage) = stage {
                self.meter.stage(stage, now.saturating_sub(one.since));
            }
            if to == At::Published {
                let whole = now.saturating_sub(one.fetched);
                self.meter.request(one.kind, whole);
                self.queue.took(whole);
            }
            one.at = to;
            one.since = now;
        }
    }

    /// A ring begins: what is left of an earlier one is not followed further.
    pub(crate) fn restart(&mut self) {
        self.carries(0);
        *self = Self {
            carried: self.carried,
            ..Self::new(Arc::clone(&self.meter), Arc::clone(&self.queue))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Meters;
    use super::*;

    fn counts(meters: &Meters) -> [u64; 5] {
        let read = meters.read();
        let [submit, io, publish, interrupt] = read.stages.map(|times| times.count());
        let whole = read.requests.map(|times| times.count()).iter().sum();
        [submit, io, publish, interrupt, whole]
    }

    fn probe() -> (Meters, Probe) {
        let mut meters = Meters::default();
        let meter = meters.another();
        (meters, Probe::new(meter, Arc::default()))
    }

    const READ: Op = Op::Read { offset: 0 };

    #[test]
    fn the_first_request_is_followed_and_each_one_so_much_later() {
        let (_, mut probe) = probe();
        let followed = (0..3 * SAMPLED).filter(|_| probe.fetched(&READ, &mut false) != Mark::NONE);
        assert_eq!(followed.count(), 3);
    }

    #[test]
    fn each_stage_of_a_request_is_counted_once() {
        let (meters, mut probe) = probe();
        let mark = probe.fetched(&READ, &mut false);
        assert_eq!(counts(&meters), [0; 5]);
        probe.submitted();
        assert_eq!(counts(&meters), [1, 0, 0, 0, 0]);
        probe.ended(mark, true);
        assert_eq!(counts(&meters), [1, 1, 0, 0, 0]);
        probe.shown();
        probe.shown();
        assert_eq!(counts(&meters), [1, 1, 1, 0, 1]);
        probe.told(1, true);
        probe.told(1, true);
        assert_eq!(counts(&meters), [1, 1, 1, 1, 1]);
        assert_eq!(meters.read().requests[OpKind::Read.index()].count(), 1);
    }

    #[test]
    fn who_needs_no_interrupt_has_no_time_of_one() {
        let (meters, mut probe) = probe();
        let mark = probe.fetched(&READ, &mut false);
        probe.ended(mark, true);
        probe.shown();
        probe.told(9, false);
        assert_eq!(counts(&meters), [1, 1, 1, 0, 1]);
        assert_eq!(meters.read().interrupts_saved, 9);
    }

    #[test]
    fn places_come_free_again_and_more_than_there_are_is_not_followed() {
        let (meters, mut probe) = probe();
        let next = |probe: &mut Probe| {
            probe.left = 1;
            probe.fetched(&READ, &mut false)
        };
        let marks: Vec<Mark> = (0..FOLLOWED).map(|_| next(&mut probe)).collect();
        assert_eq!(next(&mut probe), Mark::NONE);
        probe.submitted();
        // One is left to who comes next, and never answered.
        probe.ended(marks[0], false);
        assert_eq!(next(&mut probe), marks[0]);
        probe.ended(marks[1], true);
        probe.shown();
        assert_eq!(next(&mut probe), Mark::NONE, "it was not told yet");
        probe.told(1, true);
        assert_eq!(next(&mut probe), marks[1]);
        assert_eq!(counts(&meters), [4, 2, 1, 1, 1]);
        probe.restart();
        assert_ne!(next(&mut probe), Mark::NONE);
    }
}
