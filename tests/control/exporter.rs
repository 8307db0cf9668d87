//! `extentctl exporter`: many disks, some of which are dead or hang.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use front_end::{Daemon, limit};

use crate::rig::{Rig, extentd};
use crate::scrape::{Exporter, Killed, PLAIN, folder_of, scrape_unix, sum, up};

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
    // Two send without end: one never a line, and one nothing but lines.
    let line = "{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{}}\n";
    for (name, text) in [
        ("endless.ctl", "x".repeat(4096)),
        ("chatty.ctl", line.repeat(99)),
    ] {
        let listener = UnixListener::bind(path(name)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                while stream.write_all(text.as_bytes()).is_ok() {}
            }
        });
    }
    let exporter = Exporter::start(folder.path(), "0.4");
    for _ in 0..3 {
        let start = Instant::now();
        let (_, body) = exporter.scrape("");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(400), "{took:?}");
        // Twenty hang, and it is no twenty times as long.
        assert!(took < Duration::from_secs(4), "{took:?}");
        let up = up(&body);
        assert_eq!(up.len(), 26, "{up:?}");
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
            scope.spawn(|| assert_eq!(up(&exporter.scrape("").1).len(), 26));
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
    for name in ["endless.ctl", "chatty.ctl", "dead.control"] {
        std::fs::remove_file(path(name)).unwrap();
    }
    let up = up(&exporter.scrape("").1);
    assert!(!up["one.control"] && up["two.ctl"], "{up:?}");
    assert_eq!(up.len(), 23, "{up:?}");
    drop(waiting);
    // Of several with one name, each is told by its path.
    let elsewhere = folder_of(&[("two.ctl", two.control())]);
    let both = [path("two.ctl"), elsewhere.path().join("two.ctl")];
    let arguments = both
        .iter()
        .flat_map(|path| ["--control-path", path.to_str().unwrap()]);
    let exporter = Exporter::begin(arguments, "5");
    let names = both.iter().map(|path| (path.display().to_string(), true));
    assert_eq!(self::up(&exporter.scrape("").1), names.collect());
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
