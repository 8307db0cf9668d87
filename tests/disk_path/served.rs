//! A process that serves an image, and what it says of itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use extentd::operator::control::{self, Answer, Request};
use front_end::codes::feature;
use front_end::{Daemon, Driver, GuestMemory, LIMIT, Like, Session, Setup, Wanted};
use serde_json::Value;
use tempfile::TempDir;

/// The queues of every process here.
pub const QUEUES: usize = 2;
/// Guest memory of a queue in bytes: its ring lies in the first MiB.
pub const QUEUE_MEMORY: u64 = 8 << 20;
/// Guest memory of all queues in bytes.
pub const MEMORY: u64 = QUEUES as u64 * QUEUE_MEMORY;
/// Where data of a queue may lie in it.
pub const QUEUE_DATA: u64 = 1 << 20;

/// A process that serves.
pub struct Served {
    pub daemon: Daemon,
    pub socket: PathBuf,
    control: PathBuf,
    _files: TempDir,
}

/// What it has done, and how.
#[derive(Debug, Clone)]
pub struct Info {
    pub on_disk: bool,
    pub reason: String,
    pub entries: u64,
    pub disk_operations: u64,
    pub file_operations: u64,
    pub bounced_operations: u64,
    pub zero_fills: u64,
    pub requests: u64,
}

impl Info {
    /// What it says of its disk, read.
    pub fn of(disk: &Value) -> Info {
        let count = |value: &Value| value.as_u64().unwrap();
        let operations = &disk["operations"];
        Info {
            on_disk: disk["path"] == "disk",
            reason: disk["path_reason"].as_str().unwrap().to_owned(),
            entries: count(&disk["path_entries"]),
            disk_operations: count(&operations["disk_operations"]),
            file_operations: count(&operations["file_operations"]),
            bounced_operations: count(&operations["bounced_operations"]),
            zero_fills: count(&operations["zero_fills"]),
            requests: count(&operations["requests"]),
        }
    }
}

/// What every process here is told besides `arguments`. Guests are told where there is no room:
/// here nobody makes any.
fn with_common(control: &Path, arguments: &[&str]) -> Vec<String> {
    let queues = QUEUES.to_string();
    let mut all = vec!["--num-queues", &queues, "--threads", &queues];
    all.extend(["--control-path", control.to_str().unwrap()]);
    all.extend(["--on-enospc", "report"]);
    all.extend(arguments);
    all.into_iter().map(str::to_owned).collect()
}

/// The binary under test.
pub fn binary() -> PathBuf {
    rig::extentd!()
}

impl Served {
    /// Serves `image`, with these variables set.
    pub fn start(image: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Served {
        Served::start_to(image, arguments, variables, Stdio::piped())
    }

    /// As [`start`](Self::start), without the measures that are named.
    pub fn start_without(image: &Path, arguments: &[&str], left_out: &str) -> Served {
        Served::start(image, arguments, &[("EXTENTD_TEST_WITHOUT", left_out)])
    }

    /// As [`start`](Self::start), with another standard error.
    pub fn start_to(
        image: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        stderr: Stdio,
    ) -> Served {
        Served::run(&binary(), image, arguments, variables, stderr)
    }

    /// As [`start_to`](Self::start_to), by a program that runs extentd.
    pub fn run(
        binary: &Path,
        image: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        stderr: Stdio,
    ) -> Served {
        let files = rig::scratch::folder("disk");
        let (socket, control) = (files.path().join("socket"), files.path().join("control"));
        let all = with_common(&control, arguments);
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let daemon = Daemon::start_to(binary, &socket, image, &all, variables, stderr).unwrap();
        Served {
            daemon,
            socket,
            control,
            _files: files,
        }
    }

    /// Has another process do the same in the same place, once this one has
    /// ended.
    pub fn restart(&mut self, image: &Path, arguments: &[&str], variables: &[(&str, &str)]) {
        self.daemon.wait().unwrap();
        let all = with_common(&self.control, arguments);
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let daemon = Daemon::start_with(&binary(), &self.socket, image, &all, variables);
        self.daemon = daemon.unwrap();
    }

    /// Where it listens to operators.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// What it answers to an operator, if it does within `limit`.
    pub fn try_ask(&self, request: &Request, limit: Duration) -> Option<Value> {
        match control::ask(&self.control, request, limit) {
            Ok(Answer::Result(value)) => Some(value),
            Ok(Answer::Error(error)) => panic!("{request:?} is refused: {error}"),
            Err(_) => None,
        }
    }

    /// What it answers to an operator.
    pub fn ask(&self, request: &Request) -> Value {
        self.try_ask(request, LIMIT).unwrap()
    }

    /// What it says of its disk.
    pub fn disk(&self) -> Value {
        self.ask(&Request::Info {})["disk"].take()
    }

    /// Changes the size of the disk.
    pub fn resize(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.ask(&Request::Resize { bytes });
    }

    /// Waits until the disk has this size.
    pub fn wait_size(&self, bytes: usize) {
        self.wait("the size", |_| {
            self.disk()["size_bytes"] == serde_json::json!(bytes)
        });
    }

    /// What it says of itself.
    pub fn info(&self) -> Info {
        Info::of(&self.disk())
    }

    /// Waits until what it says is as wanted; there is no event for it.
    pub fn wait(&self, what: &str, mut wanted: impl FnMut(&Info) -> bool) -> Info {
        let start = Instant::now();
        loop {
            let info = self.info();
            if wanted(&info) {
                return info;
            }
            assert!(
                start.elapsed() < LIMIT,
                "waited in vain for {what}: {info:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until requests go by the disk, which they did not in between.
    pub fn wait_entries(&self, entries: u64) -> Info {
        self.wait("the disk path again", |info| {
            info.on_disk && info.entries >= entries
        })
    }

    /// Waits until requests go by the disk.
    pub fn wait_disk(&self) -> Info {
        self.wait("the disk path", |info| info.on_disk)
    }
}

/// A front-end with a driver for each queue.
pub struct Guest {
    pub session: Session,
    pub memory: GuestMemory,
    pub drivers: Vec<Driver>,
}

impl Guest {
    /// Attaches to a process.
    pub fn attach(served: &Served) -> Guest {
        Guest::attach_with(served, feature::ALL)
    }

    /// A session without rings, with these features at most.
    pub fn open(served: &Served, features: u64) -> Session {
        let wanted = Wanted {
            features,
            queues: u16::try_from(QUEUES).unwrap(),
            ..Wanted::default()
        };
        Session::open(&served.socket, Like::Qemu, wanted).unwrap()
    }

    /// Attaches with these features at most.
    pub fn attach_with(served: &Served, features: u64) -> Guest {
        let memory = GuestMemory::flat(MEMORY).unwrap();
        Guest::attach_in(served, features, memory)
    }

    /// As [`attach_with`](Self::attach_with), with this memory, whose first
    /// [`MEMORY`] bytes are used.
    pub fn attach_in(served: &Served, features: u64, memory: GuestMemory) -> Guest {
        let mut session = Guest::open(served, features);
        let setup = Setup {
            size: 128,
            features: session.features,
            indirect: 16,
        };
        let drivers: Vec<_> = (0..QUEUES as u64)
            .map(|queue| Driver::new(&memory, queue * QUEUE_MEMORY, setup).unwrap())
            .collect();
        let rings: Vec<_> = drivers.iter().map(Driver::ring).collect();
        session.start(&memory, &rings).unwrap();
        Guest {
            session,
            memory,
            drivers,
        }
    }
}
