//! By how much counters grow in a second, between two answers to `stats`.

use extentd::protocol::statistics::Statistics;

/// By how much a counter grows in a second.
pub fn per_second(now: &Statistics, before: &Statistics, get: fn(&Statistics) -> u64) -> u64 {
    rate(get(now).saturating_sub(get(before)), now, before)
}

/// What has grown by so much since `before`, in a second.
pub fn rate(grown: u64, now: &Statistics, before: &Statistics) -> u64 {
    let time = u128::from(now.uptime_ms.saturating_sub(before.uptime_ms)).max(1);
    u64::try_from(u128::from(grown) * 1000 / time).unwrap_or(u64::MAX)
}
