//! Wishes that are looked at again later.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::{Duration, Instant};

/// A wish that was put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    pub(crate) window: usize,
    /// When it was put off first.
    pub(crate) since: Instant,
}

impl Waiting {
    pub(crate) fn new(window: usize, now: Instant) -> Waiting {
        Waiting { window, since: now }
    }
}

/// The soonest first. Many windows may wait, so they are called in groups: those that are due within one step of time
/// come together, at its end. A window waits but once.
#[derive(Debug)]
pub(crate) struct Later {
    heap: BinaryHeap<Reverse<(Instant, Waiting)>>,
    windows: HashSet<usize>,
    /// What steps are counted from.
    began: Instant,
    step: Duration,
}

impl Later {
    pub(crate) fn new(step: Duration) -> Later {
        Later {
            heap: BinaryHeap::new(),
            windows: HashSet::new(),
            began: Instant::now(),
            step: step.max(Duration::from_micros(1)),
        }
    }

    /// Nothing is done if the window waits already: a wish may come twice when the table was replaced in between.
    pub(crate) fn add(&mut self, due: Instant, waiting: Waiting) {
        if !self.windows.insert(waiting.window) {
            return;
        }
        let steps = due
            .saturating_duration_since(self.began)
            .as_nanos()
            .div_ceil(self.step.as_nanos());
        let end = u32::try_from(steps)
            .ok()
            .and_then(|steps| self.step.checked_mul(steps))
            .and_then(|time| self.began.checked_add(time));
        self.heap.push(Reverse((end.unwrap_or(due), waiting)));
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((due, _))| *due)
    }

    /// Takes one that is due by `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Waiting> {
        if self.next()? > now {
            return None;
        }
        let Reverse((_, waiting)) = self.heap.pop()?;
        self.windows.remove(&waiting.window);
        Some(waiting)
    }

    /// Whether the window waits.
    pub(crate) fn has(&self, window: usize) -> bool {
        self.windows.contains(&window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_within_one_step_comes_together_and_never_too_soon() {
        let step = Duration::from_millis(10);
        let mut later = Later::new(step);
        let began = later.began;
        let at = |millis| began + Duration::from_millis(millis);
        for (window, due) in [(1, 25), (2, 21), (3, 30), (4, 31), (5, 0), (4, 1)] {
            later.add(at(due), Waiting::new(window, began));
        }
        let mut due = |millis| -> Vec<usize> {
            let mut windows: Vec<_> = std::iter::from_fn(|| later.take_due(at(millis)))
                .map(|waiting| waiting.window)
                .collect();
            windows.sort_unstable();
            windows
        };
        assert_eq!(due(0), [5]);
        assert_eq!(due(29), []);
        assert_eq!(due(30), [1, 2, 3]);
        assert_eq!(due(39), []);
        assert_eq!(due(40), [4]);
        assert!(later.next().is_none() && !later.has(4));
    }

    #[test]
    fn a_time_too_far_off_for_steps_is_taken_as_it_is() {
        let mut later = Later::new(Duration::ZERO);
        let far = later.began + Duration::from_secs(1 << 20);
        later.add(far, Waiting::new(1, later.began));
        assert_eq!(later.next(), Some(far));
        assert!(later.has(1) && later.take_due(later.began).is_none());
    }
}
