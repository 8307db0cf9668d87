//! Which memory table each request in flight uses: a table stays mapped until
//! the last request that was fetched with it has been answered (VU-21).
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use crate::device::Status;
use crate::memory::Memory;
use crate::memory::sigbus::losses;
use crate::queue::chain::{Scratch, StatusByte, Walked};
use crate::queue::ring::Ring;

#[derive(Debug)]
struct Epoch {
    memory: Arc<Memory>,
    in_flight: usize,
    /// Some of it could not be reached: its requests may have read zeros, or
    /// written where the guest does not see it.
    damaged: bool,
}

/// A request's claim on the memory it was fetched with, and where its status
/// goes. Given back by [`Epochs::finish`].
#[derive(Debug)]
pub(crate) struct Held {
    epoch: u64,
    status: StatusByte,
}

/// The current memory table and the older ones still in use.
#[derive(Debug)]
pub(crate) struct Epochs {
    /// The current one is the last; never empty.
    epochs: VecDeque<Epoch>,
    /// The number of the first.
    first: u64,
    /// [`losses`] when the tables were last looked at.
    losses: u64,
}

impl Epochs {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self {
            epochs: VecDeque::from([Epoch {
                memory,
                in_flight: 0,
                damaged: false,
            }]),
            first: 0,
            losses: losses(),
        }
    }

    /// Memory was lost since the tables were last [looked at](Self::bury):
    /// whatever was read from them since may have been zeros.
    #[inline(always)]
    pub(crate) fn are_stale(&self) -> bool {
        losses() != self.losses
    }

    /// Takes what was lost out of the current table, and remembers that
    /// requests in flight may have used it. Returns whether there is a new
    /// table.
    #[cold]
    pub(crate) fn bury(&mut self) -> bool {
        // What is lost from here on is seen the next time.
        self.losses = losses();
        for epoch in &mut self.epochs {
            epoch.damaged |= epoch.memory.has_losses();
        }
        let rest = self.current().and_then(|memory| memory.without_losses());
        let is_new = rest.is_some();
        if let Some(rest) = rest {
            self.replace(Arc::new(rest));
        }
        is_new
    }

    /// The table that new requests use.
    pub(crate) fn current(&self) -> Option<&Arc<Memory>> {
        self.epochs.back().map(|epoch| &epoch.memory)
    }

    /// Requests fetched from now on use this table.
    pub(crate) fn replace(&mut self, memory: Arc<Memory>) {
        self.epochs.push_back(Epoch {
            memory,
            in_flight: 0,
            damaged: false,
        });
        self.drop_unused();
    }

    /// Requests fetched from now on can be told from earlier ones by
    /// [`only_current`](Self::only_current).
    pub(crate) fn renew(&mut self) {
        if let Some(memory) = self.current().map(Arc::clone) {
            self.replace(memory);
        }
    }

    /// No request in flight uses an older table.
    pub(crate) fn only_current(&self) -> bool {
        self.epochs.len() == 1
    }

    /// Follows a chain through the current table.
    pub(crate) fn walk<'a>(
        &'a self,
        scratch: &'a mut Scratch,
        ring: &Ring,
        head: u16,
    ) -> Walked<'a> {
        match self.current() {
            Some(memory) => scratch.walk(memory, ring, head),
            None => Walked::Bad(None),
        }
    }

    /// Claims the current table, which `status` was found in, for a request
    /// that is on its way.
    pub(crate) fn hold(&mut self, status: StatusByte) -> Held {
        if let Some(current) = self.epochs.back_mut() {
            current.in_flight += 1;
        }
        Held {
            epoch: self.first + self.epochs.len() as u64 - 1,
            status,
        }
    }

    /// Writes the status of a request and gives its claim back. Returns the
    /// status: a request that may have used memory that was lost has failed.
    pub(crate) fn finish(&mut self, held: Held, mut status: Status) -> Status {
        let index = usize::try_from(held.epoch - self.first).ok();
        let Some(epoch) = index.and_then(|index| self.epochs.get_mut(index)) else {
            return Status::IoErr;
        };
        // SAFETY: the claim counted in this epoch since the chain was walked,
        // so its table is in `epochs` and mapped.
        unsafe { held.status.write(status) };
        // Perhaps just now: the guest does not see such a status.
        if (losses() != self.losses || epoch.damaged) && status == Status::Ok {
            status = Status::IoErr;
            // SAFETY: as above.
            unsafe { held.status.write(status) };
        }
        epoch.in_flight -= 1;
        if epoch.in_flight == 0 {
            self.drop_unused();
        }
        status
    }

    /// Gives the claim of a request back that is not answered.
    pub(crate) fn leave(&mut self, held: &Held) {
        let index = usize::try_from(held.epoch - self.first).ok();
        if let Some(epoch) = index.and_then(|index| self.epochs.get_mut(index)) {
            epoch.in_flight -= 1;
            if epoch.in_flight == 0 {
                self.drop_unused();
            }
        }
    }

    /// Writes the status of a request that needed no I/O.
    pub(crate) fn finish_now(&mut self, status_byte: StatusByte, status: Status) {
        let held = self.hold(status_byte);
        self.finish(held, status);
    }

    fn drop_unused(&mut self) {
        while self.epochs.len() > 1
            && self
                .epochs
                .front()
                .is_some_and(|epoch| epoch.in_flight == 0)
        {
            self.epochs.pop_front();
            self.first += 1;
        }
    }
}
