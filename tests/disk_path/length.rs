//! How long a disk is, while somebody changes that under its guest.

use std::sync::{Condvar, Mutex};

use front_end::LIMIT;

use crate::served::QUEUES;

/// The length of a disk in sectors, as its guest and whoever changes it know
/// it.
pub struct Length {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
struct State {
    /// So many are there.
    least: usize,
    /// So many may be there; a change is on its way if it is more.
    most: usize,
    /// How often sectors were cut off.
    cuts: usize,
    /// Of how many of them each queue knows that nothing is on its way to what
    /// was cut off.
    settled: [usize; QUEUES],
}

/// What a queue sees of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub least: usize,
    pub most: usize,
    /// Sectors from `least` on are being cut off, or were.
    pub cut: bool,
}

impl Length {
    pub fn new(sectors: usize) -> Length {
        Length {
            state: Mutex::new(State {
                least: sectors,
                most: sectors,
                cuts: 0,
                settled: [0; QUEUES],
            }),
            changed: Condvar::new(),
        }
    }

    /// What `queue` is to reckon with.
    pub fn seen(&self, queue: usize) -> Seen {
        let state = self.state.lock().unwrap();
        Seen {
            least: state.least,
            most: state.most,
            cut: state.settled[queue] < state.cuts,
        }
    }

    /// Nothing of `queue` is on its way to what was cut off, and nothing will
    /// be. Means nothing while it is still being cut off.
    pub fn settle(&self, queue: usize) {
        let mut state = self.state.lock().unwrap();
        if state.least == state.most {
            state.settled[queue] = state.cuts;
            self.changed.notify_all();
        }
    }

    /// The sectors that are there. While a change is on its way, those that
    /// will stay.
    pub fn sectors(&self) -> usize {
        self.state.lock().unwrap().least
    }

    /// Has `change` make the disk as long as this, and say how long it is
    /// then: this, or what it was. Returns when every queue knows it.
    pub fn change(&self, sectors: usize, change: impl FnOnce(usize) -> usize) {
        let before = {
            let mut state = self.state.lock().unwrap();
            let before = state.least;
            state.least = before.min(sectors);
            state.most = before.max(sectors);
            state.cuts += usize::from(sectors < before);
            before
        };
        let after = change(before);
        let mut state = self.state.lock().unwrap();
        (state.least, state.most) = (after, after);
        while state.settled.iter().any(|&settled| settled < state.cuts) {
            let (next, late) = self.changed.wait_timeout(state, LIMIT).unwrap();
            assert!(!late.timed_out(), "the queues do not follow a cut");
            state = next;
        }
    }
}
