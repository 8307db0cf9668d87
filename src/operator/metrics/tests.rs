use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::*;
use crate::protocol::info::Room;
use crate::protocol::statistics::{ExtentCounts, MapStatistics, Statistics};
use crate::protocol::words::Way;

fn sample() -> Statistics {
    let mut sample = Statistics {
        path: Way::Disk.into(),
        path_reason: "it is \"ours\"".to_owned(),
        image: "/i\n\\a".to_owned(),
        version: "1.2.3".to_owned(),
        requests: 10,
        disk_operations: 7,
        zero_fills: 2,
        read_bytes: 4096,
        lease_held: Some(true),
        limit_waited_us: 1_500_000,
        held_for_us: Some(2_500_000),
        room: Some(Room {
            free_bytes: 7,
            unallocated_bytes: 8,
            overcommitted: true,
            low: true,
        }),
        map: Some(MapStatistics {
            hits: 5,
            resident_bytes: 96,
            extents: ExtentCounts::new([0, 0, 0, 3, 0]),
            ..MapStatistics::default()
        }),
        ..Statistics::default()
    };
    sample.requests_by_operation.read = 9;
    sample.requests_by_operation.flush = 1;
    let times = &mut sample.latency.stages.io;
    times.sum_ns = 3_000_000;
    times.buckets = vec![1, 2];
    times.buckets.resize(vhost_backend::BUCKETS, 0);
    *times.buckets.last_mut().unwrap() = 4;
    sample
}

fn text(sample: Statistics) -> String {
    exposition(vec![sample.into()], Format::OpenMetrics)
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
}

#[test]
fn counters_are_told_with_their_labels() {
    let text = text(sample());
    let disk = r#"disk="/i\n\\a""#;
    for (name, labels, value) in [
        ("requests_total", "operation=\"read\"", "9"),
        ("requests_total", "operation=\"flush\"", "1"),
        ("failed_requests_total", "operation=\"write_zeroes\"", "0"),
        ("operations_total", "way=\"disk\"", "7"),
        ("operations_total", "way=\"file\"", "0"),
        ("operations_total", "way=\"zero\"", "2"),
        ("transferred_bytes_total", "direction=\"read\"", "4096"),
        ("disk_path", "", "1"),
        ("lease_held", "", "1"),
        ("limit_waited_seconds_total", "", "1.5"),
        ("quiesced", "", "1"),
        ("quiesced_time_seconds", "", "2.5"),
        ("build_info", "version=\"1.2.3\"", "1"),
        (
            "path_info",
            "way=\"disk\",reason=\"it is \\\"ours\\\"\"",
            "1",
        ),
        ("map_lookups_total", "result=\"hit\"", "5"),
        ("map_resident_bytes", "", "96"),
        ("map_extents", "kind=\"shared\"", "3"),
        (
            "request_stage_duration_seconds_sum",
            "stage=\"io\"",
            "0.003",
        ),
        ("request_stage_duration_seconds_count", "stage=\"io\"", "7"),
    ] {
        let more = if labels.is_empty() { "" } else { "," };
        // Those of an info stand first.
        let lines = [
            format!("extentd_{name}{{{disk}{more}{labels}}} {value}"),
            format!("extentd_{name}{{{labels}{more}{disk}}} {value}"),
        ];
        assert!(
            text.lines()
                .any(|have| lines.iter().any(|line| have == line)),
            "{} in\n{text}",
            lines[0]
        );
    }
}

