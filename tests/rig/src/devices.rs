//! Loop devices without a file system, and disks that are slow.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::program::run;
use crate::scratch::folder;

/// A loop device; taken down when dropped.
pub struct Loop {
    device: String,
    files: TempDir,
}

impl Loop {
    /// A device with these logical blocks, in bytes; `None`, with the reason
    /// printed, where this machine has none.
    pub fn new(mebibytes: u64, block: u32) -> Option<Self> {
        let files = folder("loop");
        let backing = files.path().join("backing");
        File::create(&backing)
            .unwrap()
            .set_len(mebibytes << 20)
            .unwrap();
        let block = block.to_string();
        let device = run(Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block])
            .arg(&backing));
        match device {
            Ok(name) => Some(Self {
                device: name.trim().to_owned(),
                files,
            }),
            Err(reason) => {
                println!("SKIP: no loop device: {reason}");
                None
            }
        }
    }

    /// Its node.
    pub fn path(&self) -> &Path {
        Path::new(&self.device)
    }

    /// Where a socket, or another file of the test, can be.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(reason) = run(Command::new("losetup").args(["--detach", &self.device])) {
            println!("{} stays: {reason}", self.device);
        }
    }
}

/// Slows the writes of a process to a disk (cgroup v1, blkio).
pub struct Slow {
    group: PathBuf,
    disk: String,
}

impl Slow {
    /// For a block device; `None`, with the reason printed, where this host
    /// cannot.
    pub fn new(device: &Path) -> Option<Slow> {
        let name = device.file_name()?.to_str()?;
        let group = format!("extentd-slow-{}-{name}", std::process::id());
        let group = Path::new("/sys/fs/cgroup/blkio").join(group);
        if let Err(error) = std::fs::create_dir(&group) {
            println!("SKIP: no blkio cgroup to slow a disk down: {error}");
            return None;
        }
        let number = std::fs::metadata(device).unwrap().rdev();
        let disk = format!("{}:{}", libc::major(number), libc::minor(number));
        Some(Slow { group, disk })
    }

    /// The process with this number is slowed, too.
    pub fn add(&self, pid: u32) {
        std::fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Bytes that may be written in a second; 0: as fast as it can.
    pub fn limit(&self, bytes: u64) {
        let file = self.group.join("blkio.throttle.write_bps_device");
        std::fs::write(file, format!("{} {bytes}", self.disk)).unwrap();
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.group);
    }
}

/// Sectors of 512 bytes written to a disk since it exists.
pub fn sectors_written(device: &Path) -> u64 {
    let name = device.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    text.split_whitespace().nth(6).unwrap().parse().unwrap()
}
