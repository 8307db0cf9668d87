//! The descriptors by which a queue interrupts its driver, and how often it
//! does.
//!
//! What was answered is shown at once, which costs a store; an interrupt costs
//! a system call here and a wake-up there. The driver asks for one only when it
//! sleeps. The first of a batch goes out at once, so that driver and worker
//! work at the same time; those that follow are some time apart while there is
//! more to be done, so that a driver that is quicker than the disk is not woken
//! for each answer. None is put off beyond the worker's own rest.
//!
//! The front-end has the same descriptors: it can make them block, and fill
//! them. A worker that is caught so is got out by the watch, and writes to that
//! one no more.

use std::io;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::sys;

/// Between two interrupts of a queue while its worker has more to do.
pub(crate) const SPACING: Duration = Duration::from_micros(50);

/// The time, read at most once a turn, and only if somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct TurnClock(Option<Instant>);

impl TurnClock {
    #[cfg(test)]
    pub(crate) fn at(time: Instant) -> Self {
        Self(Some(time))
    }

    fn now(&mut self) -> Instant {
        *self.0.get_or_insert_with(Instant::now)
    }
}

/// How a queue signals its driver.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    call: Option<EventFd>,
    err: Option<EventFd>,
    last: Option<Instant>,
}

impl Interrupts {
    pub(crate) fn set_call(&mut self, fd: Option<EventFd>) {
        self.call = fd;
    }

    pub(crate) fn set_err(&mut self, fd: Option<EventFd>) {
        self.err = fd;
    }

    /// The last interrupt was long enough ago for another one amid work.
    pub(crate) fn are_due(&self, clock: &mut TurnClock) -> bool {
        self.last
            .is_none_or(|last| clock.now().saturating_duration_since(last) >= SPACING)
    }

    /// Interrupts amid work, where it is [due](Self::are_due).
    pub(crate) fn interrupt_amid(&mut self, clock: &mut TurnClock) {
        self.last = Some(clock.now());
        self.interrupt();
    }

    /// Interrupts.
    pub(crate) fn interrupt(&mut self) {
        if let Some(call) = &self.call
            && keeps_waiting(call)
        {
            log::warn!(
                "the front-end let an interrupt wait (its call event is full, and blocks): that event is not used any more"
            );
            self.call = None;
        }
    }

    /// Tells that the ring is broken.
    pub(crate) fn report_broken(&mut self) {
        if let Some(err) = &self.err
            && keeps_waiting(err)
        {
            log::warn!(
                "the front-end let the report of a broken ring wait (its error event is full, and blocks): that event is not used any more"
            );
            self.err = None;
        }
    }
}

/// Signals an event; whether that had to be given up. Else it fails only if it
/// is signalled already, or cannot be: nothing could be done about that.
fn keeps_waiting(event: &EventFd) -> bool {
    pulse::foreign(|| sys::signal(event))
        .is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
}
