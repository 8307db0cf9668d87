//! `extentctl top` where there is no terminal: the counters as rates, in lines.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use extentd::options::size;
use extentd::protocol::Request;
use extentd::protocol::statistics::{MapStatistics, Statistics};

use crate::ask::{PATIENCE, ask, understand};
use crate::output::harmless;
use crate::queues::rows;
use crate::rates::per_second;
use crate::status::{Failure, Status};
use crate::table::{align_right, columns, drawn, empty, widen};

/// Shows one screen after the other.
///
/// # Errors
/// Nobody answers, or nobody any more.
pub fn watch(
    path: &Path,
    interval: Duration,
    count: Option<u64>,
    json: bool,
) -> Result<(), Failure> {
    let mut output = io::stdout();
    let mut before = None;
    let mut shown: u64 = 0;
    loop {
        let answer = ask(path, &Request::Stats {}, PATIENCE).map_err(|failure| {
            if shown > 0 && failure.status == Status::Silent {
                return Failure::new(Status::Gone, failure.line);
            }
            failure
        })?;
        let text = if json {
            format!("{answer}\n")
        } else {
            let now: Statistics = understand(&answer)?;
            let text = screen(&now, before.as_ref());
            before = Some(now);
            text
        };
        if output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .is_err()
        {
            // Nobody looks any more.
            return Ok(());
        }
        shown = shown.saturating_add(1);
        if count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}

/// Least widths of the columns, so that they stay where they are from screen to
/// screen.
const WIDTHS: [u16; 3] = [24, 16, 20];

/// One screen; rates need the counters of `before`.
fn screen(now: &Statistics, before: Option<&Statistics>) -> String {
    // A restart begins to count anew.
    let before = before.filter(|before| before.uptime_ms < now.uptime_ms);
    let mut counters = columns(["", "per second", "total"]);
    align_right(&mut counters, 1);
    align_right(&mut counters, 2);
    widen(&mut counters, WIDTHS);
    let none = || "-".to_owned();
    let mut row = |name: &str, get: fn(&Statistics) -> u64| {
        let rate = before.map_or_else(none, |before| per_second(now, before, get).to_string());
        counters.add_row([name.to_owned(), rate, get(now).to_string()]);
    };
    row("requests", |of| of.requests);
    row("  failed", |of| of.failed_requests);
    row("operations by disk", |of| of.disk_operations);
    row("operations by file", |of| of.file_operations);
    row("zero fills", |of| of.zero_fills);
    row("waits for a limit", |of| of.limit_waits);
    row("held requests", |of| of.held_requests_ever);
    let mut row = |name: &str, get: fn(&Statistics) -> u64| {
        let rate = before.map_or_else(none, |before| size::display(per_second(now, before, get)));
        counters.add_row([name.to_owned(), rate, size::display(get(now))]);
    };
    row("read", |of| of.read_bytes);
    row("written", |of| of.written_bytes);
    let mut of_map = String::new();
    if let Some(map) = &now.map {
        let earlier = before.and_then(|before| before.map.as_ref());
        let rate = earlier.map_or_else(none, |earlier| hit_rate(map, earlier));
        let total = hit_rate(map, &MapStatistics::default());
        counters.add_row(["map hit rate".to_owned(), rate, total]);
        of_map = format!("\n{}", map_rows(map));
    }
    let of_queues = match now.queues.len() {
        // It does what the whole does.
        0 | 1 => String::new(),
        _ => format!("\n{}\n", rows(now, before).join("\n")),
    };
    format!(
        "extentd, up {}; by the {}: {}\n{}\n{}{of_queues}{of_map}",
        up(now.uptime_ms),
        harmless(now.path.as_str()),
        harmless(&now.path_reason),
        held(now.held_requests),
        drawn(counters)
    )
}

/// A line that is there only where something waits.
fn held(requests: u64) -> String {
    match requests {
        0 => String::new(),
        1 => "1 request is held\n".to_owned(),
        many => format!("{many} requests are held\n"),
    }
}

/// How many lookups since `before` have found something.
pub fn hit_rate(map: &MapStatistics, before: &MapStatistics) -> String {
    let of = |map: &MapStatistics| map.hits + map.misses + map.changing;
    let hits = map.hits.saturating_sub(before.hits);
    let permille =
        (u128::from(hits) * 1000).checked_div(u128::from(of(map).saturating_sub(of(before))));
    permille.map_or_else(
        || "-".to_owned(),
        |permille| format!("{}.{} %", permille / 10, permille % 10),
    )
}

fn map_rows(map: &MapStatistics) -> String {
    let kinds: Vec<_> = map
        .extents
        .named()
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let mut rows = empty();
    rows.add_row([
        "windows".to_owned(),
        format!(
            "{} loaded now, {} loads, {} evictions",
            map.resident_windows, map.loads, map.evictions
        ),
    ]);
    rows.add_row([
        "memory of extents".to_owned(),
        format!(
            "{} ({} pinned), budget {}",
            size::display(map.resident_bytes),
            size::display(map.pinned_bytes),
            size::display(map.budget_bytes)
        ),
    ]);
    rows.add_row(["extents".to_owned(), kinds.join(", ")]);
    let [first, ..] = WIDTHS;
    widen(&mut rows, [first]);
    drawn(rows)
}

/// A time for people.
pub fn up(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use extentd::protocol::words::Way;

    use super::*;

    fn sample(uptime_ms: u64, factor: u64) -> Statistics {
        let mut map = MapStatistics::default();
        map.hits = 90 * factor * factor;
        map.misses = 10 * factor;
        let mut sample = Statistics::default();
        sample.uptime_ms = uptime_ms;
        sample.path = Way::Disk.into();
        sample.path_reason = "the image is exclusively ours".into();
        sample.requests = 100 * factor;
        sample.disk_operations = 60 * factor;
        sample.file_operations = 30 * factor;
        sample.zero_fills = 10 * factor;
        sample.read_bytes = factor << 20;
        sample.map = Some(map);
        sample
    }

    fn cells(screen: &str, name: &str) -> Vec<String> {
        let line = screen.lines().find(|line| line.starts_with(name)).unwrap();
        line[24..]
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .map(|cell| cell.trim().to_owned())
            .collect()
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let text = screen(&sample(5000, 5), Some(&sample(3000, 1)));
        assert!(
            text.starts_with("extentd, up 0:00:05; by the disk: the image is exclusively ours\n")
        );
        assert_eq!(cells(&text, "requests"), ["200", "500"]);
        assert_eq!(cells(&text, "operations by disk"), ["120", "300"]);
        assert_eq!(cells(&text, "operations by file"), ["60", "150"]);
        assert_eq!(cells(&text, "zero fills"), ["20", "50"]);
        assert_eq!(cells(&text, "read"), ["2 MiB", "5 MiB"]);
        // 90 * 24 of 90 * 24 + 40, and 90 * 25 of 90 * 25 + 50.
        assert_eq!(cells(&text, "map hit rate"), ["98.1 %", "97.8 %"]);
    }

    #[test]
    fn without_a_screen_before_there_are_no_rates() {
        let restarted = screen(&sample(1000, 1), Some(&sample(9000, 5)));
        for text in [screen(&sample(1000, 1), None), restarted] {
            assert_eq!(cells(&text, "requests"), ["-", "100"]);
            assert_eq!(cells(&text, "map hit rate"), ["-", "90.0 %"]);
        }
    }

    #[test]
    fn a_screen_fits_a_terminal() {
        let mut large = sample(u64::MAX / 2, 1 << 20);
        large.path_reason = "somebody else has the image open".into();
        let text = screen(&large, Some(&sample(1, 1)));
        assert!(text.lines().count() <= 24);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn nothing_to_look_up_is_no_rate() {
        let mut idle = Statistics::default();
        idle.map = Some(MapStatistics::default());
        assert_eq!(cells(&screen(&idle, None), "map hit rate"), ["-", "-"]);
    }
}
