//! Times of requests, as `top` shows them.

use extentd::protocol::statistics::{Latency, Times};
use vhost_backend::BOUNDS;

/// What is shown of the times.
const PERCENTILES: [(&str, u64); 3] = [("p50", 500), ("p99", 990), ("p99.9", 999)];

/// What was added since `before`.
pub fn since(now: &Times, before: Option<&Times>) -> Times {
    let Some(before) = before else {
        return now.clone();
    };
    let earlier = before.buckets.iter().copied().chain(std::iter::repeat(0));
    let mut added = now.clone();
    added.count = added.count.saturating_sub(before.count);
    added.sum_ns = added.sum_ns.saturating_sub(before.sum_ns);
    for (bucket, before) in added.buckets.iter_mut().zip(earlier) {
        *bucket = bucket.saturating_sub(before);
    }
    added
}

/// So many of a thousand took at most this, in nanoseconds; `None` without
/// any, and for those that no bucket bounds.
pub fn percentile(times: &Times, permille: u64) -> Option<u64> {
    let all: u64 = times.buckets.iter().sum();
    let mut left = (u128::from(all) * u128::from(permille)).div_ceil(1000);
    for (bound, count) in BOUNDS.into_iter().zip(&times.buckets) {
        left = left.saturating_sub(u128::from(*count));
        if all > 0 && left == 0 {
            return Some(bound);
        }
    }
    None
}

/// A line for reads and one for writes, of the time since `before`; with so
/// many requests a second in all also how many are in flight on average.
pub fn shown(now: &Latency, before: Option<&Latency>, requests: Option<u64>) -> [String; 2] {
    let read = since(&now.requests.read, before.map(|one| &one.requests.read));
    let write = since(&now.requests.write, before.map(|one| &one.requests.write));
    // Little's law; those that are timed stand for all.
    let count = u128::from(read.count) + u128::from(write.count);
    let time = u128::from(read.sum_ns) + u128::from(write.sum_ns);
    let depth = requests.and_then(|rate| {
        (u128::from(rate) * time)
            .checked_div(count)
            .map(|depth| depth / 100_000_000)
    });
    let depth = depth.map_or_else(String::new, |tenths| {
        format!("   depth {}.{}", tenths / 10, tenths % 10)
    });
    [line("read ", &read) + &depth, line("write", &write)]
}

fn line(name: &str, times: &Times) -> String {
    let parts = PERCENTILES.map(|(label, permille)| {
        let bound = percentile(times, permille);
        let bound = bound.map_or_else(|| "-".to_owned(), |ns| format!("<={}", short(ns)));
        format!("{label} {bound}")
    });
    format!("{name} {}", parts.join("  "))
}

/// A time for people.
pub fn short(ns: u64) -> String {
    let (tenths, unit) = match ns {
        0..1_000_000 => (ns / 100, "us"),
        1_000_000..1_000_000_000 => (ns / 100_000, "ms"),
        _ => (ns / 100_000_000, "s"),
    };
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last number is of those without a bound.
    fn latency(buckets: [u64; 4], sum_ns: u64) -> Latency {
        let mut latency = Latency::default();
        let read = &mut latency.requests.read;
        let [rest @ .., unbounded] = buckets;
        read.count = buckets.iter().sum();
        read.sum_ns = sum_ns;
        read.buckets = rest.to_vec();
        read.buckets.resize(BOUNDS.len(), 0);
        read.buckets.push(unbounded);
        latency
    }

    #[test]
    fn percentiles_are_of_the_time_between() {
        let before = latency([1000, 0, 0, 0], 5);
        let now = latency([1500, 490, 9, 1], 100_000_005);
        let [read, write] = shown(&now, Some(&before), Some(20_000));
        // 1000 in between: half of them in the first bucket, and the last without a bound.
        assert_eq!(
            read,
            "read  p50 <=1.0 us  p99 <=2.0 us  p99.9 <=4.0 us   depth 2.0"
        );
        assert_eq!(write, "write p50 -  p99 -  p99.9 -");
        let slow = latency([0, 0, 0, 7], 0);
        assert!(shown(&slow, None, None)[0].starts_with("read  p50 -  p99 -"));
    }

    #[test]
    fn times_are_short() {
        for (ns, text) in [
            (1024, "1.0 us"),
            (2_097_152, "2.0 ms"),
            (8_589_934_592, "8.5 s"),
        ] {
            assert_eq!(short(ns), text);
        }
    }
}
