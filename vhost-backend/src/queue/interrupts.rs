//! The descriptors by which a queue interrupts its driver, and how often it
//! does.
//!
//! What was answered is shown at once, which costs a store; an interrupt costs
//! a system call here and a wake-up there. The driver asks for one only when it
//! sleeps. The first of a batch goes out at once, so that driver and worker
//! work at the same time; those that follow are some time apart while there is
//! more to be done, so that a driver that is quicker than the disk is not woken
//! for each answer. None is put off beyond the worker's own rest.

use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

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
    pub(crate) fn interrupt(&self) {
        if let Some(call) = &self.call {
            // Fails only if an interrupt is pending, or for a descriptor that
            // cannot interrupt: nothing could be done about that.
            let _ = call.write(1);
        }
    }

    /// Tells that the ring is broken.
    pub(crate) fn report_broken(&self) {
        if let Some(err) = &self.err {
            // As for interrupts.
            let _ = err.write(1);
        }
    }
}
