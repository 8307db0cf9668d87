//! Figures of each queue, as `top` shows them.

use extentd::options::size;
use extentd::protocol::statistics::{QueueStatistics, Statistics, WorkerStatistics};

use crate::latency::{percentile, short, since};
use crate::rates::rate;

/// What the columns of [`rows`] are. The last three are shares of what the
/// queue's worker does, for all of its queues.
const HEAD: [&str; 10] = [
    "queue",
    "requests/s",
    "read/s",
    "written/s",
    "in flight",
    "p50",
    "p99",
    "disk",
    "file",
    "zeros",
];
/// How wide they are.
const WIDTHS: [usize; HEAD.len()] = [5, 10, 9, 9, 9, 8, 8, 4, 4, 5];

/// A heading, and a line for each queue that was used, of the time since
/// `before`.
pub fn rows(now: &Statistics, before: Option<&Statistics>) -> Vec<String> {
    let head = line(HEAD.map(str::to_owned));
    let queues = now.queues.iter().map(|queue| row(queue, now, before));
    std::iter::once(head).chain(queues).collect()
}

fn row(queue: &QueueStatistics, now: &Statistics, before: Option<&Statistics>) -> String {
    let none = QueueStatistics::default();
    let earlier = before.map(|before| {
        let mut queues = before.queues.iter();
        queues
            .find(|earlier| earlier.queue == queue.queue)
            .unwrap_or(&none)
    });
    let rate = |get: fn(&QueueStatistics) -> u64| {
        let grown = get(queue).saturating_sub(get(earlier?));
        Some(rate(grown, now, before?))
    };
    let dash = || "-".to_owned();
    let bytes = |rate: Option<u64>| rate.map_or_else(dash, size::display);
    let times = since(&queue.latency, earlier.map(|earlier| &earlier.latency));
    let time = |permille| percentile(&times, permille).map_or_else(dash, short);
    let [disk, file, zeros] = shares(queue.queue, now, before);
    line([
        queue.queue.to_string(),
        rate(|of| of.requests).map_or_else(dash, |rate| rate.to_string()),
        bytes(rate(|of| of.read_bytes)),
        bytes(rate(|of| of.written_bytes)),
        queue.in_flight.to_string(),
        time(500),
        time(990),
        disk,
        file,
        zeros,
    ])
}

/// How its worker's operations went, in percent.
fn shares(queue: u64, now: &Statistics, before: Option<&Statistics>) -> [String; 3] {
    let of = |statistics: &Statistics| {
        let number = queue.checked_rem(statistics.workers.len() as u64)?;
        let mut workers = statistics.workers.iter();
        workers.find(|worker| worker.worker == number).cloned()
    };
    let after = of(now).unwrap_or_default();
    let before = before.and_then(of).unwrap_or_default();
    let ways: [fn(&WorkerStatistics) -> u64; 3] = [
        |of| of.disk_operations,
        |of| of.file_operations,
        |of| of.zero_fills,
    ];
    let grown = ways.map(|get| u128::from(get(&after).saturating_sub(get(&before))));
    let all: u128 = grown.iter().sum();
    grown.map(|part| {
        let percent = (part * 100).checked_div(all);
        percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"))
    })
}

fn line(cells: [String; HEAD.len()]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.into_iter().zip(WIDTHS) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&format!("{cell:>width$}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(number: u64, requests: u64) -> QueueStatistics {
        let mut queue = QueueStatistics::default();
        queue.queue = number;
        queue.requests = requests;
        queue.read_bytes = requests << 12;
        queue.in_flight = 7;
        queue.latency.buckets = vec![requests];
        queue
    }

    fn sample(uptime_ms: u64, factor: u64) -> Statistics {
        let mut sample = Statistics::default();
        sample.uptime_ms = uptime_ms;
        sample.queues = vec![queue(0, 1000 * factor), queue(3, 10 * factor)];
        let mut worker = WorkerStatistics::default();
        worker.worker = 1;
        (worker.disk_operations, worker.file_operations) = (9 * factor, factor);
        sample.workers = vec![WorkerStatistics::default(), worker];
        sample
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn each_queue_that_was_used_has_its_rates() {
        let now = sample(3000, 3);
        let lines = rows(&now, Some(&sample(1000, 1)));
        let of = |line: &str| words(line).join(" ");
        assert_eq!(
            of(&lines[1]),
            "0 1000 3.9 MiB 0 bytes 7 1.0 us 1.0 us - - -"
        );
        assert_eq!(
            of(&lines[2]),
            "3 10 40 KiB 0 bytes 7 1.0 us 1.0 us 90% 10% 0%"
        );
        assert!(
            lines.iter().all(|line| line.len() == lines[0].len()),
            "{lines:?}"
        );
    }

    #[test]
    fn of_one_answer_there_are_no_rates() {
        let lines = rows(&sample(1000, 1), None);
        assert_eq!(words(&lines[1])[..4], ["0", "-", "-", "-"]);
        let older = Statistics::default();
        assert_eq!(rows(&older, None).len(), 1);
    }

    #[test]
    fn a_queue_that_is_new_counts_from_nothing() {
        let mut before = sample(1000, 1);
        before.queues.clear();
        let lines = rows(&sample(2000, 1), Some(&before));
        assert_eq!(words(&lines[2])[..2], ["3", "10"]);
    }
}
