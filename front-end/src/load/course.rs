//! How a load went over time: its requests and the longest latency in each
//! interval.

use std::time::Duration;

use super::error::{LoadError, LoadResult};

/// Most intervals of a load.
const MOST: usize = 1_000_000;

/// One interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interval {
    /// Requests that ended in it.
    pub requests: u64,
    /// The longest latency among them; zero where none ended.
    pub longest: Duration,
}

/// The intervals of one thread's requests, all as long.
#[derive(Debug, Clone, Default)]
pub(super) struct Course {
    /// Zero: nothing is kept.
    every: Duration,
    intervals: Vec<Interval>,
}

/// How many intervals of `every` a load of `counted` has.
///
/// # Errors
/// They are too many.
pub(super) fn count(every: Duration, counted: Duration) -> LoadResult<usize> {
    if every.is_zero() {
        return Ok(0);
    }
    let count = counted.as_nanos().div_ceil(every.as_nanos());
    let few = usize::try_from(count).ok().filter(|count| *count <= MOST);
    few.ok_or_else(|| LoadError::Plan(format!("--every: at most {MOST} intervals")))
}

impl Course {
    /// With room for all of them.
    ///
    /// # Errors
    /// They are too many.
    pub(super) fn new(every: Duration, counted: Duration) -> LoadResult<Self> {
        let intervals = vec![Interval::default(); count(every, counted)?];
        Ok(Self { every, intervals })
    }

    /// So many requests have ended by now, `at` after the beginning, and the
    /// longest of them took so long. Allocates nothing.
    #[inline]
    pub(super) fn note(&mut self, at: Duration, requests: u64, longest: Duration) {
        let Some(index) = at.as_nanos().checked_div(self.every.as_nanos()) else {
            return;
        };
        // What ends after the time counts nowhere.
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(interval) = self.intervals.get_mut(index) {
            interval.requests += requests;
            interval.longest = interval.longest.max(longest);
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        !self.intervals.is_empty()
    }

    /// Adds another thread's.
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, one) in self.intervals.iter_mut().zip(&other.intervals) {
            sum.requests += one.requests;
            sum.longest = sum.longest.max(one.longest);
        }
    }

    pub(super) fn into_intervals(self) -> Vec<Interval> {
        self.intervals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_in_the_interval_in_which_they_ended() {
        let ms = Duration::from_millis;
        let mut course = Course::new(ms(100), ms(250)).unwrap();
        for (at, requests, longest) in [
            (0, 1, 7),
            (99, 2, 5),
            (100, 3, 1),
            (299, 4, 9),
            (300, 5, 99),
        ] {
            course.note(ms(at), requests, ms(longest));
        }
        let mut sum = Course::new(ms(100), ms(250)).unwrap();
        sum.note(ms(120), 10, ms(2));
        sum.add(&course);
        let found: Vec<_> = sum
            .into_intervals()
            .iter()
            .map(|i| (i.requests, i.longest))
            .collect();
        assert_eq!(found, [(3, ms(7)), (13, ms(2)), (4, ms(9))]);
    }

    #[test]
    fn nothing_is_kept_without_an_interval_and_too_many_are_refused() {
        let second = Duration::from_secs(1);
        let mut course = Course::new(Duration::ZERO, second).unwrap();
        course.note(Duration::ZERO, 1, second);
        assert!(!course.is_kept());
        let error = Course::new(Duration::from_nanos(1), second).unwrap_err();
        assert!(error.to_string().contains("--every"), "{error}");
    }
}
