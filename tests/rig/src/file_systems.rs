//! File systems on loop devices for tests, taken down again whatever happens.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{create, fallocate};
use crate::program::run;

/// A kind of file system to make.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// What tests call it; that of ext2, ext3 and ext4 begins with `ext`.
    pub name: &'static str,
    /// The program that makes it, with its arguments but for the device.
    pub mkfs: &'static [&'static str],
    /// Options of its mount, comma-separated.
    pub options: &'static str,
    /// Size of the disk in MiB.
    pub megabytes: u64,
    /// Bytes of a sector of the disk.
    pub sector: u32,
}

/// ext4 as it is made by default.
pub const EXT4: Made = Made {
    name: "ext4",
    mkfs: &["mkfs.ext4", "-q", "-F"],
    options: "",
    megabytes: 160,
    sector: 512,
};
/// ext4 with blocks of 1 KiB.
pub const EXT4_1K: Made = Made {
    name: "ext4-1k",
    mkfs: &["mkfs.ext4", "-q", "-F", "-b", "1024"],
    options: "",
    megabytes: 160,
    sector: 512,
};
/// ext4 that allocates clusters of 64 KiB.
pub const EXT4_BIGALLOC: Made = Made {
    name: "ext4-bigalloc",
    mkfs: &["mkfs.ext4", "-q", "-F", "-O", "bigalloc", "-C", "65536"],
    options: "",
    megabytes: 160,
    sector: 512,
};
/// ext4 that keeps small files in their inodes.
pub const EXT4_INLINE: Made = Made {
    name: "ext4-inline",
    mkfs: &["mkfs.ext4", "-q", "-F", "-O", "inline_data"],
    options: "",
    megabytes: 160,
    sector: 512,
};
/// Older forms of ext4, all mounted as that: files in lists of blocks instead of extents, no
/// journal.
pub const OLDER_EXT: [Made; 5] = [
    Made {
        name: "ext2",
        mkfs: &["mkfs.ext2", "-q", "-F"],
        ..EXT4
    },
    Made {
        name: "ext3",
        mkfs: &["mkfs.ext3", "-q", "-F"],
        ..EXT4
    },
    Made {
        name: "ext3-1k",
        mkfs: &["mkfs.ext3", "-q", "-F", "-b", "1024"],
        ..EXT4
    },
    Made {
        name: "ext4-no-journal",
        mkfs: &["mkfs.ext4", "-q", "-F", "-O", "^has_journal"],
        ..EXT4
    },
    Made {
        name: "ext4-no-extents",
        mkfs: &["mkfs.ext4", "-q", "-F", "-O", "^extent,^64bit"],
        ..EXT4
    },
];
/// ext4 that journals data.
pub const EXT4_JOURNAL: Made = Made {
    name: "ext4-journal",
    mkfs: &["mkfs.ext4", "-q", "-F"],
    options: "data=journal",
    megabytes: 160,
    sector: 512,
};
/// XFS whose files can share extents.
pub const XFS: Made = Made {
    name: "xfs",
    mkfs: &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    options: "",
    megabytes: 320,
    sector: 512,
};
/// As [`XFS`], with blocks of 1 KiB.
pub const XFS_1K: Made = Made {
    name: "xfs-1k",
    mkfs: &["mkfs.xfs", "-q", "-f", "-m", "reflink=1", "-b", "size=1024"],
    ..XFS
};
/// As [`XFS`], on a disk with sectors of 4 KiB.
pub const XFS_4KN: Made = Made {
    name: "xfs-4kn",
    sector: 4096,
    ..XFS
};
/// btrfs as it is made by default.
pub const BTRFS: Made = Made {
    name: "btrfs",
    mkfs: &["mkfs.btrfs", "-q", "-f"],
    options: "",
    megabytes: 256,
    sector: 512,
};
/// btrfs that compresses all files.
pub const BTRFS_COMPRESSED: Made = Made {
    name: "btrfs-compressed",
    mkfs: &["mkfs.btrfs", "-q", "-f"],
    options: "compress-force=zstd",
    megabytes: 256,
    sector: 512,
};

