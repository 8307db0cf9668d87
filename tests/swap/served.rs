//! A swap-grade process on a file system of its own, and a driver that uses
//! it.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use extentd::operator::control::Request;
use front_end::codes::status;
use front_end::{Buffer, Daemon, LIMIT, Like, Op, Session, Wanted};
use rig::attached::{Attached, DATA};
use rig::file_systems::{Made, Mounted};
use rig::operator;
use serde_json::Value;
use tempfile::TempDir;

/// The size of an image in bytes.
pub const IMAGE: u64 = 32 << 20;

/// A file system; `None`, with the reason printed, where there can be none.
pub fn mounted(made: Made) -> Option<Mounted> {
    let mounted = Mounted::new(made);
    if mounted.is_none() {
        println!("SKIP: no {} on a loop device", made.name);
    }
    mounted
}

pub fn extentctl(arguments: &[&str]) -> Output {
    Command::new(rig::extentctl!())
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs it until it ends, as it does when it refuses something.
pub fn extentd(image: &Path, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(rig::extentd!())
        .arg("--socket-path")
        .arg(directory.path().join("socket"))
        .arg("--blk-file")
        .arg(image)
        .args(arguments)
        .output()
        .unwrap()
}

/// The only line on standard error.
pub fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim().to_owned()
}

/// This process has CAP_SYS_RESOURCE, and so have those that it starts.
pub fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap() & 1 << CAP_SYS_RESOURCE != 0
}

/// These arguments, and never strict.
pub fn best_effort<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let grade = has_sys_resource().then_some("--swap=best-effort");
    grade.into_iter().chain(arguments.iter().copied()).collect()
}

/// One of the counters of operations.
pub fn operations(served: &Served, name: &str) -> u64 {
    let info = served.ask(&Request::Info {});
    info["disk"]["operations"][name].as_u64().unwrap()
}

/// A process in swap-grade mode, as strict as this machine allows.
pub struct Served {
    pub daemon: Daemon,
    pub control: PathBuf,
    _directory: TempDir,
}

impl Served {
    pub fn start(image: &Path, arguments: &[&str]) -> Self {
        Self::run(&rig::extentd!(), image, arguments)
    }

    /// As [`start`](Self::start), but never strict.
    pub fn best_effort(image: &Path) -> Self {
        Self::start(image, &best_effort(&[]))
    }

    /// As [`start`](Self::start), by a program that runs extentd.
    pub fn run(binary: &Path, image: &Path, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control");
        let socket = directory.path().join("socket");
        let swap = if has_sys_resource() {
            "--swap"
        } else {
            "--swap=best-effort"
        };
        let mut all = vec![swap, "--control-path", control.to_str().unwrap()];
        all.extend(arguments);
        let daemon = Daemon::start(binary, &socket, image, &all).unwrap();
        Self {
            daemon,
            control,
            _directory: directory,
        }
    }

    pub fn ask(&self, request: &Request) -> Value {
        operator::ask(&self.control, request)
    }

    /// The part of `info` about swap-grade mode.
    pub fn swap(&self) -> Value {
        self.ask(&Request::Info {})["swap"].clone()
    }

    /// Whether a property holds; its detail is printed.
    pub fn holds(&self, name: &str) -> bool {
        let property = &self.swap()["properties"][name];
        println!("{name}: {property}");
        property["held"].as_bool().unwrap()
    }

    /// Waits until requests go this way.
    pub fn wait_path(&self, way: &str) {
        operator::wait_path(&self.control, way);
    }

    /// The thread of the process with this name.
    pub fn thread(&self, name: &str) -> u32 {
        let tasks = format!("/proc/{}/task", self.daemon.pid());
        for task in std::fs::read_dir(tasks).unwrap() {
            let task = task.unwrap();
            let comm = std::fs::read_to_string(task.path().join("comm")).unwrap();
            if comm.trim() == name {
                return task.file_name().to_str().unwrap().parse().unwrap();
            }
        }
        panic!("there is no thread {name}");
    }

    /// Minor and major faults of a thread so far.
    pub fn faults(&self, thread: u32) -> (u64, u64) {
        let path = format!("/proc/{}/task/{thread}/stat", self.daemon.pid());
        let text = std::fs::read_to_string(path).unwrap();
        let fields: Vec<_> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[7].parse().unwrap(), fields[9].parse().unwrap())
    }
}

/// A front-end and the driver of its only queue.
pub struct Guest(Attached);

impl Deref for Guest {
    type Target = Attached;

    fn deref(&self) -> &Attached {
        &self.0
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Attached {
        &mut self.0
    }
}

impl Guest {
    pub fn attach(served: &Served) -> Self {
        let wanted = Wanted::default();
        let session = Session::open(served.daemon.socket(), Like::Qemu, wanted).unwrap();
        Self(Attached::with_ring(session, 128))
    }

    /// The features that the disk offers.
    pub fn features(&self) -> u64 {
        self.session.features
    }

    /// Writes and reads `count` pages of 4 KiB each at random places, 32 at a
    /// time; all must succeed.
    pub fn load(&mut self, count: u64) {
        const DEPTH: u64 = 32;
        let pages = IMAGE / 4096;
        let (mut submitted, mut done, mut random) = (0, 0, 88_172_645_463_325_252_u64);
        while done < count {
            while submitted < count && submitted - done < DEPTH {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let sector = random % pages * 8;
                let at = DATA + submitted % DEPTH * 4096;
                let (op, buffer) = if random & 1 << 40 == 0 {
                    (Op::Write, Buffer::readable(at, 4096))
                } else {
                    (Op::Read, Buffer::writable(at, 4096))
                };
                assert!(self.driver.submit(op, sector, &[buffer], submitted));
                submitted += 1;
            }
            self.driver.publish().unwrap();
            let mut ended = self.driver.wait(LIMIT).unwrap();
            loop {
                assert_eq!(ended.status, status::OK);
                done += 1;
                match self.driver.pop().unwrap() {
                    Some(next) => ended = next,
                    None => break,
                }
            }
        }
    }
}
