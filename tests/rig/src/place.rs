//! A process that serves an image, again and again on one socket.

use std::path::{Path, PathBuf};
use std::time::Instant;

use extentd::operator::control::Request;
use front_end::codes::{feature, protocol};
use front_end::{Daemon, Driver, GuestMemory, LIMIT, Like, Session, Setup, Wanted};
use serde_json::Value;
use tempfile::TempDir;

use crate::operator;
use crate::scratch::folder;

/// The queues of every process here.
pub const QUEUES: usize = 4;
/// Guest memory of a queue in bytes: its ring lies in the first MiB.
pub const QUEUE_MEMORY: u64 = 4 << 20;
/// Where data of a queue may lie in it.
pub const QUEUE_DATA: u64 = 1 << 20;

/// A session on this socket, as of QEMU; a process that ends may have it first.
pub fn connect(socket: &Path) -> Session {
    let wanted = Wanted {
        features: feature::ALL,
        protocol: protocol::ALL,
        queues: u16::try_from(QUEUES).unwrap(),
    };
    let start = Instant::now();
    loop {
        match Session::open(socket, Like::Qemu, wanted) {
            Ok(session) => return session,
            // The process before may take a connection and end.
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
    }
}

/// Where a process is found, and how it is started.
pub struct Place {
    /// What is served.
    pub image: PathBuf,
    /// Where front-ends connect.
    pub socket: PathBuf,
    /// Where operators connect.
    pub control: PathBuf,
    binary: PathBuf,
    arguments: Vec<String>,
    _files: TempDir,
}

impl Place {
    /// For processes of `binary` with these arguments besides those that all have.
    pub fn new(binary: &Path, image: &Path, arguments: &[&str]) -> Place {
        let files = folder("recovery");
        Place {
            image: image.to_owned(),
            binary: binary.to_owned(),
            socket: files.path().join("socket"),
            control: files.path().join("control"),
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            _files: files,
        }
    }

    /// Starts a process there.
    pub fn start(&self) -> Daemon {
        self.start_from(&self.binary)
    }

    /// Starts a process there from a copy of the binary.
    pub fn start_from(&self, binary: &Path) -> Daemon {
        let queues = QUEUES.to_string();
        let mut all = vec!["--num-queues", &queues, "--threads", "2"];
        all.extend(["--control-path", self.control.to_str().unwrap()]);
        all.extend(self.arguments.iter().map(String::as_str));
        Daemon::start(binary, &self.socket, &self.image, &all).unwrap()
    }

    /// What `extentctl info` would print.
    pub fn info(&self) -> Value {
        operator::info(&self.control)
    }

    /// The part of it about the disk.
    pub fn disk(&self) -> Value {
        self.info()["disk"].take()
    }

    /// Requests that failed for what the host said.
    pub fn errors(&self) -> u64 {
        let stats = operator::ask(&self.control, &Request::Stats {});
        stats["failed_requests"].as_u64().unwrap()
    }

    /// A session that takes everything; `None` if the process is gone.
    pub fn connect(&self, like: Like, features: u64) -> Option<Session> {
        let wanted = Wanted {
            features,
            protocol: protocol::ALL,
            queues: u16::try_from(QUEUES).unwrap(),
        };
        Session::open(&self.socket, like, wanted).ok()
    }
}

/// Memory and rings of a guest, which outlive every process.
pub fn guest() -> (GuestMemory, Vec<Driver>) {
    let memory = GuestMemory::flat(QUEUES as u64 * QUEUE_MEMORY).unwrap();
    let setup = Setup {
        size: 64,
        features: feature::ALL,
        indirect: 16,
    };
    let driver = |queue| Driver::new(&memory, queue * QUEUE_MEMORY, setup).unwrap();
    let drivers = (0..QUEUES as u64).map(driver).collect();
    (memory, drivers)
}
