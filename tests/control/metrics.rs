//! Metrics as scrapers have them: in both formats, by promtool and by
//! Prometheus itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use front_end::limit;

use crate::rig::Rig;
use crate::scrape::{Exporter, Killed, PLAIN, folder_of, scrape_unix, sum};

#[test]
fn a_socket_in_the_file_system_tells_both_formats_under_load_and_goes_with_the_process() {
    let folder = rig::scratch::folder("metrics");
    let path = folder.path().join("metrics.socket");
    let rig = Rig::on_tmpfs(&["--metrics-listen", &format!("unix:{}", path.display())]);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let at_work = rig.under_io(rig.attach());
    let start = Instant::now();
    let mut before = 0.0;
    loop {
        let (head, body) = scrape_unix(&path, "");
        assert!(head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0"));
        assert!(body.ends_with("\n# EOF\n"));
        let (head, plain) = scrape_unix(&path, PLAIN);
        assert!(
            head.contains("\r\nContent-Type: text/plain; version=0.0.4"),
            "{head}"
        );
        assert!(plain.contains("# TYPE extentd_requests_total counter\n"));
        let requests = sum(&plain, "extentd_requests_total", &[]);
        assert!(requests >= before);
        before = requests;
        let timed = |stage: &str| {
            let name = "extentd_request_stage_duration_seconds_count";
            sum(&plain, name, &[&format!("stage=\"{stage}\"")])
        };
        let whole = sum(&plain, "extentd_request_duration_seconds_count", &[]);
        let stages = ["submit", "io", "publish"].map(timed);
        // A scrape may see a request between two stages.
        assert!(
            stages.iter().all(|stage| (stage - whole).abs() <= 1.0),
            "{stages:?} {whole}"
        );
        let image = format!("disk=\"{}\"", rig.image.display());
        if whole >= 3.0 && timed("interrupt") >= 1.0 {
            // One in 127, and the first.
            assert!(
                (requests / 127.0 - whole).abs() <= 2.0,
                "{whole} of {requests}"
            );
            assert!(
                sum(
                    &plain,
                    "extentd_requests_total",
                    &["operation=\"read\"", &image]
                ) > 0.0
            );
            assert!(sum(&plain, "extentd_interrupts_total", &["outcome=\"sent\""]) > 0.0);
            assert!(sum(&plain, "extentd_poll_looks_total", &[]) > 0.0);
            break;
        }
        assert!(start.elapsed() < limit(), "{plain}");
    }
    drop(at_work);
    assert!(rig.daemon.terminate().unwrap().success());
    assert!(!path.exists());
}

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn promtool(arguments: &[&str]) -> Option<Command> {
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("SKIP: no promtool here (package prometheus)");
        return None;
    }
    let mut command = Command::new("promtool");
    command.args(arguments);
    Some(command)
}

fn silent(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = text(&output.stderr) + &text(&output.stdout);
    assert!(output.status.success() && told.is_empty(), "{told}");
}

#[test]
fn promtool_finds_nothing_to_say_against_the_names() {
    let Some(command) = promtool(&["check", "metrics"]) else {
        return;
    };
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    rig.attach_to_disk().read(0, 4096);
    let folder = folder_of(&[("a.control", rig.control())]);
    let exporter = Exporter::start(folder.path(), "1");
    let (_, body) = exporter.scrape(PLAIN);
    assert!(body.contains("extentd_map_extents{"), "{body}");
    silent(&with_input(command, &body));
}

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

#[test]
fn promtool_understands_the_rules_and_they_fire_where_they_should() {
    let (rules, cases) = (packaged("prometheus-rules.yml"), "tests/control/rules.yml");
    let Some(mut command) = promtool(&["check", "rules"]) else {
        return;
    };
    let output = command.arg(&rules).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut command = promtool(&["test", "rules", cases]).unwrap();
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn dashboard_and_rules_ask_for_metrics_that_there_are() {
    let page = include_str!("../../docs/metrics.md");
    let dashboard = std::fs::read_to_string(packaged("grafana-dashboard.json")).unwrap();
    let rules = std::fs::read_to_string(packaged("prometheus-rules.yml")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let mut asked = 0;
    for text in [dashboard, rules] {
        for rest in text.split("extentd_").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let name = rest[..end.unwrap_or(rest.len())].trim_end_matches("_bucket");
            assert!(
                page.contains(&format!("| `extentd_{name}` |")),
                "extentd_{name}"
            );
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
}

#[test]
fn a_prometheus_scrapes_a_disk_under_load() {
    if Command::new("prometheus")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIP: no prometheus here");
        return;
    }
    let rig = Rig::on_tmpfs(&["--metrics-listen", "0"]);
    let at_work = rig.under_io(rig.attach());
    let line = rig
        .daemon
        .wait_stderr(|line| line.contains("metrics at http://"))
        .unwrap();
    let disk = line
        .split("http://")
        .nth(1)
        .unwrap()
        .trim_end_matches("/metrics")
        .to_owned();
    let folder = folder_of(&[("vm.control", rig.control())]);
    let exporter = Exporter::start(folder.path(), "5");
    let place = rig::scratch::folder("prometheus");
    let config = place.path().join("prometheus.yml");
    let rules = packaged("prometheus-rules.yml");
    let targets = [disk.as_str(), exporter.address.as_str()];
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 1s}}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs: [{{job_name: extentd, static_configs: [{{targets: {targets:?}}}]}}]\n"
        ),
    )
    .unwrap();
    // It takes no port from the host, so one is looked for that is free.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let _prometheus = Killed(
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                place.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let query = |text: &str| -> Vec<f64> {
        let Ok(mut stream) = TcpStream::connect(port) else {
            return Vec::new();
        };
        write!(stream, "GET /api/v1/query?query={text} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let Ok(answer) = serde_json::from_str::<serde_json::Value>(body) else {
            return Vec::new();
        };
        let results = answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let value = |one: &serde_json::Value| one["value"][1].as_str()?.parse().ok();
        results.iter().filter_map(value).collect()
    };
    for (text, series) in [
        ("up", 2),
        ("extentd_up", 1),
        ("extentd_front_end_connected", 2),
        ("sum%20by%20(instance)(rate(extentd_requests_total[5s]))", 2),
        (
            "histogram_quantile(0.99,sum%20by%20(instance,le)(rate(extentd_request_stage_duration_seconds_bucket[5s])))",
            2,
        ),
    ] {
        let start = Instant::now();
        loop {
            let values = query(text);
            if values.len() == series && values.iter().all(|value| *value > 0.0) {
                break;
            }
            assert!(start.elapsed() < limit(), "{text}: {values:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    drop(at_work);
}
