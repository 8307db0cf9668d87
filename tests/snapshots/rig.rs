//! A process on an image of a file system that can clone files, and a folder
//! for snapshots there.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use extentd::protocol::client::Client;
use extentd::protocol::events::EventKind;
use front_end::{Daemon, limit, set_limit};
use rig::file_systems::{Made, Mounted, sync};
use rig::files::{pattern, write_direct};
use serde_json::Value;
use tempfile::TempDir;

use crate::stamps::{Numbers, Stamps, USED};

/// Bytes of an image: what stamps use, and as much again that is quiet.
pub const IMAGE: u64 = 2 * USED;

/// A disk of its own.
pub struct Disk {
    pub image: PathBuf,
    pub snapshots: PathBuf,
    pub control: PathBuf,
    pub socket: PathBuf,
    pub daemon: Daemon,
    arguments: Vec<String>,
    variables: Vec<(&'static str, &'static str)>,
    _files: TempDir,
}

/// A snapshot under load.
pub struct Taken {
    /// What it says.
    pub done: Done,
    /// What the guest had done before it was asked for.
    pub before: Vec<Numbers>,
    /// And when its moment was over, at the latest.
    pub after: Vec<Numbers>,
}

/// What extentctl did.
pub struct Done {
    pub status: Option<i32>,
    pub out: String,
    pub error: String,
}

/// A file system, or the reason why not is printed.
pub fn mounted(made: Made) -> Option<Mounted> {
    let mounted = Mounted::new(made);
    if mounted.is_none() {
        println!("SKIP: no {} on a loop device here", made.name);
    }
    mounted
}

/// Removes a file, and waits until so many bytes more are free: XFS gives them back some time
/// afterwards, and tells nobody.
pub fn remove(mounted: &Mounted, file: &Path, bytes: u64) {
    let free = || {
        let stat = rustix::fs::statvfs(mounted.root()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let (start, before) = (Instant::now(), free());
    std::fs::remove_file(file).unwrap();
    while free() < before + bytes {
        assert!(start.elapsed() < limit(), "{} stays", file.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    sync(mounted);
}

impl Disk {
    /// Serves a new image in a folder of that name.
    pub fn new(mounted: &Mounted, name: &str, more: &[&str]) -> Self {
        Self::without(mounted, name, more, &[])
    }

    /// As [`new`](Self::new), with these variables in the environment.
    pub fn without(
        mounted: &Mounted,
        name: &str,
        more: &[&str],
        variables: &[(&'static str, &'static str)],
    ) -> Self {
        let folder = mounted.path(name);
        std::fs::create_dir(&folder).unwrap();
        let (image, snapshots) = (folder.join("image"), folder.join("snapshots"));
        std::fs::create_dir(&snapshots).unwrap();
        let file = rig::files::create(&image, IMAGE);
        let used = usize::try_from(USED).unwrap();
        let direct = rig::files::open_direct(&image);
        // Every block has its place, so that all goes by the disk before the first snapshot.
        write_direct(&direct, &vec![0; used], 0);
        write_direct(&direct, &pattern(5, USED, used), used);
        file.sync_all().unwrap();
        drop((file, direct));
        let files = rig::scratch::folder("snapshots");
        let [socket, control] = ["socket", "control"].map(|name| files.path().join(name));
        let mut arguments: Vec<String> = [
            "--control-path",
            control.to_str().unwrap(),
            "--snapshot-dir",
            snapshots.to_str().unwrap(),
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(more.iter().map(|&one| one.to_owned()));
        let variables = variables.to_vec();
        let daemon = start(&socket, &image, &arguments, &variables);
        Self {
            image,
            snapshots,
            control,
            socket,
            daemon,
            arguments,
            variables,
            _files: files,
        }
    }

    /// Serves it again, after the process has ended.
    pub fn start_again(&mut self) {
        self.daemon = start(&self.socket, &self.image, &self.arguments, &self.variables);
    }

    pub fn extentctl(&self, arguments: &[&str]) -> Done {
        extentctl(&[&self.control], arguments)
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let done = self.extentctl(&all);
        assert_eq!(done.status, Some(0), "{}", done.error);
        serde_json::from_str(&done.out).unwrap()
    }

    /// Takes a snapshot while a guest counts, and looks how far that is as soon as its moment is
    /// told to be over.
    pub fn snapshot(&self, name: &str, stamps: &Stamps) -> Taken {
        let mut client = self.events();
        let before = stamps.numbers();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.extentctl(&["--json", "snapshot", name]));
            let event = client.next_event(Some(limit())).unwrap().unwrap();
            let after = stamps.numbers();
            assert_eq!(event["name"], name);
            Taken {
                done: asked.join().unwrap(),
                before,
                after,
            }
        })
    }

    /// A connection that is told of snapshots that begin, end or fail.
    pub fn events(&self) -> Client {
        let mut client = Client::connect(&self.control, limit()).unwrap();
        let kinds = vec![
            EventKind::SnapshotBegun,
            EventKind::SnapshotTaken,
            EventKind::SnapshotFailed,
        ];
        client.subscribe(Some(kinds)).unwrap();
        client
    }

    /// Names of all that is in the folder for snapshots.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.snapshots).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// The bytes of a snapshot, past the page cache.
    pub fn read(&self, name: &str) -> Vec<u8> {
        rig::files::read_direct(&self.snapshots.join(name))
    }
}

fn start(socket: &Path, image: &Path, arguments: &[String], variables: &[(&str, &str)]) -> Daemon {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    set_limit(Duration::from_secs(20));
    Daemon::start_with(&extentd(), socket, image, &arguments, variables).unwrap()
}

pub fn extentd() -> PathBuf {
    rig::extentd!()
}

pub fn extentctl(controls: &[&Path], arguments: &[&str]) -> Done {
    let controls = controls
        .iter()
        .flat_map(|path| [OsStr::new("--control-path"), path.as_os_str()]);
    let output = Command::new(rig::extentctl!())
        .args(controls)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done {
        status: output.status.code(),
        out: text(output.stdout),
        error: text(output.stderr),
    }
}

/// The bytes of a file that nobody changes.
pub fn bytes(path: &Path) -> Vec<u8> {
    rig::files::read_all(&File::open(path).unwrap())
}
