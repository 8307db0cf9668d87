//! Metrics as scrapers have them: both formats, both kinds of sockets, of one
//! disk and of many.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use front_end::{Daemon, limit};

use crate::rig::{Rig, extentd};

const PLAIN: &str = "Accept: text/plain;version=0.0.4\r\n";

fn exchange(mut stream: impl Read + Write, header: &str) -> (String, String) {
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    (head.to_owned(), body.to_owned())
}

/// The sum of samples of that name with all of these labels.
fn sum(body: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = body.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    let values: Vec<f64> = samples
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert!(!values.is_empty(), "{name} {labels:?} in\n{body}");
    values.iter().sum()
}

fn scrape_unix(path: &Path, header: &str) -> (String, String) {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(limit())).unwrap();
    exchange(stream, header)
}

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

fn folder_of(disks: &[(&str, &Path)]) -> tempfile::TempDir {
    let folder = rig::scratch::folder("exporter");
    for (name, control) in disks {
        std::os::unix::fs::symlink(control, folder.path().join(name)).unwrap();
    }
    folder
}

/// `extentctl exporter`, until this is dropped.
struct Exporter {
    child: Child,
    address: String,
}

impl Exporter {
    fn start(folder: &Path, timeout: &str) -> Self {
        let mut child = Command::new(rig::extentctl!())
            .arg(format!("--all={}", folder.display()))
            .args(["exporter", "--listen", "0", "--timeout", timeout])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (_, address) = line
            .trim_end()
            .split_once("metrics at http://")
            .expect(&line);
        let address = address.trim_end_matches("/metrics").to_owned();
        Self { child, address }
    }

    fn scrape(&self, header: &str) -> (String, String) {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(limit())).unwrap();
        exchange(stream, header)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether each disk of an exposition is up.
fn up(body: &str) -> BTreeMap<String, bool> {
    let samples = body
        .lines()
        .filter_map(|line| line.strip_prefix("extentd_up{control=\""));
    let disk = |rest: &str| {
        let (name, value) = rest.split_once("\"} ").unwrap();
        (name.to_owned(), value == "1")
    };
    samples.map(disk).collect()
}

#[test]
fn dead_and_hung_disks_are_down_and_cost_their_own_time_only() {
    let (one, two) = (Rig::on_tmpfs(&[]), Rig::on_tmpfs(&[]));
    let at_work = one.under_io(one.attach());
    let folder = folder_of(&[("one.control", one.control()), ("two.ctl", two.control())]);
    let path = |name: &str| folder.path().join(name);
    drop(UnixListener::bind(path("dead.control")).unwrap());
    std::fs::write(path("no-socket.ctl"), "").unwrap();
    // They listen and never answer; of one the line is full.
    let hung: Vec<_> = (0..20)
        .map(|number| UnixListener::bind(path(&format!("hung{number}.ctl"))).unwrap())
        .collect();
    let mut waiting = Vec::new();
    loop {
        let (socket, address) = (path("hung0.ctl"), rustix::net::SocketAddrUnix::new);
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let (family, kind) = (
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
        );
        let stream = rustix::net::socket_with(family, kind, flags, None).unwrap();
        if rustix::net::connect(&stream, &address(&socket).unwrap()).is_err() {
            break;
        }
        waiting.push(stream);
    }
    // One sends without end, and never a line.
    let endless = UnixListener::bind(path("endless.ctl")).unwrap();
    std::thread::spawn(move || {
        for stream in endless.incoming().flatten() {
            let mut stream = stream;
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        }
    });
    let exporter = Exporter::start(folder.path(), "0.4");
    for _ in 0..3 {
        let start = Instant::now();
        let (_, body) = exporter.scrape("");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(400), "{took:?}");
        // Twenty hang, and it is no twenty times as long.
        assert!(took < Duration::from_secs(4), "{took:?}");
        let up = up(&body);
        assert_eq!(up.len(), 25, "{up:?}");
        for (name, is_up) in &up {
            assert_eq!(
                *is_up,
                ["one.control", "two.ctl"].contains(&name.as_str()),
                "{name}"
            );
        }
        assert!(
            sum(
                &body,
                "extentd_requests_total",
                &["control=\"one.control\""]
            ) > 0.0
        );
        let asked = |name: &str| {
            let label = format!("control=\"{name}\"");
            sum(&body, "extentd_scrape_duration_seconds", &[&label])
        };
        assert!(
            asked("hung3.ctl") >= 0.4 && asked("dead.control") < 0.4,
            "{body}"
        );
        assert_eq!(body.matches("hung3.ctl").count(), 2, "{body}");
    }
    // Many who ask at once have one answer.
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(up(&exporter.scrape("").1).len(), 25));
        }
    });
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    drop(at_work);
    // A disk that ends is down, one that is taken away is gone.
    assert!(one.daemon.terminate().unwrap().success());
    drop(hung);
    std::fs::remove_file(path("endless.ctl")).unwrap();
    std::fs::remove_file(path("dead.control")).unwrap();
    let up = up(&exporter.scrape("").1);
    assert!(!up["one.control"] && up["two.ctl"], "{up:?}");
    assert_eq!(up.len(), 23, "{up:?}");
    drop(waiting);
}

