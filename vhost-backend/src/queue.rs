//! One virtqueue of a worker: fetches requests into a table of slots, one for
//! each descriptor head, and answers them in whatever order they end.
#![allow(unsafe_code)]

pub(crate) mod chain;
mod common;
pub(crate) mod descriptor;
pub(crate) mod disk;
pub(crate) mod epochs;
mod heads;
mod held;
pub(crate) mod interrupts;
mod lifetime;
pub(crate) mod request;
pub(crate) mod ring;
pub(crate) mod tags;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use self::chain::Walked;
pub(crate) use self::common::Common;
use self::epochs::{Epochs, Held};
use self::heads::HeldHeads;
use self::interrupts::{Interrupts, TurnClock};
use self::request::{ChainReader, Data, Parsed};
use self::ring::{Popped, Ring};
use self::tags::Owner;
use crate::command::Answer;
use crate::crash;
use crate::device::{Completion, Device, IoChannel, Status, Tag};
use crate::held::Holding;
use crate::limits::gate::Waiter;
use crate::memory::dirty::{Tracker, mark};
use crate::meter::probe::{Mark, Probe};
use crate::meter::{Meter, QueueMeter};
use crate::probes;

/// Chains that are fetched at a time at least, and at most.
const FEW: usize = 8;
const MANY: usize = 64;

/// So many answers are shown before the turn is over.
const SHOWN: u16 = 8;

/// A request in flight.
#[derive(Debug)]
struct Slot {
    held: Held,
    /// Bytes that a successful request writes before its status.
    writes: u32,
    /// Whether its stages are timed.
    mark: Mark,
    /// It is tried again: it was held before.
    again: bool,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The driver has offered it just now.
    Driver,
    /// A predecessor has recorded it.
    Record,
    /// It was held.
    Hold,
}

/// A queue, started or not. Requests of a stopped queue are still answered
/// until the last has ended; then the ring is forgotten.
#[derive(Debug)]
pub(crate) struct Queue {
    /// As the front-end counts, for messages.
    number: usize,
    /// As its worker counts.
    index: u16,
    /// One for each entry of the ring, while there is one.
    slots: Box<[Option<Slot>]>,
    in_flight: usize,
    ring: Option<Ring>,
    /// What a predecessor has fetched and not answered, until it is carried
    /// out.
    recovered: Vec<u16>,
    /// That waits until the queue is enabled again.
    rests: bool,
    /// What could not be carried out yet.
    held: HeldHeads,
    /// Where writes to the used ring are logged, while there is a log.
    used_log: Option<u64>,
    enabled: bool,
    /// Nobody kicks: the ring has to be looked at now and then (VU-12).
    polled: bool,
    /// What it waits for before it fetches, as far as there are limits.
    waiter: Waiter,
    interrupts: Interrupts,
    probe: Probe,
    stopping: Option<SyncSender<Answer>>,
    /// Fetches nothing, and says so once nothing is in flight.
    pausing: Option<SyncSender<Answer>>,
    /// The driver was already found to offer nonsense.
    complained: bool,
    /// It has stopped as it lay in memory that was lost.
    buried: bool,
    /// Requests that have not ended well are not answered.
    abandoned: bool,
}

impl Queue {
    /// A queue that is not started: `number` for messages, and `index` for its
    /// worker, whose meter comes first; the other one is its own.
    pub(crate) fn new(
        number: usize,
        index: u16,
        (meter, own): (Arc<Meter>, Arc<QueueMeter>),
    ) -> Self {
        Self {
            number,
            index,
            slots: Box::default(),
            in_flight: 0,
            ring: None,
            recovered: Vec::new(),
            rests: false,
            held: HeldHeads::default(),
            used_log: None,
            enabled: false,
            polled: false,
            waiter: Waiter::default(),
            interrupts: Interrupts::default(),
            probe: Probe::new(meter, own),
            stopping: None,
            pausing: None,
            complained: false,
            buried: false,
            abandoned: false,
        }
    }

    pub(crate) fn enable(&mut self, on: bool) {
        self.waiter.leave();
        self.enabled = on;
        if on {
            self.rests = false;
            self.held.keep();
        }
    }

    pub(crate) fn set_polled(&mut self, polled: bool) {
        self.polled = polled;
    }

    /// Requests that were fetched, here or by a predecessor, and are not answered
    /// or held.
    pub(crate) fn in_flight(&self) -> usize {
        let recovered = if self.rests { 0 } else { self.recovered.len() };
        self.in_flight + recovered + self.held.due()
    }

    /// Entries of the ring that is served; 0 if there is none.
    pub(crate) fn entries(&self) -> usize {
        self.slots.len()
    }

    /// There is a ring, or a stop or pause to be answered.
    pub(crate) fn is_served(&self) -> bool {
        self.ring.is_some() || self.stopping.is_some() || self.pausing.is_some()
    }

    /// The ring that requests may be fetched from.
    fn active(&mut self) -> Option<&mut Ring> {
        self.ring
            .as_mut()
            .filter(|ring| self.enabled && self.stopping.is_none() && !ring.broken())
    }

