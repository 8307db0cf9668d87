//! `stats`, `top`, `metrics` and `info`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::rig::{HOLE, IMAGE, Rig, UNWRITTEN, WINDOW, content};

/// By how much a counter has grown.
fn grown(before: &Value, after: &Value, name: &str) -> u64 {
    let get = |stats: &Value| stats.pointer(name).unwrap().as_u64().unwrap();
    get(after) - get(before)
}

#[test]
fn every_request_is_counted_under_the_way_it_went() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let mut guest = rig.attach_to_disk();
    // So that no request meets a window that is not loaded.
    rig.extentctl(&["advise", "pin", "all"]).text();
    let first = rig.json(&["stats"]);
    assert_eq!(first["path"], "disk");
    assert_eq!(first["path_entries"], 1);
    assert_eq!(first["map"]["resident_windows"], IMAGE / WINDOW);
    assert_eq!(first["map"]["window_bytes"], WINDOW);
    for (kind, least) in [("written", 1), ("hole", 1), ("unwritten", 1)] {
        assert!(
            first["map"]["extents"][kind].as_u64().unwrap() >= least,
            "{first:#}"
        );
    }

    assert_eq!(guest.read(4096, 8192), content(4096, 8192));
    let read = rig.json(&["stats"]);
    guest.write(8192, &content(512, 4096));
    let written = rig.json(&["stats"]);
    assert_eq!(guest.read(HOLE, 4096), [0; 4096]);
    let zeros = rig.json(&["stats"]);
    guest.write(UNWRITTEN + 4096, &content(0, 4096));
    let filed = rig.json(&["stats"]);
    let steps = [
        (&first, &read, "/disk_operations", "/read_bytes", 8192),
        (&read, &written, "/disk_operations", "/written_bytes", 4096),
        (&written, &zeros, "/zero_fills", "/read_bytes", 4096),
        (&zeros, &filed, "/file_operations", "/written_bytes", 4096),
    ];
    for (before, after, way, bytes, count) in steps {
        for name in ["/disk_operations", "/file_operations", "/zero_fills"] {
            let expected = u64::from(name == way);
            assert_eq!(grown(before, after, name), expected, "{name} of {way}");
        }
        for name in ["/read_bytes", "/written_bytes"] {
            let expected = if name == bytes { count } else { 0 };
            assert_eq!(grown(before, after, name), expected, "{name} of {way}");
        }
        assert_eq!(grown(before, after, "/requests"), 1);
        assert_eq!(grown(before, after, "/failed_requests"), 0);
        for (kind, of) in [("read", "/read_bytes"), ("write", "/written_bytes")] {
            let name = format!("/requests_by_operation/{kind}");
            assert_eq!(
                grown(before, after, &name),
                u64::from(of == bytes),
                "{name}"
            );
        }
    }
    assert!(grown(&first, &filed, "/map/hits") >= 3);

    let text = rig.extentctl(&["stats"]).text();
    assert!(text.contains("path reason"), "{text}");
    assert!(text.contains("\nmap\n"), "{text}");
}

#[test]
fn without_a_disk_path_stats_say_so_and_have_no_map() {
    let rig = Rig::on_tmpfs(&[]);
    let mut guest = rig.attach();
    guest.read(0, 4096);
    let stats = rig.json(&["stats"]);
    assert_eq!(stats["path"], "file");
    assert!(stats["path_reason"].as_str().unwrap().contains("tmpfs"));
    assert_eq!(stats["map"], Value::Null);
    assert_eq!(stats["requests"], 1);
    assert_eq!(stats["disk_operations"], 0);
}

#[test]
fn info_is_a_table_with_the_path_and_its_reason() {
    let rig = Rig::on_tmpfs(&[]);
    let text = rig.extentctl(&["info"]).text();
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} in\n{text}"));
        line.trim_start()[name.len()..].trim().to_owned()
    };
    assert_eq!(value("path  "), "file");
    assert!(value("path reason").contains("tmpfs"), "{text}");
    assert_eq!(value("size bytes"), "12 MiB (12582912 bytes)");
    assert!(text.starts_with("version"), "the order is kept:\n{text}");
}

#[test]
fn top_shows_rates_from_the_second_screen_on_and_ends_by_itself() {
    let rig = Rig::on_tmpfs(&[]);
    let mut guest = rig.attach();
    for sector in 0..10 {
        guest.read(sector * 512, 512);
    }
    let text = rig
        .extentctl(&["top", "--count", "2", "--interval", "0.1"])
        .text();
    assert!(!text.contains('\x1b'), "this is no terminal");
    let requests: Vec<Vec<_>> = text
        .lines()
        .filter(|line| line.starts_with("requests"))
        .map(|line| line.split_whitespace().skip(1).collect())
        .collect();
    assert_eq!(requests, [["-", "10"], ["0", "10"]], "{text}");

    let lines = rig
        .extentctl(&["top", "--json", "--count", "3", "--interval", "0.1"])
        .text();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert!(grown(&lines[0], &lines[2], "/uptime_ms") >= 200);
}

#[test]
fn metrics_tell_what_stats_tell() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let mut guest = rig.attach_to_disk();
    rig.extentctl(&["advise", "pin", "all"]).text();
    guest.read(0, 4096);
    guest.read(HOLE, 4096);
    let text = rig.extentctl(&["metrics"]).text();
    let stats = rig.json(&["stats"]);
    for (sample, label, name) in [
        (
            "requests_total",
            ",operation=\"read\"",
            "/requests_by_operation/read",
        ),
        ("operations_total", ",way=\"disk\"", "/disk_operations"),
        ("operations_total", ",way=\"zero\"", "/zero_fills"),
        (
            "transferred_bytes_total",
            ",direction=\"read\"",
            "/read_bytes",
        ),
        ("disk_path_entries_total", "", "/path_entries"),
        ("map_resident_bytes", "", "/map/resident_bytes"),
        ("map_extents", ",kind=\"hole\"", "/map/extents/hole"),
    ] {
        let value = stats.pointer(name).unwrap();
        assert_ne!(*value, 0, "{name}");
        let image = rig.image.display();
        let line = format!("extentd_{sample}{{disk=\"{image}\"{label}}} {value}");
        assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
    }
    assert_eq!(stats["lease_held"], true);
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn metrics_are_told_over_http_on_loopback() {
    let rig = Rig::on_tmpfs(&["--metrics-listen", "0"]);
    rig.attach().read(0, 4096);
    let line = rig
        .daemon
        .wait_stderr(|line| line.contains("metrics at http://"))
        .unwrap();
    let address = line.split("http://").nth(1).unwrap();
    let address: SocketAddr = address.trim_end_matches("/metrics").parse().unwrap();
    assert!(address.ip().is_loopback());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(front_end::LIMIT)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let read = |line: &str| {
        line.starts_with("extentd_requests_total{") && line.ends_with(",operation=\"read\"} 1")
    };
    assert!(body.lines().any(read), "{body}");

    // Nobody else can have that address.
    let output = std::process::Command::new(crate::rig::extentd())
        .args(["--metrics-listen", &address.to_string(), "--lock", "off"])
        .arg("--socket-path")
        .arg(rig.image.with_extension("socket"))
        .arg("--blk-file")
        .arg(&rig.image)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    let last = told.lines().last().unwrap();
    assert!(
        last.starts_with(&format!(
            "extentd: --metrics-listen {address}: cannot listen: "
        )),
        "{told}"
    );
}
