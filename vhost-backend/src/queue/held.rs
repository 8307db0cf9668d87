//! Requests of a queue that could not be carried out yet.
//!
//! None waits for another. One that is held is in flight, as it is not answered,
//! and virtio promises no order among requests in flight: one that overlaps it
//! may be answered before it, and is written over when it lands. The same is so
//! with any disk that takes long, and after a kill, when what the record has
//! comes after what was answered. A driver that wants an order waits for the
//! answer before it submits the next: page caches, journals and swap do. Keeping
//! ranges of all queues would cost each request a look, and gain nobody anything.
//! A FLUSH covers what was answered before it, so it does not wait either.

use super::common::Common;
use super::epochs::Epochs;
use super::heads::Fate;
use super::ring::Ring;
use super::{Origin, Queue};
use crate::device::{Device, GivenBack, Status};
use crate::held::Holding;
use crate::memory::dirty::{Tracker, mark};

impl Queue {
    pub(super) fn is_recorded(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::is_recorded)
    }

    /// A request with this descriptor head cannot be carried out now; its tag
    /// was given back.
    #[cold]
    pub(crate) fn hold(
        &mut self,
        head: u16,
        back: GivenBack,
        epochs: &mut Epochs,
        dirty: &mut Option<Tracker>,
        holding: &mut Holding,
    ) {
        let Some(slot) = self.slots.get_mut(usize::from(head)).and_then(Option::take) else {
            return;
        };
        self.in_flight -= 1;
        // Some of it may have been read by now.
        mark(dirty, back.tag.0);
        if self.held.fate == Fate::Kept {
            epochs.leave(&slot.held);
            holding.hold(slot.again, back.longest, back.why);
            self.held.heads.push_back(head);
            return;
        }
        if slot.again {
            holding.let_go(1);
        }
        if self.held.fate == Fate::Left {
            epochs.leave(&slot.held);
            return;
        }
        epochs.finish(slot.held, Status::IoErr);
        holding.fail();
        if let Some(ring) = &mut self.ring {
            ring.answer(head, 1);
        }
    }

    /// It is time to try one again, or all; whether there are any that may be.
    pub(crate) fn held_are_due(&mut self, all: bool) -> bool {
        let count = self.held.heads.len();
        if count == 0 || self.active().is_none() {
            return false;
        }
        self.held.due = if all { count } else { self.held.due.max(1) };
        true
    }

    /// Carries out those that are due, as far as there are tags; returns how
    /// many.
    #[cold]
    pub(super) fn try_held_again<D: Device>(
        &mut self,
        most: usize,
        common: &mut Common<D>,
    ) -> usize {
        let still = common.gate.is_held();
        if still && self.held.fate != Fate::Answered {
            return 0;
        }
        let mut count = 0;
        while count < most && self.held.due > 0 && common.may_fetch() {
            let Some(head) = self.held.heads.pop_front() else {
                self.held.due = 0;
                break;
            };
            self.held.due -= 1;
            if !still {
                common.holding.try_again();
            }
            self.take(head, Origin::Hold, common);
            let slot = self.slots.get(usize::from(head));
            if slot.is_some_and(Option::is_none) && !self.held.has(head) {
                // It was answered at once.
                common.holding.let_go(1);
                if still {
                    common.holding.fail();
                }
            }
            count += 1;
        }
        count
    }

    /// What is held stays in the record.
    pub(super) fn leave_held(&mut self, holding: &mut Holding) {
        let count = self.held.heads.len();
        if count > 0 {
            log::info!(
                "queue {}: {count} held requests are left to whoever comes next",
                self.number
            );
        }
        holding.let_go(count);
        self.held.heads.clear();
        self.held.due = 0;
        self.held.fate = Fate::Left;
    }

    /// What is held stays so until the queue is enabled again.
    pub(super) fn rest_held(&mut self) {
        self.held.due = 0;
    }

    /// What is held is tried once more, and answered however that ends; without
    /// a try where the disk is held still.
    pub(super) fn hold_no_more(&mut self) {
        let count = self.held.heads.len();
        if count > 0 {
            log::warn!(
                "queue {}: {count} held requests are tried once more, and fail if that fails: nobody would find them later",
                self.number
            );
        }
        self.held.due = count;
        self.held.fate = Fate::Answered;
    }
}
