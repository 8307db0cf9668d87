//! What a thread that has been taken over can still do: tried from inside, and
//! read from outside.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use front_end::codes::{feature, protocol};
use front_end::{Daemon, LIMIT, Like, Session, Wanted, wait_readable};
use rig::attached::Attached;
use rig::file_systems::{EXT4, Mounted};
use rig::operator;
use rig::scratch::folder;
use rig::small_image;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// The threads of a process that does all there is, by their names.
const THREADS: [&str; 14] = [
    "control",
    "extentd",
    "guard",
    "keeper",
    "log",
    "lookout",
    "map-filler",
    "map-lease",
    "metrics",
    "pinner",
    "room",
    "signals",
    "watch",
    "worker-0",
];
/// What each kind but the keeper calls itself.
const KINDS: [&str; 12] = [
    "Control", "Session", "Guard", "Log", "Lookout", "Filler", "Lease", "Metrics", "Pinner",
    "Signals", "Watch", "Worker",
];
const TRIES: [&str; 13] = [
    "execve", "clone3", "ptrace", "mount", "socket", "open", "kill", "tgkill", "unlink", "execute",
    "ring", "setuid", "x32",
];

/// A process with every thread there is, on an image of its own; `None` where
/// the disk path cannot be had.
struct Whole {
    daemon: Daemon,
    files: tempfile::TempDir,
    _host: Mounted,
}

impl Whole {
    fn start(variables: &[(&str, &str)], more: &[&str]) -> Option<Self> {
        let host = Mounted::new(EXT4)?;
        let files = folder("sandbox");
        let image = host.path("image");
        fs::write(&image, vec![7; 8 << 20]).unwrap();
        fs::File::open(&image).unwrap().sync_all().unwrap();
        let control = files.path().join("control");
        let mut arguments = vec!["--threads", "1", "--pin-guest-memory"];
        arguments.extend(["--control-path", control.to_str().unwrap()]);
        arguments.extend(["--metrics-listen", "127.0.0.1:0"]);
        arguments.extend(more);
        let socket = files.path().join("socket");
        let daemon =
            Daemon::start_with(&rig::extentd!(), &socket, &image, &arguments, variables).unwrap();
        Some(Self {
            daemon,
            files,
            _host: host,
        })
    }

    fn info(&self) -> serde_json::Value {
        operator::info(&self.files.path().join("control"))
    }

    fn serves(&self) {
        serves(self.daemon.socket());
    }

    /// Fields of the status of each thread, by its name.
    fn threads(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap();
        let status = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("status")).unwrap();
            let fields = text.lines().filter_map(|line| line.split_once(':'));
            fields
                .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let all = tasks.map(|task| status(task.unwrap()));
        all.map(|fields| (fields["Name"].clone(), fields)).collect()
    }
}

fn wanted() -> Wanted {
    Wanted {
        features: feature::ALL,
        protocol: protocol::ALL,
        queues: 1,
    }
}

fn serves(socket: &Path) {
    let mut attached = Attached::new(socket, Like::Qemu, wanted());
    attached.write(8, &[3; 4096]);
    assert_eq!(attached.read(8, 4096), [3; 4096]);
}

fn number(fields: &BTreeMap<String, String>, key: &str) -> u64 {
    u64::from_str_radix(&fields[key], 16).unwrap()
}

#[test]
fn every_thread_is_filtered_and_keeps_no_capability_that_it_does_not_need() {
    let Some(whole) = Whole::start(&[], &[]) else {
        return;
    };
    whole.serves();
    let threads = whole.threads();
    let names = threads.keys().map(String::as_str);
    // The kernel's own, for what would wait, are as who started them.
    let names: Vec<&str> = names.filter(|name| !name.starts_with("iou-")).collect();
    assert_eq!(names, THREADS);
    let began = number(&threads["keeper"], "Seccomp_filters");
    for (name, fields) in &threads {
        assert_eq!((&*fields["NoNewPrivs"], &*fields["Seccomp"]), ("1", "2"));
        // Nobody needs to change a clock, load a module or trace.
        let lease_and_files = 1 << 28 | 0b1110;
        let lock = 1 << 14;
        let kept = if name == "keeper" { lease_and_files } else { 0 } | lock;
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(number(fields, set) & !kept, 0, "{name}: {set}");
        }
        assert_eq!(number(fields, "CapBnd") & !(lease_and_files | lock), 0);
        if name != "keeper" {
            assert!(number(fields, "Seccomp_filters") >= began + 2, "{name}");
        }
    }
    let sandbox = &whole.info()["sandbox"];
    assert_eq!(
        (&sandbox["seccomp"], &sandbox["capabilities_dropped"]),
        (&true.into(), &true.into())
    );
    assert_eq!(sandbox["denied_calls"], 0);
    whole.daemon.terminate().unwrap();
}