    /// As [`active`](Self::active), unless a limit holds it back, which then
    /// says when to look again.
    fn open(&mut self) -> Option<&mut Ring> {
        if self.waiter.waits() {
            return None;
        }
        self.active()
    }

    /// A limit holds it back.
    pub(crate) fn is_held(&self) -> bool {
        self.waiter.waits()
    }

    /// No limit holds it back any more.
    pub(crate) fn wait_no_more(&mut self) {
        self.waiter.leave();
    }

    /// Whether limits let what there is be fetched, if there is something. The
    /// driver need not kick while they do not.
    #[cold]
    fn is_admitted<D: Device>(&mut self, common: &mut Common<D>) -> bool {
        let has_available = self.active().is_some_and(|ring| ring.has_available());
        if !has_available {
            self.waiter.leave();
            return true;
        }
        let admitted = common.gate.admits(&mut self.waiter);
        if !admitted && let Some(ring) = &mut self.ring {
            ring.disarm();
        }
        admitted
    }

    /// Has to be looked at without a kick.
    pub(crate) fn needs_polling(&mut self) -> bool {
        self.polled && self.open().is_some()
    }

    /// The driver has offered something that could be fetched.
    pub(crate) fn has_available(&mut self) -> bool {
        self.open().is_some_and(|ring| ring.has_available())
    }

    /// Asks for a kick before the worker sleeps; `true` if there is something
    /// to fetch already (RING-16).
    pub(crate) fn arm(&mut self) -> bool {
        let polled = self.polled;
        self.open().is_some_and(|ring| !polled && ring.arm())
    }

    /// Fetches a part of what there is, as far as there are tags; returns how
    /// many chains. A quarter of what the driver has out is few enough that
    /// driver, worker and disk work at the same time, and enough to share what
    /// a turn costs.
    pub(crate) fn fetch_some<D: Device>(&mut self, common: &mut Common<D>) -> usize {
        let waiting = self.active().map_or(0, |ring| usize::from(ring.waiting()));
        let most = (waiting + self.in_flight) / 4;
        let fetched = self.fetch(most.clamp(FEW, MANY), common);
        self.probe.carries(self.in_flight);
        fetched
    }

    /// Fetches up to `most` chains.
    pub(crate) fn fetch<D: Device>(&mut self, most: usize, common: &mut Common<D>) -> usize {
        if !self.recovered.is_empty() {
            return self.resubmit_some(common);
        }
        if self.held.due() > 0 {
            return self.try_held_again(most, common);
        }
        for count in 0..most {
            if common.gate.is_on() && common.may_fetch() && !self.is_admitted(common) {
                return count;
            }
            let Some(ring) = self.active().filter(|_| common.may_fetch()) else {
                return count;
            };
            let popped = ring.pop();
            if count == 0 && popped != Popped::Empty {
                ring.disarm();
            }
            match popped {
                Popped::Empty => return count,
                Popped::Head(head) => self.take(head, Origin::Driver, common),
                Popped::OutOfRange(head) => self.complain("offers a chain beyond its table", head),
                Popped::Broken => {
                    log::error!(
                        "queue {}: the driver's index is out of bounds; the queue stops",
                        self.number
                    );
                    self.interrupts.report_broken();
                    return count;
                }
            }
        }
        most
    }

