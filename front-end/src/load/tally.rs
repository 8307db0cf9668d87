//! What was counted.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::error::{LoadError, LoadResult};

/// Longest latency that is told apart: longer ones count as this.
const LONGEST: Duration = Duration::from_secs(60);

/// Counts of one queue, or of all together.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// Latencies in nanoseconds, to three digits.
    latencies: Histogram<u64>,
    /// Since they were last taken: requests, and the longest latency.
    recent: (u64, Duration),
    pub reads: u64,
    pub writes: u64,
    /// Times the device wanted a kick.
    pub kicks: u64,
    /// Times the device called.
    pub calls: u64,
    /// Pieces that were discarded and refilled.
    pub pieces: u64,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Tally {
    pub(super) fn new() -> LoadResult<Self> {
        let latencies = Histogram::new_with_bounds(1, nanoseconds(LONGEST), 3)
            .map_err(|error| LoadError::Plan(format!("no histogram: {error}")))?;
        Ok(Self {
            latencies,
            recent: (0, Duration::ZERO),
            reads: 0,
            writes: 0,
            kicks: 0,
            calls: 0,
            pieces: 0,
        })
    }

    /// Forgets everything. Allocates nothing.
    pub(super) fn reset(&mut self) {
        self.latencies.reset();
        self.recent = (0, Duration::ZERO);
        self.reads = 0;
        self.writes = 0;
        self.kicks = 0;
        self.calls = 0;
        self.pieces = 0;
    }

    /// A request has ended. Allocates nothing.
    #[inline]
    pub(super) fn record(&mut self, read: bool, latency: Duration) {
        self.latencies.saturating_record(nanoseconds(latency));
        self.recent.0 += 1;
        self.recent.1 = self.recent.1.max(latency);
        self.reads += u64::from(read);
        self.writes += u64::from(!read);
    }

    /// Requests since the last call, and the longest latency of them.
    #[inline]
    pub(super) fn take_recent(&mut self) -> (u64, Duration) {
        std::mem::take(&mut self.recent)
    }

    /// Adds the counts of another queue.
    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds, so it cannot fail.
        let _ = self.latencies.add(&other.latencies);
        self.reads += other.reads;
        self.writes += other.writes;
        self.kicks += other.kicks;
        self.calls += other.calls;
        self.pieces += other.pieces;
    }

    /// Requests that have ended.
    pub(super) fn requests(&self) -> u64 {
        self.reads + self.writes
    }

    /// The latency that `percent` of the requests stayed within.
    pub(super) fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.latencies.value_at_percentile(percent))
    }

    /// The longest latency.
    pub(super) fn longest(&self) -> Duration {
        Duration::from_nanos(self.latencies.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_to_three_digits_over_all_lengths() {
        let mut tally = Tally::new().unwrap();
        let mut other = Tally::new().unwrap();
        for micros in 1..=1000 {
            let half = if micros % 2 == 0 {
                &mut tally
            } else {
                &mut other
            };
            half.record(micros % 2 == 0, Duration::from_micros(micros));
        }
        other.record(true, Duration::from_secs(3600));
        assert_eq!(other.take_recent(), (501, Duration::from_secs(3600)));
        assert_eq!(other.take_recent(), (0, Duration::ZERO));
        tally.add(&other);
        assert_eq!(
            (tally.requests(), tally.reads, tally.writes),
            (1001, 501, 500)
        );
        let close = |found: Duration, wanted: Duration| {
            let ratio = found.as_secs_f64() / wanted.as_secs_f64();
            assert!((0.998..1.003).contains(&ratio), "{found:?} {wanted:?}");
        };
        close(tally.percentile(50.0), Duration::from_micros(501));
        close(tally.percentile(99.0), Duration::from_micros(991));
        close(tally.longest(), LONGEST);
        tally.reset();
        assert_eq!((tally.requests(), tally.longest()), (0, Duration::ZERO));
    }
}