/// What came of each try, by the kind of thread.
fn tried(daemon: &Daemon, kind: &str) -> BTreeMap<String, String> {
    let begin = format!("extentd: {kind} tries:");
    let line = daemon.wait_stderr(|line| line.starts_with(&begin)).unwrap();
    let results = line.split(' ').filter_map(|word| word.split_once('='));
    results.map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

#[test]
fn a_thread_that_is_taken_over_starts_opens_traces_signals_and_connects_nothing() {
    let Some(mut whole) = Whole::start(&[("EXTENTD_TEST_TRIES", "1")], &[]) else {
        return;
    };
    whole.daemon.expect_denials();
    for kind in KINDS {
        let results = tried(&whole.daemon, kind);
        assert_eq!(results.len(), TRIES.len(), "{kind}: {results:?}");
        for (call, came) in &results {
            let wanted = match call.as_str() {
                "open" => "EACCES",
                _ => "ENOSYS",
            };
            assert_eq!(came, wanted, "{kind}: {call}");
        }
    }
    // It may do what a start may, and no start does these.
    let results = tried(&whole.daemon, "Keeper");
    for (call, wanted) in [("ptrace", "EPERM"), ("mount", "EPERM"), ("x32", "ENOSYS")] {
        assert_eq!(results[call], wanted, "{call}");
    }
    whole.serves();
    assert!(whole.info()["sandbox"]["denied_calls"].as_u64().unwrap() > 100);
    let told = whole.daemon.stderr();
    let lines = told
        .iter()
        .filter(|line| line.contains("the sandbox has denied thread"));
    // Once for each call, not for each thread.
    assert!((8..=TRIES.len()).contains(&lines.count()), "{told:?}");
    whole.daemon.terminate().unwrap();
}

#[test]
fn without_a_sandbox_nothing_is_given_up() {
    let Some(whole) = Whole::start(&[("EXTENTD_TEST_TRIES", "1")], &["--sandbox", "off"]) else {
        return;
    };
    whole.serves();
    for (name, fields) in whole.threads() {
        assert_eq!(fields["Seccomp"], whole.own("Seccomp"), "{name}");
        assert_eq!(fields["CapEff"], whole.own("CapEff"), "{name}");
        assert_eq!(fields["NoNewPrivs"], whole.own("NoNewPrivs"), "{name}");
    }
    assert!(whole.info()["sandbox"].is_null());
    whole.daemon.terminate().unwrap();
}

impl Whole {
    /// Of this process, which has started that one.
    fn own(&self, key: &str) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }
}

#[test]
fn handing_over_again_and_again_lays_no_filter_over_another() {
    let files = folder("sandbox");
    let image = files.path().join("image");
    fs::write(&image, small_image::content(0, small_image::IMAGE)).unwrap();
    let socket = files.path().join("socket");
    let daemon = Daemon::start(&rig::extentd!(), &socket, &image, &[]).unwrap();
    serves(&socket);
    let filters = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp_filters:"));
        line.unwrap().trim().to_owned()
    };
    let before = filters();
    for _ in 0..20 {
        let session = Session::open(&socket, Like::Qemu, wanted()).unwrap();
        daemon.signal(libc::SIGUSR2).unwrap();
        wait_readable(session.connection.stream(), LIMIT).unwrap();
        serves(&socket);
        assert_eq!(filters(), before);
    }
    daemon.terminate().unwrap();
}

#[test]
fn what_a_process_is_to_end_with_is_handed_over_too() {
    let files = folder("sandbox");
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    fs::write(&image, small_image::content(0, small_image::IMAGE)).unwrap();
    // The parent, which ends when its standard input does.
    let script = "setpriv --pdeathsig KILL \"$1\" --socket-path \"$2\" --blk-file \"$3\" & echo $!; read -r end";
    let mut parent = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([rig::extentd!().as_path(), &socket, &image])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    let mut told = BufReader::new(parent.stdout.take().unwrap());
    told.read_line(&mut pid).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let session = open_soon(&socket);
    kill_process(pid, Signal::USR2).unwrap();
    wait_readable(session.connection.stream(), LIMIT).unwrap();
    serves(&socket);
    drop(parent.stdin.take());
    parent.wait().unwrap();
    let limit = LIMIT.try_into().unwrap();
    let mut polls = [PollFd::new(&process, PollFlags::IN)];
    assert_eq!(poll(&mut polls, Some(&limit)).unwrap(), 1, "it lives on");
}

/// A session with a process that may not listen yet.
fn open_soon(socket: &Path) -> Session {
    let start = Instant::now();
    loop {
        match Session::open(socket, Like::Qemu, wanted()) {
            Ok(session) => return session,
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
        std::thread::yield_now();
    }
}
