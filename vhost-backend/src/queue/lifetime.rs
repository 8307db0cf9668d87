//! How a queue begins, moves, pauses and ends, and what becomes of it when
//! the memory is lost that it lies in.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use vmm_sys_util::eventfd::EventFd;

use super::common::Common;
use super::epochs::Epochs;
use super::ring::Ring;
use super::{Origin, Queue};
use crate::command::{Answer, RingAddresses, RingSetup};
use crate::device::Device;
use crate::held::Holding;
use crate::memory::dirty::{Log, UsedLog};

impl Queue {
    /// Begins to serve a ring; `false` if it cannot be served. What is to be
    /// [resubmitted](Self::resubmit) comes first.
    pub(crate) fn start(&mut self, setup: &RingSetup, epochs: &Epochs) -> bool {
        if self.ring.is_some() {
            return false;
        }
        let Some(memory) = epochs.current() else {
            return false;
        };
        let Some(mut ring) = Ring::new(
            memory,
            setup.size,
            setup.addresses,
            setup.next_avail,
            setup.event_idx,
        ) else {
            return false;
        };
        // Whoever served it before may have ended between answering and
        // interrupting; one interrupt too many does no harm.
        let resumed = ring.resumed();
        if let Some(region) = &setup.inflight {
            let Some(recovered) = ring.recover(region.clone()) else {
                let why = if region.is_lost() {
                    "cannot be reached"
                } else {
                    "makes no sense"
                };
                log::error!(
                    "queue {}: the record of requests in flight {why}",
                    self.number
                );
                return false;
            };
            self.recovered = recovered;
        }
        self.ring = Some(ring);
        self.slots = (0..setup.size).map(|_| None).collect();
        self.held.begin(setup.size);
        self.used_log = setup.used_log;
        self.enabled = setup.enabled;
        self.polled = setup.kick.is_none();
        self.complained = false;
        self.buried = false;
        self.abandoned = false;
        self.rests = false;
        self.probe.restart();
        if resumed {
            self.interrupts.interrupt();
        }
        true
    }

    /// Where writes to the used ring are logged, if this log is kept.
    pub(crate) fn set_used_log(&mut self, at: Option<u64>, log: Option<&Arc<Log>>) {
        self.used_log = at;
        self.set_log(log);
    }

    /// Logs writes to the used ring there, if they are to be.
    pub(crate) fn set_log(&mut self, log: Option<&Arc<Log>>) {
        if let Some(ring) = &mut self.ring {
            ring.log_used(log.zip(self.used_log).map(|(log, at)| UsedLog {
                log: Arc::clone(log),
                at,
            }));
        }
    }

    /// What was answered before may have been told to the last one only, which
    /// nobody listens to any more; one interrupt too many does no harm.
    pub(crate) fn set_call(&mut self, fd: Option<EventFd>) {
        self.interrupts.set_call(fd);
        self.interrupts.interrupt();
    }

    pub(crate) fn set_err(&mut self, fd: Option<EventFd>) {
        self.interrupts.set_err(fd);
    }

    /// Carries out what a predecessor has fetched and not answered (VU-32), as
    /// far as there are tags; the rest comes first when there are some again.
    /// It is in flight whether or not the ring is enabled by now.
    pub(crate) fn resubmit<D: Device>(&mut self, common: &mut Common<D>) {
        if !self.recovered.is_empty() {
            log::info!(
                "queue {}: {} requests are carried out again",
                self.number,
                self.recovered.len()
            );
        }
        self.resubmit_some(common);
    }

    /// Returns how many.
    pub(super) fn resubmit_some<D: Device>(&mut self, common: &mut Common<D>) -> usize {
        if self.rests || common.gate.is_held() {
            return 0;
        }
        let mut heads = std::mem::take(&mut self.recovered);
        let mut count = 0;
        while common.may_fetch()
            && let Some(head) = heads.get(count)
        {
            self.take(*head, Origin::Record, common);
            count += 1;
        }
        heads.drain(..count);
        self.recovered = heads;
        count
    }

    /// Fetches no more; the answer comes from [`settle`](Self::settle). What is
    /// held is left in the record, if that is wanted and there is one; else it
    /// is tried once more and answered.
    pub(crate) fn stop(&mut self, answer: SyncSender<Answer>, leave: bool, holding: &mut Holding) {
        self.wait_no_more();
        if leave && self.is_recorded() {
            self.leave_held(holding);
            // It was not begun, as the disk is held still.
            self.recovered.clear();
        } else {
            self.hold_no_more();
        }
        // Only a session that has gone would have left an earlier one behind.
        if let Some(earlier) = self.stopping.replace(answer) {
            let _ = earlier.send(Answer::Refused);
        }
    }

    /// Nobody waits for its requests, which whoever comes next may find in the
    /// record of those in flight, or offered again: nothing more is fetched.
    pub(crate) fn abandon(&mut self, holding: &mut Holding) {
        self.leave_held(holding);
        self.abandoned = true;
        self.enabled = false;
        self.recovered.clear();
    }

    /// Ends a ring that was told to stop, once nothing is in flight.
    /// Returns whether it ended now.
    pub(crate) fn settle(&mut self) -> bool {
        if self.in_flight() > 0 {
            return false;
        }
        if let Some(answer) = self.pausing.take() {
            self.publish();
            let _ = answer.send(Answer::Done);
        }
        let Some(answer) = self.stopping.take() else {
            return false;
        };
        self.publish();
        let next_avail = self.ring.take().map(Ring::end);
        self.slots = Box::default();
        // A session that has gone does not want to know.
        let _ = answer.send(Answer::Stopped(next_avail));
        true
    }

    /// The ring was moved; `false` if it is not in guest memory there, and
    /// rests.
    pub(crate) fn relocate(&mut self, epochs: &Epochs, addresses: Option<RingAddresses>) -> bool {
        let Some(ring) = &mut self.ring else {
            return true;
        };
        let Some(memory) = epochs.current() else {
            return false;
        };
        let addresses = addresses.unwrap_or(ring.addresses());
        ring.relocate(memory, addresses)
    }

    /// Some memory was lost, perhaps that of the log of dirty pages: the ring
    /// stops if it lay there, or what is recorded of it.
    #[cold]
    pub(crate) fn bury(&mut self, epochs: &Epochs, log_is_lost: bool) {
        let rested = self.ring.as_ref().is_some_and(Ring::rests);
        let reached = self.relocate(epochs, None);
        let Some(ring) = self.ring.as_mut() else {
            return;
        };
        let what = if !reached && !rested {
            "its ring"
        } else if ring.has_lost_record() {
            "its record of requests in flight"
        } else if log_is_lost {
            "the log of dirty pages"
        } else {
            return;
        };
        ring.set_broken();
        if !std::mem::replace(&mut self.buried, true) {
            log::error!(
                "queue {}: {what} lay in memory that was lost; the queue stops",
                self.number
            );
            self.interrupts.report_broken();
        }
    }

    /// As [`stop`](Self::stop), until it is enabled again; what is held stays
    /// so until then instead of being left.
    pub(crate) fn pause(&mut self, answer: SyncSender<Answer>, leave: bool) {
        self.enable(false);
        if leave && self.is_recorded() {
            self.rest_held();
            self.rests = true;
        } else {
            self.hold_no_more();
        }
        if let Some(earlier) = self.pausing.replace(answer) {
            let _ = earlier.send(Answer::Refused);
        }
    }
}
