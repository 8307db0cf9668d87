//! Block devices on block devices: of the device mapper, and partitions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rig::program::run;

/// Bytes of a sector of the device mapper.
pub const SECTOR: u64 = 512;

/// Runs a program of the machine, which must succeed; what it prints.
pub fn shell(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments).stdin(Stdio::null())).unwrap()
}

/// `dmsetup`, whose first argument is a command on the device of that name. Nobody makes names
/// under /dev/mapper here.
pub fn dmsetup(name: &str, arguments: &[&str]) -> String {
    let mut all = vec![arguments[0], name, "--noudevsync", "--noudevrules"];
    all.extend(&arguments[1..]);
    shell("dmsetup", &all)
}

/// Sectors of 512 bytes of a device.
pub fn sectors(device: &str) -> u64 {
    let bytes = shell("blockdev", &["--getsize64", device]);
    bytes.trim().parse::<u64>().unwrap() / SECTOR
}

/// Unmounts a folder; whether it could be. The rings of a process end a moment after it, and have
/// the image open until then.
pub fn unmount(folder: &Path) -> bool {
    let gone = || {
        let result = Command::new("umount")
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        result.is_ok_and(|status| status.success())
    };
    (0..100).any(|_| {
        let gone = gone();
        if !gone {
            std::thread::sleep(Duration::from_millis(50));
        }
        gone
    })
}

/// One device on others; gone when dropped.
#[derive(Debug)]
pub enum Layer {
    /// Of the device mapper: its name, and its node.
    Mapped { name: String, node: String },
    /// The only partition of a disk.
    Partition { disk: String },
}

impl Layer {
    /// A device of the device mapper by its table.
    pub fn mapped(name: &str, table: &str) -> Self {
        dmsetup(name, &["create", "--table", table]);
        Self::named(name)
    }

    /// A new LUKS device on all of a disk, as `cryptsetup` makes and opens it. Its key is easily
    /// found.
    pub fn luks(name: &str, disk: &str) -> Self {
        let key = "/tmp/luks-key";
        std::fs::write(key, "not secret").unwrap();
        // Nobody makes nodes but the library itself.
        let cryptsetup = |arguments: &[&str]| {
            let mut command = Command::new("cryptsetup");
            command.env("DM_DISABLE_UDEV", "1").args(arguments);
            run(command.args(["--key-file", key]).stdin(Stdio::null())).unwrap();
        };
        cryptsetup(&[
            "luksFormat",
            "--batch-mode",
            "--pbkdf=pbkdf2",
            "--pbkdf-force-iterations=1000",
            disk,
        ]);
        cryptsetup(&["open", "--allow-discards", disk, name]);
        Self::named(name)
    }

    fn named(name: &str) -> Self {
        let minor = ["info", "-c", "--noheadings", "-o", "minor", name];
        let minor = shell("dmsetup", &minor);
        Self::Mapped {
            name: name.to_owned(),
            node: format!("/dev/dm-{}", minor.trim()),
        }
    }

    /// The only partition of a disk, from that sector of the disk on to its end.
    pub fn partition(disk: &str, start: u64) -> Self {
        let script = format!("echo 'label: dos\nstart={start}, type=83' | sfdisk --quiet {disk}");
        shell("sh", &["-c", &script]);
        Self::Partition {
            disk: disk.to_owned(),
        }
    }

    /// Its node.
    pub fn node(&self) -> String {
        match self {
            Self::Mapped { node, .. } => node.clone(),
            Self::Partition { disk } if disk.ends_with(|c: char| c.is_ascii_digit()) => {
                format!("{disk}p1")
            }
            Self::Partition { disk } => format!("{disk}1"),
        }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // A test that has failed may have left it in use.
        let best = |program: &str, arguments: &[&str]| {
            let _ = Command::new(program).args(arguments).status();
        };
        match self {
            Self::Mapped { name, .. } => {
                best("dmsetup", &["remove", name, "--noudevsync"]);
            }
            Self::Partition { disk } => best("sfdisk", &["--quiet", "--delete", disk]),
        }
    }
}

/// Layers on a disk, the last one on top. They go from the top when dropped.
#[derive(Debug)]
pub struct Stack {
    disk: String,
    layers: Vec<Layer>,
}

impl Stack {
    /// The disk alone.
    pub fn on(disk: &str) -> Self {
        Self {
            disk: disk.to_owned(),
            layers: Vec::new(),
        }
    }

    /// Puts a device of the device mapper on top, by a target that is told the device under it
    /// and takes as many of its sectors.
    pub fn map(self, name: &str, target: impl FnOnce(&str) -> String) -> Self {
        let sectors = sectors(&self.top());
        self.map_part(name, sectors, target)
    }

    /// As [`map`](Self::map), with so many sectors of its own.
    pub fn map_part(self, name: &str, sectors: u64, target: impl FnOnce(&str) -> String) -> Self {
        let table = format!("0 {sectors} {}", target(&self.top()));
        self.with(Layer::mapped(name, &table))
    }

    /// Puts this on top.
    pub fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The device on top.
    pub fn top(&self) -> String {
        self.layers.last().map_or(self.disk.clone(), Layer::node)
    }

    /// The disk under all of it.
    pub fn disk(&self) -> &str {
        &self.disk
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        while self.layers.pop().is_some() {}
    }
}

/// A file system of that kind on a device, mounted; gone when dropped.
#[derive(Debug)]
pub struct Home {
    kind: &'static str,
    device: String,
    folder: PathBuf,
}

impl Home {
    /// A new one.
    pub fn make(kind: &'static str, device: &str) -> Self {
        // No trimming of what is new.
        let options: &[&str] = match kind {
            "xfs" => &["-q", "-f", "-K"],
            _ => &["-q", "-F", "-E", "nodiscard"],
        };
        shell(&format!("mkfs.{kind}"), &[options, &[device]].concat());
        let folder = PathBuf::from("/mnt/home");
        std::fs::create_dir_all(&folder).unwrap();
        let home = Self {
            kind,
            device: device.to_owned(),
            folder,
        };
        home.mount();
        home
    }

    fn mount(&self) {
        let folder = self.folder.to_str().unwrap();
        shell("mount", &["-t", self.kind, &self.device, folder]);
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Unmounts it and mounts it again, so that all of it is read from the device.
    pub fn mount_again(&self) {
        assert!(unmount(&self.folder), "it is in use");
        self.mount();
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}
