//! Snapshots without an extentd, whoever serves them, and the programs that
//! judge.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rig::file_systems::{Made, Mounted};
use rig::files::{create, open_direct, pattern, punch, reflink, write_direct};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(40);
/// Bytes of a disk.
pub const SIZE: u64 = 8 << 20;

/// A file system, or the reason why not is printed.
pub fn mounted(made: Made) -> Option<Mounted> {
    let mounted = Mounted::new(made);
    if mounted.is_none() {
        println!("SKIP: no {} on a loop device here", made.name);
    }
    mounted
}

/// What a program did.
#[derive(Debug)]
pub struct Done {
    pub status: Option<i32>,
    pub out: Vec<u8>,
    pub error: String,
}

impl Done {
    /// It has failed with one line, and nothing else.
    pub fn refusal(self) -> String {
        assert_eq!(self.status, Some(1), "{}", self.error);
        assert!(self.out.is_empty());
        assert_eq!(self.error.lines().count(), 1, "{}", self.error);
        self.error
    }

    pub fn well(self) -> Vec<u8> {
        assert_eq!(self.status, Some(0), "{}", self.error);
        self.out
    }

    pub fn json(self) -> Value {
        serde_json::from_slice(&self.well()).unwrap()
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// extentctl, without an extentd.
pub fn extentctl(arguments: &[&str]) -> Done {
    run(Command::new(rig::extentctl!()).args(arguments))
}

pub fn run(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    Done {
        status: output.status.code(),
        out: output.stdout,
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether all of these can be run; else it is said which not.
pub fn judges(names: &[&str]) -> bool {
    let missing = |name: &&&str| Command::new(name).arg("--version").output().is_err();
    match names.iter().find(missing) {
        Some(name) => {
            println!("SKIP: no {name} here");
            false
        }
        None => true,
    }
}

/// The image of a disk with data, holes, and room that was never written, and a
/// snapshot of it as `name`.
pub fn image(mounted: &Mounted) -> PathBuf {
    let path = mounted.path("image");
    drop(create(&path, SIZE));
    let image = open_direct(&path);
    write_direct(&image, &pattern(1, 0, 3 << 20), 0);
    punch(&image, 1 << 20, 64 << 10);
    write_direct(&image, &pattern(1, 6 << 20, 8192), 6 << 20);
    rig::files::fallocate(&image, 0, 7 << 20, 256 << 10).unwrap();
    image.sync_all().unwrap();
    path
}

/// A snapshot as it is made by reflink.
pub fn snapshot(mounted: &Mounted, name: &str) -> PathBuf {
    let path = mounted.path(name);
    let clone = File::create_new(&path).unwrap();
    reflink(&File::open(mounted.path("image")).unwrap(), &clone).unwrap();
    clone.sync_all().unwrap();
    path
}

/// Some data of it are others, and some zeros.
pub fn change(mounted: &Mounted, seed: u64) {
    let image = open_direct(mounted.path("image"));
    write_direct(&image, &pattern(seed, 8192, 4096), 8192);
    write_direct(&image, &pattern(seed, 5 << 20, 65536), 5 << 20);
    punch(&image, 2 << 20, 128 << 10);
    image.sync_all().unwrap();
}

pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// An `extentd-nbd` that serves a snapshot.
pub struct Served {
    pub child: Child,
    pub socket: PathBuf,
    lines: Receiver<String>,
    _folder: TempDir,
}

impl Served {
    pub fn new(file: &Path, since: &[&Path]) -> Self {
        let folder = rig::scratch::folder("nbd");
        let socket = folder.path().join("socket");
        let mut command = Command::new(nbd());
        command.arg("--socket-path").arg(&socket);
        command.arg("--file").arg(file);
        for older in since {
            command.arg("--since").arg(older);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.contains("serving "), "{first}");
        let (said, heard) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("{line}");
                // Nobody may listen any more.
                let _ = said.send(line);
            }
        });
        Self {
            child,
            socket,
            lines: heard,
            _folder: folder,
        }
    }

    /// Waits until it has said so.
    pub fn says(&self, what: &str) {
        while !self.lines.recv_timeout(LIMIT).unwrap().contains(what) {}
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", text(&self.socket))
    }

    /// It is asked to stop, and does.
    pub fn stop(mut self) {
        rig::process::signal(self.child.id(), "TERM");
        assert!(self.child.wait().unwrap().success());
        assert!(!self.socket.exists());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn nbd() -> PathBuf {
    rig::program::named("EXTENTD_NBD", env!("CARGO_BIN_EXE_extentd-nbd"))
}
