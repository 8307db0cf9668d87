//! The counters as OpenMetrics text (version 1.0.0), which Prometheus and its
//! kin collect.

use std::fmt::Write;

use crate::protocol::statistics::{MapStatistics, Statistics};
use crate::protocol::words::Way;

/// What OpenMetrics calls a family.
enum Type {
    /// Only ever grows; its samples end in `_total`.
    Counter,
    /// As it is now.
    Gauge,
}

/// Samples of one family: labels in braces, or nothing, and the value.
type Samples<'a> = &'a [(&'a str, u64)];

struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, unit: &str, kind: &Type, help: &str, samples: Samples<'_>) {
        let (kind, suffix) = match kind {
            Type::Counter => ("counter", "_total"),
            Type::Gauge => ("gauge", ""),
        };
        let text = &mut self.0;
        // Writing to a String does not fail.
        let _ = writeln!(text, "# TYPE extentd_{name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(text, "# UNIT extentd_{name} {unit}");
        }
        let _ = writeln!(text, "# HELP extentd_{name} {help}");
        for (labels, value) in samples {
            let _ = writeln!(text, "extentd_{name}{suffix}{labels} {value}");
        }
    }

    fn counter(&mut self, name: &str, help: &str, samples: Samples<'_>) {
        self.family(name, "", &Type::Counter, help, samples);
    }

    fn gauge(&mut self, name: &str, help: &str, samples: Samples<'_>) {
        self.family(name, "", &Type::Gauge, help, samples);
    }

    fn bytes(&mut self, name: &str, kind: &Type, help: &str, samples: Samples<'_>) {
        self.family(name, "bytes", kind, help, samples);
    }
}

/// The exposition, with its end mark.
pub fn exposition(statistics: &Statistics) -> String {
    let mut out = Exposition(String::new());
    out.counter(
        "requests",
        "Requests that have ended.",
        &[("", statistics.requests)],
    );
    out.counter(
        "failed_requests",
        "Requests that failed for what the host said.",
        &[("", statistics.failed_requests)],
    );
    out.counter(
        "operations",
        "Reads and writes by the way they went; zero needs no I/O.",
        &[
            ("{way=\"disk\"}", statistics.disk_operations),
            ("{way=\"file\"}", statistics.file_operations),
            ("{way=\"zero\"}", statistics.zero_fills),
        ],
    );
    out.bytes(
        "transferred_bytes",
        &Type::Counter,
        "Bytes of reads and writes that ended well.",
        &[
            ("{direction=\"read\"}", statistics.read_bytes),
            ("{direction=\"write\"}", statistics.written_bytes),
        ],
    );
    out.gauge(
        "disk_path",
        "1 while requests go straight to the disk.",
        &[("", u64::from(statistics.path == Way::Disk))],
    );
    out.counter(
        "disk_path_entries",
        "Times that the disk path was entered.",
        &[("", statistics.path_entries)],
    );
    if let Some(map) = &statistics.map {
        map_families(&mut out, map);
    }
    out.0.push_str("# EOF\n");
    out.0
}

fn map_families(out: &mut Exposition, map: &MapStatistics) {
    out.counter(
        "map_lookups",
        "Lookups by what they found.",
        &[
            ("{result=\"hit\"}", map.hits),
            ("{result=\"miss\"}", map.misses),
            ("{result=\"changing\"}", map.changing),
        ],
    );
    out.counter("map_loads", "Windows loaded.", &[("", map.loads)]);
    out.counter(
        "map_load_failures",
        "Windows not loaded or not kept, by reason.",
        &[
            ("{reason=\"error\"}", map.load_errors),
            ("{reason=\"cached\"}", map.unsettled),
            ("{reason=\"budget\"}", map.refused),
        ],
    );
    out.counter(
        "map_evictions",
        "Windows evicted to keep within the budget.",
        &[("", map.evictions)],
    );
    out.counter(
        "map_wishes_dropped",
        "Wishes for windows that were dropped.",
        &[("", map.wishes_dropped)],
    );
    out.gauge(
        "map_resident_windows",
        "Windows in memory.",
        &[("", map.resident_windows)],
    );
    out.bytes(
        "map_resident_bytes",
        &Type::Gauge,
        "Memory of extents.",
        &[("", map.resident_bytes)],
    );
    out.bytes(
        "map_budget_bytes",
        &Type::Gauge,
        "Most memory of extents that are not pinned.",
        &[("", map.budget_bytes)],
    );
    out.bytes(
        "map_pinned_bytes",
        &Type::Gauge,
        "Memory of pinned extents.",
        &[("", map.pinned_bytes)],
    );
    out.bytes(
        "map_pin_reserve_bytes",
        &Type::Gauge,
        "Most memory of pinned extents.",
        &[("", map.pin_reserve_bytes)],
    );
    out.gauge(
        "map_holds",
        "Ranges taken away from the map while they change.",
        &[("", map.holds)],
    );
    let extents = map.extents.named().map(|(kind, count)| {
        let label = format!("{{kind=\"{kind}\"}}");
        (label, count)
    });
    let extents: Vec<_> = extents
        .iter()
        .map(|(label, count)| (label.as_str(), *count))
        .collect();
    out.gauge("map_extents", "Extents in memory by kind.", &extents);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