/// A mounted file system on a loop device; dropping it unmounts and detaches.
pub struct Mounted {
    /// Its kind.
    pub made: Made,
    dir: Option<tempfile::TempDir>,
    device: Option<String>,
    mounted: bool,
}

impl Mounted {
    /// Makes one; `None`, with the reason printed, where this machine cannot.
    pub fn new(made: Made) -> Option<Mounted> {
        let base = std::env::var_os("EXTENTD_TEST_DIR").map(PathBuf::from);
        let shm = PathBuf::from("/dev/shm");
        let base = base
            .or_else(|| shm.is_dir().then_some(shm))
            .unwrap_or_else(std::env::temp_dir);
        Mounted::new_in(made, &base, true)
    }

    /// As [`new`](Self::new), with the disk as a file in a folder under `base`, `direct` or through
    /// the page cache.
    pub fn new_in(made: Made, base: &Path, direct: bool) -> Option<Mounted> {
        match Mounted::try_new(made, base, direct) {
            Ok(mounted) => Some(mounted),
            Err(reason) => {
                eprintln!("skipped: no {} here: {reason}", made.name);
                None
            }
        }
    }

    fn try_new(made: Made, base: &Path, direct: bool) -> Result<Mounted, String> {
        let dir = tempfile::Builder::new()
            .prefix("mapping-")
            .tempdir_in(base)
            .map_err(|error| error.to_string())?;
        let backing = dir.path().join("disk");
        let file = File::create(&backing).map_err(|error| error.to_string())?;
        file.set_len(made.megabytes << 20)
            .map_err(|error| error.to_string())?;
        let mut mounted = Mounted {
            made,
            dir: Some(dir),
            device: None,
            mounted: false,
        };
        let attach = |way: &[&str]| {
            let mut losetup = Command::new("losetup");
            losetup.args(["--find", "--show"]).args(way);
            if made.sector != 512 {
                losetup.args(["--sector-size", &made.sector.to_string()]);
            }
            run(losetup.arg(&backing))
        };
        let device = if direct {
            attach(&["--direct-io=on"]).or_else(|_| attach(&[]))?
        } else {
            attach(&[])?
        };
        mounted.device = Some(device.trim().to_owned());
        let device = mounted.device();
        run(Command::new(made.mkfs[0]).args(&made.mkfs[1..]).arg(device))?;
        std::fs::create_dir(mounted.root()).map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        if !made.options.is_empty() {
            mount.args(["-o", made.options]);
        }
        if mounted.is_ext4() {
            // Also where it was made as ext2 or ext3.
            mount.args(["-t", "ext4"]);
        }
        run(mount.arg(device).arg(mounted.root()))?;
        mounted.mounted = true;
        Ok(mounted)
    }

    /// The loop device that it is on.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap()
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("mnt")
    }

    /// The file that is the disk.
    pub fn backing(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("disk")
    }

    /// Where a file of that name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A new file, open for reading and writing through the page cache.
    pub fn create(&self, name: &str) -> File {
        create(self.path(name), 0)
    }

    /// Whether it is an ext4 of any kind, ext2 and ext3 included.
    pub fn is_ext4(&self) -> bool {
        self.made.name.starts_with("ext")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted && run(Command::new("umount").arg(self.root())).is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(self.root()));
        }
        if let Some(device) = &self.device
            && let Err(reason) = run(Command::new("losetup").args(["--detach", device]))
        {
            eprintln!("{device} stays: {reason}");
        }
    }
}

/// What was freed may be used, and what was written is on the disk.
pub fn sync(host: &Mounted) {
    run(Command::new("sync").arg("-f").arg(host.root())).unwrap();
}

/// A new file that leaves no block free, and where it ends.
pub fn occupy(host: &Mounted, name: &str) -> (File, u64) {
    let file = host.create(name);
    let (mut end, mut step) = (0, 64 << 20);
    while step >= 1024 {
        match fallocate(&file, 0, end, step) {
            Ok(()) => end += step,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                step /= 2;
            }
        }
    }
    (file, end)
}