    /// Carries out a request: a new one, or one that was fetched before.
    #[inline(always)]
    fn take<D: Device>(&mut self, head: u16, origin: Origin, common: &mut Common<D>) {
        let Common {
            channel,
            epochs,
            scratch,
            disk,
            tags,
            dirty,
            gate,
            timed,
            ..
        } = common;
        let (Some(ring), Some(slot)) = (&mut self.ring, self.slots.get_mut(usize::from(head)))
        else {
            return;
        };
        if origin == Origin::Driver {
            if slot.is_some() || self.held.has(head) {
                // It will be answered once, for the first time it was offered
                // (RING-21).
                self.complain("offers a chain again that is in flight", head);
                return;
            }
            ring.fetched(head);
        }
        let owner = Owner {
            queue: self.index,
            head,
        };
        let Some(tag) = tags.take(owner) else {
            // Whoever calls this has looked; it would come first next time.
            match origin {
                Origin::Hold => self.held.put_back(head),
                Origin::Driver | Origin::Record => self.recovered.push(head),
            }
            return;
        };
        let walked = epochs.walk(scratch, ring, head);
        let (mut chain, status) = match walked {
            Walked::Good(chain, status) => (chain, status),
            Walked::Bad(status) => {
                if let (Some(dirty), Some(status), Some(memory)) =
                    (dirty.as_mut(), &status, epochs.current())
                {
                    dirty.note(tag, memory, &[status.piece()]);
                }
                if let Some(status) = status {
                    epochs.finish_now(status, Status::IoErr);
                }
                return self.answer_now(head, tag, 0, common);
            }
        };
        if let Some(dirty) = dirty {
            let (memory, pieces) = chain.written();
            dirty.note(tag, memory, pieces);
            dirty.note(tag, memory, &[status.piece()]);
        }
        let parsed = request::parse(&mut chain, &disk.terms());
        // What was read may have been zeros in place of memory that was lost.
        let parsed = if epochs.are_stale() {
            Parsed::Unreachable
        } else {
            parsed
        };
        let (outcome, written) = match parsed {
            Parsed::Done(outcome, written) => (outcome, written),
            Parsed::Unreachable => {
                self.complain("has a request in memory that cannot be reached", head);
                (Status::IoErr, 0)
            }
            // The disk is held still, and its ring waits for an answer.
            Parsed::Io(..) if origin == Origin::Hold && gate.is_held() => (Status::IoErr, 0),
            Parsed::Io(op, data) => {
                let (pieces, writes) = match data {
                    Data::None => (Some(&[][..]), 0),
                    Data::Readable => {
                        self.probe.writes(chain.readable());
                        (chain.readable_pieces(), 0)
                    }
                    Data::Writable(bytes) => {
                        self.probe.reads(bytes);
                        (chain.writable_pieces(), bytes)
                    }
                };
                if let Some(pieces) = pieces {
                    if gate.is_on() && origin != Origin::Hold {
                        let bytes = pieces.iter().map(|piece| piece.iov_len as u64).sum();
                        gate.charge(&mut self.waiter, &op, bytes);
                    }
                    let mark = self.probe.fetched(&op, timed);
                    probes::fetched(self.index, head);
                    // SAFETY: the pieces are of the memory that the chain was
                    // walked over, which is held below until the request ends.
                    unsafe { channel.submit(Tag(tag), op, pieces) };
                    *slot = Some(Slot {
                        held: epochs.hold(status),
                        writes,
                        mark,
                        again: origin == Origin::Hold,
                    });
                    self.in_flight += 1;
                    crash::point();
                    return;
                }
                (Status::IoErr, 0)
            }
        };
        epochs.finish_now(status, outcome);
        self.answer_now(head, tag, written.saturating_add(1), common);
    }

    /// Answers a request that needed no I/O; its status is written.
    fn answer_now<D: Device>(&mut self, head: u16, tag: u32, len: u32, common: &mut Common<D>) {
        mark(&mut common.dirty, tag);
        common.tags.give_back(tag);
        if let Some(ring) = &mut self.ring {
            ring.answer(head, len);
        }
    }

    fn complain(&mut self, what: &str, head: u16) {
        if !std::mem::replace(&mut self.complained, true) {
            log::warn!(
                "queue {}: the driver {what} (head {head}); not reported again",
                self.number
            );
        }
    }

    /// Answers the request with this descriptor head, which has ended, and
    /// whose tag was given back.
    pub(crate) fn complete(
        &mut self,
        head: u16,
        Completion { tag, status }: Completion,
        epochs: &mut Epochs,
        dirty: &mut Option<Tracker>,
        holding: &mut Holding,
    ) {
        let Some(slot) = self.slots.get_mut(usize::from(head)).and_then(Option::take) else {
            log::error!(
                "queue {}: a request was reported that is not in flight (head {head})",
                self.number
            );
            return;
        };
        self.in_flight -= 1;
        if slot.mark != Mark::NONE {
            let is_answered = status == Status::Ok || !self.abandoned;
            self.probe.ended(slot.mark, is_answered);
        }
        probes::ended(self.index, head);
        if slot.again {
            holding.end(status);
        }
        if status != Status::Ok && self.abandoned {
            epochs.leave(&slot.held);
            mark(dirty, tag.0);
            return;
        }
        let status = epochs.finish(slot.held, status);
        crash::point();
        mark(dirty, tag.0);
        if let Some(ring) = &mut self.ring {
            let data = if status == Status::Ok { slot.writes } else { 0 };
            ring.answer(head, data.saturating_add(1));
            if ring.hidden() >= SHOWN {
                ring.show();
                self.probe.shown();
            }
        }
    }

    /// What was fetched is given to the kernel now.
    #[cold]
    pub(crate) fn submitted(&mut self) {
        self.probe.submitted();
    }

    /// Shows the driver what was answered since, with one interrupt at most.
    pub(crate) fn publish(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        ring.show();
        self.probe.shown();
        let untold = ring.untold();
        if untold > 0 {
            let wanted = ring.wants_interrupt();
            if wanted {
                probes::interrupted(self.index);
                self.interrupts.interrupt();
            }
            self.probe.told(untold, wanted);
            self.probe.carries(self.in_flight);
        }
    }

    /// As [`publish`](Self::publish) amid work: an interrupt may be put off
    /// until it is due, or `publish` is called.
    pub(crate) fn show(&mut self, clock: &mut TurnClock) {
        let Some(ring) = &mut self.ring else { return };
        ring.show();
        self.probe.shown();
        let untold = ring.untold();
        if untold > 0 && self.interrupts.are_due(clock) {
            let wanted = ring.wants_interrupt();
            if wanted {
                probes::interrupted(self.index);
                self.interrupts.interrupt_amid(clock);
            }
            self.probe.told(untold, wanted);
            self.probe.carries(self.in_flight);
        }
    }
}

#[cfg(test)]
mod cost_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod dirty_tests;
#[cfg(test)]
mod tests;
