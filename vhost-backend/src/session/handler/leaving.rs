//! How rings stop, one by one or as the front-end goes, and who waits for it.

use super::Handler;
use super::kept::Signals;
use crate::command::{Answer, Command};
use crate::device::Device;
use crate::memory::Memory;
use crate::session::features::Negotiated;
use crate::session::vring::{Kick, Vring};
use crate::worker::workers::ForWhom;

impl<D: Device> Handler<D> {
    /// The front-end has gone: nothing of it is used any more (VU-43).
    /// `stopping`: the process ends, which has limits of its own.
    pub(crate) fn disconnect(&mut self, stopping: bool) {
        self.leaves = Some(stopping);
        self.reset();
        self.release_image();
        for queue in 0..self.vrings.len() {
            self.workers
                .tell(queue, Command::Call { queue, fd: None }, &self.for_whom());
            self.workers
                .tell(queue, Command::Err { queue, fd: None }, &self.for_whom());
        }
        self.replace_memory(Memory::default(), true);
        for signals in &mut self.signals {
            *signals = Signals::default();
        }
        self.negotiated = Negotiated::default();
        self.front_end = None;
        self.leaves = None;
    }

    /// Who waits for what workers are told.
    pub(crate) fn for_whom(&self) -> ForWhom<'_> {
        let stream = match self.leaves {
            None => self.front_end.as_ref(),
            Some(false) => None,
            Some(true) => return ForWhom::Us,
        };
        ForWhom::FrontEnd {
            stream,
            recorded: self.inflight.is_some(),
        }
    }

    /// Stops all rings; what they hold is left in the record with `leave`.
    pub(super) fn stop_all(&mut self, leave: bool) {
        let running: Vec<usize> = (0..self.vrings.len())
            .filter(|queue| {
                self.vrings
                    .get(*queue)
                    .is_some_and(|ring| ring.running.is_some())
            })
            .collect();
        // None takes up more while another is drained.
        for queue in &running {
            let order = Command::Enable {
                queue: *queue,
                on: false,
            };
            self.workers.tell(*queue, order, &self.for_whom());
        }
        for queue in running {
            self.stop_worker(queue, leave);
        }
        for ring in &mut self.vrings {
            ring.kick = Kick::Missing;
        }
        self.release_unused_image();
    }

    /// Where a ring goes on that is stopped or paused now, this record says what
    /// it holds: not in another process, where the guest moves to.
    pub(super) fn may_leave_held(&self) -> bool {
        !self.negotiated.logs_data()
    }

    pub(super) fn stop_worker(&mut self, queue: usize, leave: bool) {
        let runs = |ring: &&mut Vring| ring.running.is_some();
        if self.vrings.get_mut(queue).filter(runs).is_none() {
            return;
        }
        let order = Command::Stop { queue, leave };
        let next_avail = match self.workers.tell(queue, order, &self.for_whom()) {
            Answer::Stopped(next_avail) => next_avail,
            Answer::Done | Answer::Refused => None,
        };
        if let Some(ring) = self.vrings.get_mut(queue) {
            ring.stopped(next_avail);
        }
    }
}
