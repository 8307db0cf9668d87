//! Operations whose ends the device does not interrupt for: a ring of their
//! own (`IORING_SETUP_IOPOLL`), which learns of them when it is entered.
//!
//! It pays while the worker finds the ends before it would sleep. A worker
//! that sleeps with such operations in flight has to wake up by the clock, so
//! after each sleep of that kind a number of operations goes the usual way.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::IoUring;

use super::entries::Buffers;
use super::{Files, Work, ring};

/// Operations that are not polled for after a sleep among polled ones.
const PAUSE: u32 = 256;
/// The first and the longest sleep among polled operations.
const NAPS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));

/// A polled ring of one thread.
pub(super) struct Polled {
    ring: IoUring,
    running: usize,
    /// Operations that have ended here.
    ended: u64,
    /// Operations still to go the usual way.
    pause: u32,
    nap: Duration,
    /// What was pushed by each token, to be done again without polling.
    works: Box<[Option<Work>]>,
    /// The device refused: nothing is polled for any more.
    refused: bool,
}

impl Polled {
    /// A ring for the tokens below `depth`.
    ///
    /// # Errors
    /// The kernel has no polled rings.
    pub(super) fn new(files: &Files, depth: usize) -> io::Result<Self> {
        Ok(Self {
            ring: ring::set_up(files, depth, true)?.0,
            running: 0,
            ended: 0,
            pause: 0,
            nap: NAPS.0,
            works: vec![None; depth].into(),
            refused: false,
        })
    }

    /// The ring, for registering what the other one has.
    pub(super) fn ring(&self) -> &IoUring {
        &self.ring
    }

    /// The ring, to be entered by permit.
    pub(super) fn ring_mut(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    /// Takes an operation, unless it should go the usual way.
    ///
    /// # Safety
    /// As for [`Engine::push`](super::Engine::push).
    pub(super) unsafe fn push(&mut self, token: u32, work: Work, buffers: &Buffers) -> bool {
        if !self.takes(token, work) {
            return false;
        }
        // SAFETY: the caller's promise.
        let entry = unsafe { buffers.entry(work) }.user_data(u64::from(token));
        // SAFETY: the caller's promise.
        unsafe { ring::place(&mut self.ring, &entry) };
        true
    }

    /// Takes note of an operation that is about to be given to the ring, unless
    /// it should go the usual way.
    pub(super) fn takes(&mut self, token: u32, work: Work) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let Some(kept) = self.works.get_mut(token as usize).filter(|_| !self.refused) else {
            return false;
        };
        *kept = Some(work);
        self.running += 1;
        true
    }

    /// So many of those that were taken note of are not given to the ring.
    pub(super) fn take_back(&mut self, count: usize) {
        self.running -= count;
    }

    /// The kernel has operations of it.
    pub(super) fn is_running(&self) -> bool {
        self.running > 0
    }

    /// How many operations have ended here.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// Gives what is queued to the kernel and looks for what has ended.
    pub(super) fn look(&mut self) {
        if self.running > 0 {
            ring::enter(&mut self.ring, 0, None);
        }
    }

    /// Something has ended, as of the last look.
    pub(super) fn has_ended(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Gives each result once; what the device would not be polled for, or was
    /// revoked, is given to `again`.
    pub(super) fn completions(
        &mut self,
        device: Option<RawFd>,
        done: &mut impl FnMut(u32, i32),
        mut again: impl FnMut(u32, Work),
    ) {
        let mut revoked = false;
        for entry in self.ring.completion() {
            self.running -= 1;
            self.nap = NAPS.0;
            // Every token came from a `u32`.
            let token = u32::try_from(entry.user_data()).unwrap_or(u32::MAX);
            let work = self.works.get_mut(token as usize).and_then(Option::take);
            match work {
                Some(work) if entry.result() == -libc::EOPNOTSUPP => {
                    if !std::mem::replace(&mut self.refused, true) {
                        log::warn!("the device is not polled any more: it refuses");
                    }
                    again(token, work);
                }
                Some(work) if entry.result() == ring::REVOKED => {
                    revoked = true;
                    again(token, work);
                }
                _ => {
                    self.ended += 1;
                    done(token, entry.result());
                }
            }
        }
        if revoked {
            self.refused |= !ring::restore(&self.ring, device);
        }
    }

    /// How long the worker may sleep, who is about to; `None` is for ever.
    pub(super) fn nap(&mut self) -> Option<Duration> {
        if self.running == 0 {
            return None;
        }
        self.pause = PAUSE;
        let nap = self.nap;
        self.nap = (nap * 2).min(NAPS.1);
        Some(nap)
    }
}
