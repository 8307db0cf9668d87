//! The counters as OpenMetrics text (version 1.0.0), which Prometheus and its
//! kin collect. One table says under which name each counter is told.

use std::fmt::Write;

use crate::protocol;
use crate::protocol::statistics::{MapStatistics, Statistics};
use crate::protocol::words::Way;

/// What OpenMetrics calls a family: samples with one name and meaning.
struct Family {
    /// Without the prefix `extentd_`.
    name: &'static str,
    kind: Type,
    help: &'static str,
    samples: Samples,
}

/// Of a family; bytes have their unit in the name.
enum Type {
    /// Only ever grows; its samples end in `_total`.
    Counter,
    /// As it is now.
    Gauge,
    /// A counter of bytes.
    CounterOfBytes,
    /// A gauge of bytes.
    GaugeOfBytes,
    /// A counter of microseconds.
    CounterOfTime,
}

/// Where the samples of a family come from.
enum Samples {
    /// From the disk.
    Disk(&'static [Sample<Statistics>]),
    /// From the map, where there is one.
    Map(&'static [Sample<MapStatistics>]),
    /// From the room of the image's file system, where that is known.
    Room(fn(&protocol::info::Room) -> u64),
    /// One for each kind of extent in the map.
    Kinds,
}

/// A label and its value, or nothing, and what is counted.
type Sample<T> = (Option<(&'static str, &'static str)>, fn(&T) -> u64);

use Samples::{Disk, Kinds, Map, Room};
use Type::{Counter, CounterOfBytes, CounterOfTime, Gauge, GaugeOfBytes};

const fn family(name: &'static str, kind: Type, help: &'static str, samples: Samples) -> Family {
    Family {
        name,
        kind,
        help,
        samples,
    }
}

const FAMILIES: &[Family] = &[
    family(
        "requests",
        Counter,
        "Requests that have ended.",
        Disk(&[(None, |of| of.requests)]),
    ),
    family(
        "failed_requests",
        Counter,
        "Requests that failed for what the host said.",
        Disk(&[(None, |of| of.failed_requests)]),
    ),
    family(
        "operations",
        Counter,
        "Reads and writes by the way they went; zero needs no I/O.",
        Disk(&[
            (Some(("way", "disk")), |of| of.disk_operations),
            (Some(("way", "file")), |of| of.file_operations),
            (Some(("way", "zero")), |of| of.zero_fills),
        ]),
    ),
    family(
        "transferred_bytes",
        CounterOfBytes,
        "Bytes of reads and writes that ended well.",
        Disk(&[
            (Some(("direction", "read")), |of| of.read_bytes),
            (Some(("direction", "write")), |of| of.written_bytes),
        ]),
    ),
    family(
        "disk_path",
        Gauge,
        "1 while requests go straight to the disk.",
        Disk(&[(None, |of| u64::from(of.path == Way::Disk))]),
    ),
    family(
        "disk_path_entries",
        Counter,
        "Times that the disk path was entered.",
        Disk(&[(None, |of| of.path_entries)]),
    ),
    family(
        "held_requests",
        Gauge,
        "Requests that the host has failed and that are tried again.",
        Disk(&[(None, |of| of.held_requests)]),
    ),
    family(
        "requests_held",
        Counter,
        "Requests that were held, each once.",
        Disk(&[(None, |of| of.held_requests_ever)]),
    ),
    family(
        "held_retries",
        Counter,
        "Times that a request that was held was tried again.",
        Disk(&[(None, |of| of.held_retries)]),
    ),
    family(
        "file_system_free_bytes",
        GaugeOfBytes,
        "Free bytes of the image's file system.",
        Room(|room| room.free_bytes),
    ),
    family(
        "image_unallocated_bytes",
        GaugeOfBytes,
        "Bytes of the image that have no blocks yet.",
        Room(|room| room.unallocated_bytes),
    ),
    family(
        "room_low",
        Gauge,
        "1 while little is free, and less than the guest may ask for.",
        Room(|room| u64::from(room.low)),
    ),
    family(
        "limit_waits",
        Counter,
        "Times that a queue was held back by a limit.",
        Disk(&[(None, |of| of.limit_waits)]),
    ),
    family(
        "limit_waited_microseconds",
        CounterOfTime,
        "Time for which queues were held back by limits.",
        Disk(&[(None, |of| of.limit_waited_us)]),
    ),
    family(
        "threads_standing",
        Gauge,
        "Threads that stand still now.",
        Disk(&[(None, |of| of.threads_standing)]),
    ),
    family(
        "thread_stands",
        Counter,
        "Times that a thread was found to stand still.",
        Disk(&[(None, |of| of.thread_stands)]),
    ),
    family(
        "map_lookups",
        Counter,
        "Lookups by what they found.",
        Map(&[
            (Some(("result", "hit")), |of| of.hits),
            (Some(("result", "miss")), |of| of.misses),
            (Some(("result", "changing")), |of| of.changing),
        ]),
    ),
    family(
        "map_loads",
        Counter,
        "Windows loaded.",
        Map(&[(None, |of| of.loads)]),
    ),
    family(
        "map_load_failures",
        Counter,
        "Windows not loaded or not kept, by reason.",
        Map(&[
            (Some(("reason", "error")), |of| of.load_errors),
            (Some(("reason", "cached")), |of| of.unsettled),
            (Some(("reason", "budget")), |of| of.refused),
        ]),
    ),
    family(
        "map_evictions",
        Counter,
        "Windows evicted to keep within the budget.",
        Map(&[(None, |of| of.evictions)]),
    ),
    family(
        "map_wishes_dropped",
        Counter,
        "Wishes for windows that were dropped.",
        Map(&[(None, |of| of.wishes_dropped)]),
    ),
    family(
        "map_resident_windows",
        Gauge,
        "Windows in memory.",
        Map(&[(None, |of| of.resident_windows)]),
    ),
    family(
        "map_resident_bytes",
        GaugeOfBytes,
        "Memory of extents.",
        Map(&[(None, |of| of.resident_bytes)]),
    ),
    family(
        "map_budget_bytes",
        GaugeOfBytes,
        "Most memory of extents that are not pinned.",
        Map(&[(None, |of| of.budget_bytes)]),
    ),
    family(
        "map_pinned_bytes",
        GaugeOfBytes,
        "Memory of pinned extents.",
        Map(&[(None, |of| of.pinned_bytes)]),
    ),
    family(
        "map_pin_reserve_bytes",
        GaugeOfBytes,
        "Most memory of pinned extents.",
        Map(&[(None, |of| of.pin_reserve_bytes)]),
    ),
    family(
        "map_holds",
        Gauge,
        "Ranges taken away from the map while they change.",
        Map(&[(None, |of| of.holds)]),
    ),
    family("map_extents", Gauge, "Extents in memory by kind.", Kinds),
];

impl Family {
    fn tell(&self, text: &mut String, statistics: &Statistics) {
        match (&self.samples, &statistics.map) {
            (Disk(samples), _) => self.tell_each(text, samples, statistics),
            (Map(samples), Some(map)) => self.tell_each(text, samples, map),
            (Kinds, Some(map)) => {
                self.begin(text);
                for (kind, count) in map.extents.named() {
                    self.sample(text, Some(("kind", kind.as_str())), count);
                }
            }
            (Room(of), _) => {
                if let Some(room) = &statistics.room {
                    self.begin(text);
                    self.sample(text, None, of(room));
                }
            }
            (Map(_) | Kinds, None) => {}
        }
    }

    fn tell_each<T>(&self, text: &mut String, samples: &[Sample<T>], of: &T) {
        self.begin(text);
        for (label, count) in samples {
            self.sample(text, *label, count(of));
        }
    }

    // Writing to a String does not fail.
    fn begin(&self, text: &mut String) {
        let (name, help) = (self.name, self.help);
        let (kind, unit) = match self.kind {
            Counter => ("counter", None),
            Gauge => ("gauge", None),
            CounterOfBytes => ("counter", Some("bytes")),
            GaugeOfBytes => ("gauge", Some("bytes")),
            CounterOfTime => ("counter", Some("microseconds")),
        };
        let _ = writeln!(text, "# TYPE extentd_{name} {kind}");
        if let Some(unit) = unit {
            let _ = writeln!(text, "# UNIT extentd_{name} {unit}");
        }
        let _ = writeln!(text, "# HELP extentd_{name} {help}");
    }

    fn sample(&self, text: &mut String, label: Option<(&str, &str)>, value: u64) {
        let name = self.name;
        let suffix = match self.kind {
            Counter | CounterOfBytes | CounterOfTime => "_total",
            Gauge | GaugeOfBytes => "",
        };
        let labels = label.map_or_else(String::new, |(name, value)| {
            format!("{{{name}=\"{value}\"}}")
        });
        let _ = writeln!(text, "extentd_{name}{suffix}{labels} {value}");
    }
}

/// The exposition, with its end mark.
pub fn exposition(statistics: &Statistics) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        family.tell(&mut text, statistics);
    }
    text.push_str("# EOF\n");
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;
    use crate::protocol::statistics::ExtentCounts;

