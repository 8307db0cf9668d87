//! File systems on loop devices for tests, taken down again whatever happens.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kind of file system to make.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub name: &'static str,
    pub mkfs: &'static [&'static str],
    pub options: &'static str,
    pub megabytes: u64,
    /// Bytes of a sector of the disk.
    pub sector: u32,
}

pub const EXT4: Made = Made {
    name: "ext4",
    mkfs: &["mkfs.ext4", "-q", "-F"],
    options: "",
    megabytes: 160,
    sector: 512,
};
pub const EXT4_1K: Made = Made {
    name: "ext4-1k",
    mkfs: &["mkfs.ext4", "-q", "-F", "-b", "1024"],
    options: "",
    megabytes: 160,
    sector: 512,
};
pub const EXT4_BIGALLOC: Made = Made {
    name: "ext4-bigalloc",
    mkfs: &["mkfs.ext4", "-q", "-F", "-O", "bigalloc", "-C", "65536"],
    options: "",
    megabytes: 160,
    sector: 512,
};
pub const EXT4_INLINE: Made = Made {
    name: "ext4-inline",
    mkfs: &["mkfs.ext4", "-q", "-F", "-O", "inline_data"],
    options: "",
    megabytes: 160,
    sector: 512,
};
pub const EXT4_JOURNAL: Made = Made {
    name: "ext4-journal",
    mkfs: &["mkfs.ext4", "-q", "-F"],
    options: "data=journal",
    megabytes: 160,
    sector: 512,
};
pub const XFS: Made = Made {
    name: "xfs",
    mkfs: &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    options: "",
    megabytes: 320,
    sector: 512,
};
pub const XFS_1K: Made = Made {
    name: "xfs-1k",
    mkfs: &["mkfs.xfs", "-q", "-f", "-m", "reflink=1", "-b", "size=1024"],
    ..XFS
};
pub const XFS_4KN: Made = Made {
    name: "xfs-4kn",
    sector: 4096,
    ..XFS
};
pub const BTRFS: Made = Made {
    name: "btrfs",
    mkfs: &["mkfs.btrfs", "-q", "-f"],
    options: "",
    megabytes: 256,
    sector: 512,
};
pub const BTRFS_COMPRESSED: Made = Made {
    name: "btrfs-compressed",
    mkfs: &["mkfs.btrfs", "-q", "-f"],
    options: "compress-force=zstd",
    megabytes: 256,
    sector: 512,
};

/// A mounted file system on a loop device; dropping it unmounts and detaches.
pub struct Mounted {
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
        run(mount.arg(device).arg(mounted.root()))?;
        mounted.mounted = true;
        Ok(mounted)
    }

    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("mnt")
    }

    /// The file that is the disk.
    pub fn backing(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("disk")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A new file, open for reading and writing through the page cache.
    pub fn create(&self, name: &str) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(name))
            .unwrap()
    }

    pub fn is_ext4(&self) -> bool {
        self.made.name.starts_with("ext4")
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

/// Runs a program; what it wrote, or why it failed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// Opens for direct I/O.
pub fn open_direct(path: impl AsRef<Path>) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

/// The whole file, as the file system gives it.
pub fn read_all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Bytes that tell where in which file they belong, never all zeros in a sector.
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for word in 0..len.div_ceil(8) as u64 {
        let at = offset / 8 + word;
        let mixed = (at ^ seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        bytes.extend_from_slice(&mixed.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// fallocate(2).
pub fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let (offset, len) = (i64::try_from(offset).unwrap(), i64::try_from(len).unwrap());
    // SAFETY: no memory is involved.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

pub fn punch(file: &File, offset: u64, len: u64) {
    fallocate(
        file,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
    .unwrap();
}

/// FICLONE: the whole of `from` becomes shared with `to`.
pub fn reflink(from: &File, to: &File) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    const FICLONE: libc::c_ulong = 0x4004_9409;
    // SAFETY: no memory is involved.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
