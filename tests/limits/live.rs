//! Limits are changed while a guest runs.

use std::thread;
use std::time::{Duration, Instant};

use front_end::load::Plan;
use serde_json::json;

use crate::rig::{Disk, Guest, Stats, beside};

/// How soon another limit holds.
const SOON: Duration = Duration::from_millis(200);

fn plan() -> Plan {
    Plan {
        depth: 16,
        queues: 2,
        threads: 1,
        ..Plan::default()
    }
}

/// What a limit allows in a second, and what may be saved up before it.
fn allowed(iops: f64) -> f64 {
    iops * 1.02 + iops * 0.04 + 4.0
}

/// Requests per second in a second that begins soon after now.
fn rate(disk: &Disk) -> f64 {
    thread::sleep(SOON);
    let before = disk.stats();
    thread::sleep(Duration::from_secs(1));
    let (count, seconds) = Stats::since(&disk.stats(), &before, "requests");
    count / seconds
}

#[test]
fn a_new_limit_holds_soon_and_a_lifted_one_no_more() {
    let disk = Disk::new(&[]);
    beside(disk.socket(), plan(), || {
        let free = rate(&disk);
        assert_eq!(disk.set_iops(1000)["limits"]["iops"], 1000);
        let limited = rate(&disk);
        assert!(limited <= allowed(1000.0), "{limited}");
        disk.set_iops(200);
        let slow = rate(&disk);
        assert!(slow <= allowed(200.0), "{slow}");
        disk.set_iops(2000);
        let faster = rate(&disk);
        assert!(
            faster > allowed(200.0) && faster <= allowed(2000.0),
            "{faster}"
        );
        assert_eq!(disk.set_iops(0)["limits"]["iops"], json!(null));
        let again = rate(&disk);
        assert!(again > allowed(2000.0), "{again} of {free}");
    });
}

/// Whoever waits under the old limit for hours is served under the new one.
#[test]
fn a_debt_ends_with_its_limit() {
    let disk = Disk::new(&["--limit", "bytes=1"]);
    let mut guest = Guest::new(disk.socket(), 1, 4).unwrap();
    let begin = Instant::now();
    while guest.ended[0] == 0 {
        guest.go_on(Duration::from_millis(10)).unwrap();
    }
    // 4096 bytes take more than an hour.
    assert_eq!(guest.go_on(Duration::from_millis(300)).unwrap(), 0);
    disk.extentctl(&["limits", "--bytes", "100M"]);
    let lifted = Instant::now();
    while guest.ended[0] < 100 {
        guest.go_on(Duration::from_millis(1)).unwrap();
        // Without being woken, it looks around every 5 s only.
        assert!(lifted.elapsed() < 5 * SOON, "{:?}", guest.ended);
    }
    let stats = disk.stats();
    assert!(stats.get("limit_waits") > 0);
    // It has waited since its first request.
    let waited = u64::try_from((lifted - begin).as_micros()).unwrap();
    assert!(stats.get("limit_waited_us") > waited / 2);
}

#[test]
fn limits_are_shown_by_info_and_limits_and_metrics() {
    let limits = [
        "--limit",
        "iops=5000,burst-iops=700",
        "--limit",
        "read-bytes=1M",
    ];
    let disk = Disk::new(&limits);
    let text = disk.extentctl(&["limits"]);
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for line in [
        &["group", "-"][..],
        &["iops", "5000"],
        &["burst", "iops", "700"],
    ] {
        assert!(lines.iter().any(|have| have == line), "{line:?} in\n{text}");
    }
    let text = disk.extentctl(&["limits", "--iops", "none", "--write-bytes", "2M"]);
    assert!(text.contains("2 MiB (2097152 bytes)"), "{text}");
    let info: serde_json::Value =
        serde_json::from_str(&disk.extentctl(&["--json", "info"])).unwrap();
    let shown = &info["limits"]["limits"];
    assert_eq!(
        (&shown["iops"], &shown["write_bytes"]),
        (&json!(null), &json!(2 << 20))
    );
    let metrics = disk.extentctl(&["metrics"]);
    assert!(
        metrics.contains("extentd_limit_waits_total 0\n"),
        "{metrics}"
    );
    assert!(metrics.contains("# UNIT extentd_limit_waited_microseconds microseconds\n"));
    let line = disk
        .daemon
        .wait_stderr(|line| line.contains("asks: limits"))
        .unwrap();
    assert!(
        line.contains("limits iops=none,write-bytes=2097152"),
        "{line}"
    );
}
