//! An image, the process that serves it, and a load on it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use front_end::Daemon;
use front_end::load::{Client, Extent, Pattern, Plan, Report};
use rig::file_systems::{EXT4, Mounted};
use rig::files::pattern;
use tempfile::TempDir;

/// The size of the image in bytes.
pub const IMAGE: usize = 32 << 20;

/// How requests reach the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    File,
    Disk,
}

/// The size in bytes of an image in which nothing was written.
const SPARSE: u64 = 128 << 20;

/// A fully written image, or an empty one. Its folder, or its file system, lives as long.
pub struct Image {
    pub path: PathBuf,
    pub way: Way,
    _mounted: Option<Mounted>,
    pub files: TempDir,
}

impl Image {
    /// As [`new`](Self::new), but nothing is written in it.
    pub fn sparse(way: Way) -> Option<Self> {
        let image = Self::new(way)?;
        let file = std::fs::File::create(&image.path).unwrap();
        file.set_len(SPARSE).unwrap();
        file.sync_all().unwrap();
        Some(image)
    }

    /// On ext4 of its own where the disk path is wanted; `None`, with the
    /// reason printed, where that cannot be had.
    pub fn new(way: Way) -> Option<Self> {
        let files = rig::scratch::folder("counting");
        let mounted = match way {
            Way::File => None,
            Way::Disk => match Mounted::new(EXT4) {
                Some(mounted) => Some(mounted),
                None => {
                    eprintln!("SKIP: there is no ext4 on a loop device for the disk path");
                    return None;
                }
            },
        };
        let path = match &mounted {
            Some(mounted) => mounted.path("image"),
            None => files.path().join("image"),
        };
        std::fs::write(&path, pattern(1, 0, IMAGE)).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        Some(Self {
            path,
            way,
            _mounted: mounted,
            files,
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.files.path().join("socket")
    }

    /// A program that runs the process under test by `tool`, with the same
    /// arguments and the same process id.
    pub fn wrapper(&self, tool: &str) -> PathBuf {
        let path = self.files.path().join("wrapper");
        let binary = binary();
        let script = format!("#!/bin/sh\nexec {tool} '{}' \"$@\"\n", binary.display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Has `binary` serve it on one thread.
    pub fn serve(&self, binary: &Path) -> Daemon {
        let way = match self.way {
            Way::File => "file",
            Way::Disk => "disk",
        };
        let queues = ["--num-queues", "2", "--threads", "1"];
        // What a worker finds by looking depends on the machine's speed.
        let arguments = [&queues[..], &["--io-path", way, "--poll-us", "0"]].concat();
        Daemon::start(binary, &self.socket(), &self.path, &arguments).unwrap()
    }
}

/// The process under test.
pub fn binary() -> PathBuf {
    rig::extentd!()
}

/// Requests of the first run.
pub const WARM_UP: u64 = 2000;

/// A load at some depth.
pub fn plan(pattern: Pattern, depth: u16) -> Plan {
    Plan {
        pattern,
        depth,
        extent: Extent::Requests(WARM_UP),
        ..Plan::default()
    }
}

/// Connects, and runs the plan once, so that the map is there and all pools
/// are as large as they get.
pub fn warmed_up(socket: &Path, plan: Plan) -> Client {
    let mut client = Client::connect(socket, plan).unwrap();
    client.run().unwrap();
    client
}

/// Runs so many requests of each queue.
pub fn run(client: &mut Client, requests: u64) -> Report {
    client.set_extent(Extent::Requests(requests));
    client.run().unwrap()
}

/// A program that a check needs; false, with the reason printed, if it is not
/// there.
pub fn have(program: &str) -> bool {
    let found = std::process::Command::new(program)
        .arg("--version")
        .output()
        .is_ok();
    if !found {
        eprintln!("SKIP: there is no {program}");
    }
    found
}

/// A count in proportion to another. Counts here stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
pub fn ratio(count: u64, of: u64) -> f64 {
    count as f64 / of as f64
}