#[test]
fn an_exporter_says_what_is_wrong_and_bears_a_folder_that_comes_later() {
    let place = rig::scratch::folder("later");
    let (folder, socket) = (place.path().join("disks"), place.path().join("socket"));
    let start = |listen: &str| {
        let mut command = Command::new(rig::extentctl!());
        command
            .arg(format!("--all={}", folder.display()))
            .args(["exporter", "--listen", listen])
            .stderr(Stdio::piped());
        command
    };
    let refused = start("192.0.2.1:9").output().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(
        (refused.status.code(), told.lines().count()),
        (Some(1), 1),
        "{told}"
    );
    assert!(
        told.starts_with("extentctl: --listen 192.0.2.1:9: cannot listen: "),
        "{told}"
    );
    let mut exporter = Killed(
        start(&format!("unix:{}", socket.display()))
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(exporter.0.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.ends_with("socket, by HTTP at /metrics"), "{line}");
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(scrape_unix(&socket, "").1, "# EOF\n");
    let rig = Rig::on_tmpfs(&[]);
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(rig.control(), folder.join("a.ctl")).unwrap();
    assert_eq!(
        up(&scrape_unix(&socket, "").1),
        BTreeMap::from([("a.ctl".into(), true)])
    );
    // A folder that is none, which root could not read either.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "").unwrap();
    assert_eq!(scrape_unix(&socket, PLAIN).1, "");
    let line = lines.next().unwrap().unwrap();
    assert!(line.ends_with(": no disk is told of"), "{line}");
}

/// Processes that are scraped.
const HUNDRED: usize = 100;

#[test]
fn a_hundred_processes_are_scraped_in_200_ms() {
    let images = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = rig::scratch::folder("hundred");
    let start = |number: usize| {
        let image = images.path().join(format!("{number}.img"));
        std::fs::File::create_new(&image)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let path = |end: &str| folder.path().join(format!("{number}.{end}"));
        let control = path("control");
        let arguments = [
            "--control-path",
            control.to_str().unwrap(),
            "--threads",
            "1",
        ];
        Daemon::start(&extentd(), &path("socket"), &image, &arguments).unwrap()
    };
    let daemons: Vec<Daemon> = (0..HUNDRED).map(start).collect();
    let exporter = Exporter::start(folder.path(), "20");
    let (begun, mut best) = (Instant::now(), Duration::MAX);
    // Somebody else may have the machine for a while.
    while best > Duration::from_millis(200) {
        assert!(begun.elapsed() < limit(), "it takes {best:?} at best");
        let start = Instant::now();
        let (_, body) = exporter.scrape("");
        best = best.min(start.elapsed());
        let up = up(&body);
        assert_eq!(up.len(), HUNDRED);
        assert!(up.values().all(|up| *up), "{up:?}");
    }
    println!("{HUNDRED} processes: {best:?}");
    for daemon in daemons {
        assert!(daemon.terminate().unwrap().success());
    }
}

/// A server that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
