//! Workers that wait for one limit take turns.
//!
//! All of them wake at the moment when there is something again, and the first
//! one would take it all, mostly the same one. So whoever was served more than
//! another one that waits leaves it that for a moment. Nobody is waited for
//! longer: one that does not come has no need, or no CPU.

use std::sync::atomic::{AtomicU64, Ordering};

use super::key::KINDS;

/// Workers that take part: any others are served as they come.
const MOST: usize = 64;

/// For how long others are left what they wait for, in nanoseconds: they were
/// to wake at the same moment.
pub(crate) const COURTESY: u64 = 300_000;

/// Who waits for what, and how much each was served.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Requests of each worker, as far as they count.
    served: [AtomicU64; MOST],
    /// Workers that wait, a bit each, by limit.
    waiting: [AtomicU64; KINDS],
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            served: [const { AtomicU64::new(0) }; MOST],
            waiting: [const { AtomicU64::new(0) }; KINDS],
        }
    }
}

fn bit(worker: usize) -> u64 {
    if worker < MOST { 1 << worker } else { 0 }
}

impl Turns {
    /// What others were served that wait for this limit.
    fn others(&self, worker: usize, limit: usize) -> impl Iterator<Item = u64> {
        let waiting = self
            .waiting
            .get(limit)
            .map_or(0, |waiting| waiting.load(Ordering::Relaxed) & !bit(worker));
        let each = self.served.iter().enumerate();
        each.filter(move |(other, _)| waiting & bit(*other) != 0)
            .map(|(_, served)| served.load(Ordering::Relaxed))
    }

    /// Another worker waits for this limit that was served less, by more than
    /// `ahead`.
    pub(crate) fn is_anothers(&self, worker: usize, limit: usize, ahead: u64) -> bool {
        let Some(mine) = self.served.get(worker) else {
            return false;
        };
        let mine = mine.load(Ordering::Relaxed);
        self.others(worker, limit)
            .any(|other| other.saturating_add(ahead) < mine)
    }

    /// Begins to wait for a limit; the `first` that it waits for, it counts as
    /// served as those who wait already.
    pub(crate) fn wait(&self, worker: usize, limit: usize, first: bool) {
        let least = self.others(worker, limit).min();
        if let (Some(mine), Some(least)) = (self.served.get(worker), least.filter(|_| first)) {
            mine.store(least, Ordering::Relaxed);
        }
        if let Some(waiting) = self.waiting.get(limit) {
            waiting.fetch_or(bit(worker), Ordering::Relaxed);
        }
    }

    /// Waits for this limit no more.
    pub(crate) fn leave(&self, worker: usize, limit: usize) {
        if let Some(waiting) = self.waiting.get(limit) {
            waiting.fetch_and(!bit(worker), Ordering::Relaxed);
        }
    }

    /// A request of this worker was fetched.
    pub(crate) fn serve(&self, worker: usize) {
        if let Some(mine) = self.served.get(worker) {
            mine.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_served_more_leaves_it_to_others_that_wait_for_the_same() {
        let turns = Turns::default();
        turns.serve(0);
        turns.serve(0);
        assert!(!turns.is_anothers(0, 3, 1), "nobody waits");
        turns.wait(1, 3, false);
        assert!(turns.is_anothers(0, 3, 1));
        assert!(!turns.is_anothers(0, 3, 2), "not so far ahead");
        assert!(!turns.is_anothers(0, 2, 1), "another limit");
        assert!(!turns.is_anothers(1, 3, 0), "it waits itself");
        turns.leave(1, 3);
        assert!(!turns.is_anothers(0, 3, 1));
    }

    #[test]
    fn who_begins_to_wait_has_no_claim_from_before() {
        let turns = Turns::default();
        for _ in 0..9 {
            turns.serve(0);
        }
        turns.wait(0, 1, true);
        turns.wait(1, 1, true);
        assert!(!turns.is_anothers(0, 1, 0) && !turns.is_anothers(1, 1, 0));
        turns.serve(1);
        assert!(turns.is_anothers(1, 1, 0));
    }

    #[test]
    fn workers_beyond_those_that_take_part_are_served_as_they_come() {
        let turns = Turns::default();
        turns.wait(MOST, 0, true);
        turns.serve(MOST);
        turns.serve(0);
        assert!(!turns.is_anothers(0, 0, 0) && !turns.is_anothers(MOST, 0, 0));
    }
}