#[test]
fn buckets_are_told_as_sums_up_to_their_bounds() {
    let text = text(sample());
    let lines = text.lines().filter(|line| {
        line.starts_with("extentd_request_stage_duration_seconds_bucket{")
            && line.contains("stage=\"io\"")
    });
    let buckets: Vec<(f64, u64)> = lines
        .map(|line| {
            let (_, rest) = line.split_once("le=\"").unwrap();
            let (bound, _) = rest.split_once('"').unwrap();
            let (_, count) = line.rsplit_once(' ').unwrap();
            (bound.parse().unwrap(), count.parse().unwrap())
        })
        .collect();
    assert_eq!(buckets.len(), vhost_backend::BUCKETS);
    assert_eq!(buckets[0], (1.024e-6, 1));
    assert_eq!(buckets[1], (2.048e-6, 3));
    assert_eq!(buckets[buckets.len() - 2], (8.589_934_592, 3));
    assert_eq!(buckets[buckets.len() - 1], (f64::INFINITY, 7));
    assert!(buckets.is_sorted());
}

/// Numbers all counters of an answer from 1000000 on, in steps that seconds
/// show as well; their keys.
fn number(value: &mut Value, keys: &mut Vec<String>) {
    let Value::Object(fields) = value else { return };
    for (key, value) in fields {
        if value.is_number() {
            *value = (1_000_000 + 1000 * keys.len()).into();
            keys.push(key.clone());
        }
        number(value, keys);
    }
}

#[test]
fn every_counter_of_the_answer_is_told_once() {
    // The first three are sums of what is told by kind.
    const NOT_TOLD: [&str; 8] = [
        "requests",
        "failed_requests",
        "count",
        "table_bytes",
        "window_bytes",
        "retired",
        "timed_one_in",
        "uptime_ms",
    ];
    let mut answer = serde_json::to_value(sample()).unwrap();
    let mut keys = Vec::new();
    number(&mut answer, &mut keys);
    let text = text(serde_json::from_value(answer).unwrap());
    for (at, key) in keys.iter().enumerate() {
        let told = 1_000_000 + 1000 * at;
        let seconds = |time: Duration| time.as_secs_f64();
        let told = u64::try_from(told).unwrap();
        let end = match key.as_str() {
            key if key.ends_with("_us") => format!(" {}", seconds(Duration::from_micros(told))),
            key if key.ends_with("_ns") => format!(" {}", seconds(Duration::from_nanos(told))),
            _ => format!(" {told}"),
        };
        let times = text.lines().filter(|line| line.ends_with(&end)).count();
        let expected = usize::from(!NOT_TOLD.contains(&key.as_str()));
        assert_eq!(times, expected, "{key} as{end} in\n{text}");
    }
}

/// Each family of a text with its type and unit; samples follow theirs.
fn families(text: &str) -> BTreeMap<String, (String, String)> {
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut samples = HashSet::new();
    let (mut family, mut help) = (String::new(), false);
    for line in text.trim_end_matches("# EOF\n").lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["#", "HELP", name, _, ..] => {
                family = name.to_owned();
                help = true;
            }
            ["#", "TYPE", name, which] => {
                assert!(help && name == family, "{line}");
                let new = families.insert(family.clone(), (which.to_owned(), String::new()));
                assert!(new.is_none(), "{name} twice");
            }
            ["#", "UNIT", name, unit] => {
                assert!(
                    name == family && name.ends_with(&format!("_{unit}")),
                    "{line}"
                );
                families.get_mut(name).unwrap().1 = unit.to_owned();
            }
            _ => {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let name = sample.split('{').next().unwrap();
                let suffixes: &[&str] = match families[&family].0.as_str() {
                    "counter" => &["_total"],
                    "histogram" => &["_sum", "_count", "_bucket"],
                    "info" => &["_info"],
                    _ => &[""],
                };
                let fits = |suffix: &&str| name == format!("{family}{suffix}");
                assert!(suffixes.iter().any(fits), "{line}");
                assert!(samples.insert(sample.to_owned()), "{sample} twice");
                value.parse::<f64>().unwrap();
            }
        }
    }
    families
}

fn asked(control: &str, statistics: Option<Statistics>) -> Scraped {
    let control = control.to_owned();
    let time = Duration::from_millis(5);
    Scraped {
        asked: Some(Asked { control, time }),
        statistics,
    }
}