    fn sample() -> Statistics {
        Statistics {
            path: Way::Disk.into(),
            requests: 10,
            disk_operations: 7,
            zero_fills: 2,
            read_bytes: 4096,
            map: Some(MapStatistics {
                hits: 5,
                resident_bytes: 96,
                extents: ExtentCounts::new([0, 0, 0, 3, 0]),
                ..MapStatistics::default()
            }),
            ..Statistics::default()
        }
    }

    #[test]
    fn counters_are_told_with_their_labels() {
        let text = exposition(&sample());
        for line in [
            "extentd_requests_total 10",
            "extentd_failed_requests_total 0",
            "extentd_operations_total{way=\"disk\"} 7",
            "extentd_operations_total{way=\"file\"} 0",
            "extentd_operations_total{way=\"zero\"} 2",
            "extentd_transferred_bytes_total{direction=\"read\"} 4096",
            "extentd_disk_path 1",
            "extentd_map_lookups_total{result=\"hit\"} 5",
            "extentd_map_resident_bytes 96",
            "extentd_map_extents{kind=\"shared\"} 3",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
    }

    /// Numbers all counters of an answer from 1000 on; their keys.
    fn number(value: &mut Value, keys: &mut Vec<String>) {
        let Value::Object(fields) = value else { return };
        for (key, value) in fields {
            if value.is_number() {
                *value = (1000 + keys.len()).into();
                keys.push(key.clone());
            }
            number(value, keys);
        }
    }

    #[test]
    fn every_counter_of_the_answer_is_told_once() {
        const NOT_TOLD: [&str; 4] = ["uptime_ms", "table_bytes", "window_bytes", "retired"];
        let mut answer = serde_json::to_value(sample()).unwrap();
        let mut keys = Vec::new();
        number(&mut answer, &mut keys);
        let text = exposition(&serde_json::from_value(answer).unwrap());
        for (at, key) in keys.iter().enumerate() {
            let end = format!(" {}", 1000 + at);
            let told = text.lines().filter(|line| line.ends_with(&end)).count();
            let expected = usize::from(!NOT_TOLD.contains(&key.as_str()));
            assert_eq!(told, expected, "{key} in\n{text}");
        }
    }

    #[test]
    fn the_text_keeps_the_rules_of_the_format() {
        let text = exposition(&sample());
        assert!(text.ends_with("# EOF\n"));
        let (mut family, mut kind) = (String::new(), String::new());
        let mut families = HashSet::new();
        let mut samples = HashSet::new();
        for line in text.trim_end_matches("# EOF\n").lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["#", "TYPE", name, which] => {
                    assert!(families.insert(name.to_owned()), "{name} twice");
                    (family, kind) = (name.to_owned(), which.to_owned());
                }
                ["#", "UNIT", name, unit] => {
                    assert_eq!(name, family);
                    assert!(family.ends_with(&format!("_{unit}")), "{family}");
                }
                ["#", "HELP", name, ..] => assert_eq!(name, family),
                [sample, value] => {
                    let name = sample.split('{').next().unwrap();
                    let suffix = if kind == "counter" { "_total" } else { "" };
                    assert_eq!(name, format!("{family}{suffix}"), "samples stay together");
                    assert!(samples.insert(sample.to_owned()), "{sample} twice");
                    value.parse::<u64>().unwrap();
                }
                _ => panic!("{line}"),
            }
        }
        assert!(!samples.is_empty());
    }

    #[test]
    fn without_a_map_nothing_is_told_of_one() {
        let text = exposition(&Statistics::default());
        assert!(!text.contains("_map_"), "{text}");
        assert!(text.contains("extentd_disk_path 0\n"));
    }
}
