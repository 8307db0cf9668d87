//! Loop devices without a file system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::program::run;
use rig::scratch::folder;
use tempfile::TempDir;

/// A loop device; taken down when dropped.
pub struct Loop {
    device: String,
    files: TempDir,
}

impl Loop {
    /// A device with these logical blocks, in bytes; `None`, with the reason
    /// printed, where this machine has none.
    pub fn new(mebibytes: u64, block: u32) -> Option<Self> {
        let files = folder("durability");
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

    pub fn path(&self) -> &Path {
        Path::new(&self.device)
    }

    /// Where a socket can be.
    pub fn socket(&self) -> PathBuf {
        self.files.path().join("socket")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(reason) = run(Command::new("losetup").args(["--detach", &self.device])) {
            println!("{} stays: {reason}", self.device);
        }
    }
}

/// How many flushes a block device has carried out (Documentation/block/stat).
pub fn flushes(device: &str) -> u64 {
    let name = Path::new(device).file_name().unwrap().to_str().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    let field = stat.split_whitespace().nth(15);
    field.unwrap().parse().unwrap()
}