#[test]
fn the_text_keeps_the_rules_of_the_format() {
    let text = text(sample());
    assert!(text.ends_with("# EOF\n"));
    assert!(families(&text).len() > 30);
    let disks = vec![
        asked("a.ctl", Some(sample())),
        asked("b.ctl", None),
        asked("c.ctl", Some(Statistics::default())),
    ];
    let text = exposition(disks, Format::OpenMetrics);
    assert!(families(&text).len() > 32);
    has(&text, "extentd_up{control=\"a.ctl\"} 1");
    has(&text, "extentd_up{control=\"b.ctl\"} 0");
    has(
        &text,
        "extentd_scrape_duration_seconds{control=\"b.ctl\"} 0.005",
    );
    assert_eq!(text.matches("b.ctl").count(), 2, "{text}");
    has(&text, "extentd_disk_path{control=\"c.ctl\",disk=\"\"} 0");
}

#[test]
fn without_a_map_nothing_is_told_of_one() {
    let text = text(Statistics::default());
    assert!(!text.contains("_map_"), "{text}");
    assert!(!text.contains("lease"), "{text}");
    has(&text, "extentd_disk_path{disk=\"\"} 0");
}

#[test]
fn the_older_format_has_the_names_of_samples_and_no_end() {
    let text = exposition(vec![sample().into()], Format::Prometheus);
    has(&text, "# TYPE extentd_limit_waits_total counter");
    has(&text, "# TYPE extentd_request_duration_seconds histogram");
    has(&text, "# TYPE extentd_build_info gauge");
    assert!(
        !text.contains("# EOF") && !text.contains("# UNIT"),
        "{text}"
    );
}

/// The rows of the tables of docs/metrics.md: metric, type, unit, labels.
fn documented() -> BTreeMap<String, (String, String, BTreeSet<String>)> {
    let page = include_str!("../../../docs/metrics.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", name, kind, unit, labels, meaning, ""] if name.starts_with("`extentd_") => {
                assert!(meaning.len() > 10, "{name} has no meaning");
                let plain = |text: &str| text.trim_matches('`').to_owned();
                let labels = labels.split(", ").filter(|label| !label.is_empty());
                let row = (
                    kind.to_owned(),
                    unit.to_owned(),
                    labels.map(plain).collect(),
                );
                Some((plain(name), row))
            }
            _ => None,
        }
    });
    let rows: Vec<_> = rows.collect();
    let (all, count) = (BTreeMap::from_iter(rows.clone()), rows.len());
    assert_eq!(all.len(), count, "a metric stands twice in docs/metrics.md");
    all
}

#[test]
fn the_page_of_metrics_names_all_that_are_told_and_no_other() {
    let text = exposition(vec![asked("a.ctl", Some(sample()))], Format::OpenMetrics);
    let mut told: BTreeMap<String, (String, String, BTreeSet<String>)> = BTreeMap::new();
    for (name, (kind, unit)) in families(&text) {
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        // Labels of all samples but those that all have.
        let starts = [suffix, "_bucket"]
            .map(|end| format!("extentd_{name}{end}{{").replace("extentd_extentd", "extentd"));
        let mut labels = BTreeSet::new();
        for line in text
            .lines()
            .filter(|line| starts.iter().any(|start| line.starts_with(start)))
        {
            let words = line.split_once('{').unwrap().1.split("=\"");
            let names = words.map(|word| word.rsplit([',', '{']).next().unwrap().to_owned());
            let names: Vec<String> = names.collect();
            labels.extend(names[..names.len() - 1].iter().cloned());
        }
        for common in ["control", "disk", "le"] {
            labels.remove(common);
        }
        let unit = if unit.is_empty() {
            "-".to_owned()
        } else {
            unit
        };
        told.insert(format!("{name}{suffix}"), (kind, unit, labels));
    }
    assert_eq!(documented(), told);
}
