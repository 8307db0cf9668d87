//! How often something took how long, in buckets that double: which one is a
//! count of leading zeros, and their bounds are exact.

use std::sync::atomic::{AtomicU64, Ordering};

/// The first bound is two to this power, in nanoseconds: about a microsecond.
const FIRST: u32 = 10;
/// Buckets with a bound.
const BOUNDED: usize = 24;
/// All buckets; the last one has no bound.
pub const BUCKETS: usize = BOUNDED + 1;

/// The longest time of each bucket but the last one, in nanoseconds: from
/// 1.024 us to 8.6 s.
pub const BOUNDS: [u64; BOUNDED] = bounds();

const fn bounds() -> [u64; BOUNDED] {
    let mut bounds = [1 << FIRST; BOUNDED];
    let mut at = 1;
    while at < BOUNDED {
        bounds[at] = bounds[at - 1] * 2;
        at += 1;
    }
    bounds
}

/// Adds to a counter that only this thread writes to.
#[inline(always)]
pub(super) fn add(counter: &AtomicU64, more: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(sum, Ordering::Relaxed);
}

/// Counted by one thread, and read by others.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// Times as they were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// How many were in each bucket, and in none before.
    pub buckets: [u64; BUCKETS],
    /// Nanoseconds in all.
    pub sum_ns: u64,
}

impl Times {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Histogram {
    pub(super) fn note(&self, ns: u64) {
        let power = u64::BITS - ns.saturating_sub(1).leading_zeros();
        let index = usize::try_from(power.saturating_sub(FIRST)).unwrap_or(BOUNDED);
        if let Some(bucket) = self.buckets.get(index.min(BOUNDED)) {
            add(bucket, 1);
        }
        add(&self.sum_ns, ns);
    }

    pub(super) fn add_to(&self, times: &mut Times) {
        for (count, bucket) in times.buckets.iter_mut().zip(&self.buckets) {
            *count += bucket.load(Ordering::Relaxed);
        }
        times.sum_ns += self.sum_ns.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_keeps() {
        let cases = [
            0,
            1,
            1000,
            1024,
            1025,
            2048,
            2049,
            1 << 33,
            (1 << 33) + 1,
            u64::MAX,
        ];
        for ns in cases {
            let histogram = Histogram::default();
            histogram.note(ns);
            let mut times = Times::default();
            histogram.add_to(&mut times);
            let right = BOUNDS
                .iter()
                .position(|bound| ns <= *bound)
                .unwrap_or(BOUNDED);
            assert_eq!(times.buckets[right], 1, "{ns}");
            assert_eq!((times.count(), times.sum_ns), (1, ns));
        }
        assert_eq!(BOUNDS[BOUNDED - 1], 1 << 33);
    }
}
