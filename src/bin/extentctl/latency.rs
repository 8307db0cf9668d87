//! Times of requests, as far as an extentd tells them in its counters.

use serde::Deserialize;
use serde_json::Value;

/// The longest time of the first bucket, in nanoseconds; each next one is
/// twice that.
const FIRST_NS: u64 = 1024;
/// What is shown of the times.
const PERCENTILES: [(&str, u64); 3] = [("p50", 500), ("p99", 990), ("p99.9", 999)];

/// How often something took how long.
#[derive(Clone, Default, Deserialize)]
struct Times {
    count: u64,
    sum_ns: u64,
    buckets: Vec<u64>,
}

#[derive(Clone, Default, Deserialize)]
struct ByOperation {
    #[serde(default)]
    read: Times,
    #[serde(default)]
    write: Times,
}

/// What `stats` tells of times.
#[derive(Clone, Default, Deserialize)]
pub struct Latency {
    requests: ByOperation,
}

impl Latency {
    /// Of an answer to `stats`, if it has any.
    pub fn of(answer: &Value) -> Option<Self> {
        Self::deserialize(answer.get("latency")?).ok()
    }
}

impl Times {
    fn since(&self, before: Option<&Times>) -> Times {
        let Some(before) = before else {
            return self.clone();
        };
        let earlier = before.buckets.iter().copied().chain(std::iter::repeat(0));
        Times {
            count: self.count.saturating_sub(before.count),
            sum_ns: self.sum_ns.saturating_sub(before.sum_ns),
            buckets: self
                .buckets
                .iter()
                .zip(earlier)
                .map(|(now, before)| now.saturating_sub(before))
                .collect(),
        }
    }

    /// So many of a thousand took at most this, in nanoseconds; `None` without
    /// any, and for those that no bucket bounds.
    fn percentile(&self, permille: u64) -> Option<u64> {
        let all: u64 = self.buckets.iter().sum();
        let mut left = (u128::from(all) * u128::from(permille)).div_ceil(1000);
        let bounded = self.buckets.len().checked_sub(1)?;
        for (power, count) in (0u32..).zip(self.buckets.iter().take(bounded)) {
            left = left.saturating_sub(u128::from(*count));
            if all > 0 && left == 0 {
                return FIRST_NS.checked_shl(power);
            }
        }
        None
    }
}

/// A line for reads and one for writes, of the time since `before`; with so
/// many requests a second in all also how many are in flight on average.
pub fn shown(now: &Latency, before: Option<&Latency>, requests: Option<u64>) -> [String; 2] {
    let read = now
        .requests
        .read
        .since(before.map(|one| &one.requests.read));
    let write = now
        .requests
        .write
        .since(before.map(|one| &one.requests.write));
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
        let bound = times.percentile(permille);
        let bound = bound.map_or_else(|| "-".to_owned(), |ns| format!("<={}", short(ns)));
        format!("{label} {bound}")
    });
    format!("{name} {}", parts.join("  "))
}

fn short(ns: u64) -> String {
    let (tenths, unit) = match ns {
        0..1_000_000 => (ns / 100, "us"),
        1_000_000..1_000_000_000 => (ns / 100_000, "ms"),
        _ => (ns / 100_000_000, "s"),
    };
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn latency(buckets: &[u64], sum_ns: u64) -> Latency {
        let count: u64 = buckets.iter().sum();
        let read = json!({ "count": count, "sum_ns": sum_ns, "buckets": buckets });
        Latency::of(&json!({ "latency": { "requests": { "read": read } } })).unwrap()
    }

    #[test]
    fn percentiles_are_of_the_time_between() {
        let before = latency(&[1000, 0, 0, 0], 5);
        let now = latency(&[1500, 490, 9, 1], 100_000_005);
        let [read, write] = shown(&now, Some(&before), Some(20_000));
        // 1000 in between: half of them in the first bucket, and the last without a bound.
        assert_eq!(
            read,
            "read  p50 <=1.0 us  p99 <=2.0 us  p99.9 <=4.0 us   depth 2.0"
        );
        assert_eq!(write, "write p50 -  p99 -  p99.9 -");
        let slow = latency(&[0, 0, 0, 7], 0);
        assert!(shown(&slow, None, None)[0].starts_with("read  p50 -  p99 -"));
    }

    #[test]
    fn what_tells_no_times_has_none() {
        assert!(Latency::of(&json!({ "requests": 7 })).is_none());
        assert!(Latency::of(&json!({ "latency": 7 })).is_none());
        for (ns, text) in [
            (1024, "1.0 us"),
            (2_097_152, "2.0 ms"),
            (8_589_934_592, "8.5 s"),
        ] {
            assert_eq!(short(ns), text);
        }
    }
}
