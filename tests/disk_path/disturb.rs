//! What others do to an image, its file system and its neighbours while a
//! guest uses it.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rig::file_systems::{Mounted, occupy, sync};
use rig::files::{fallocate, pattern, read_direct};
use rig::program::run;

/// Other files of the file system, with what they should hold.
#[derive(Default)]
pub struct Others(Vec<(PathBuf, u64)>);

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl Others {
    /// A new file that holds a pattern on the disk; `None` if there is no room.
    pub fn write(&mut self, path: PathBuf, bytes: usize) -> Option<()> {
        let bytes = pattern(self.0.len() as u64, 0, bytes);
        let written = std::fs::write(&path, &bytes).and_then(|()| File::open(&path)?.sync_all());
        if let Err(error) = written {
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            // XFS may lack the room for its inode.
            let _ = std::fs::remove_file(&path);
            return None;
        }
        self.0.push((path, digest(&bytes)));
        Some(())
    }

    /// Files that take all the room there is, also where it is in small
    /// pieces, up to a bound.
    pub fn occupy(&mut self, host: &Mounted, prefix: &str) {
        const SIZES: [(usize, usize); 3] = [(4 << 20, 200), (64 << 10, 400), (4 << 10, 1000)];
        sync(host);
        for (bytes, most) in SIZES {
            for count in 0..most {
                let path = host.path(&format!("{prefix}-{bytes}-{count}"));
                if self.write(path, bytes).is_none() {
                    break;
                }
            }
        }
        assert!(!self.0.is_empty(), "no file found room");
    }

    /// A file is to stay as it is now.
    pub fn keep(&mut self, path: PathBuf) {
        let bytes = read_direct(&path);
        self.0.push((path, digest(&bytes)));
    }

    /// A file may change from now on.
    pub fn forget(&mut self, path: &Path) {
        self.0.retain(|(other, _)| other != path);
    }

    /// Removes all of them.
    pub fn remove_all(self) {
        for (path, _) in self.0 {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Removes a file; what is wrong with it, if anything is.
    pub fn remove(&mut self, path: &Path) -> Option<String> {
        let spoilt = self.spoilt_of(path);
        self.forget(path);
        std::fs::remove_file(path).unwrap();
        spoilt
    }

    fn spoilt_of(&self, path: &Path) -> Option<String> {
        let (_, wanted) = self.0.iter().find(|(other, _)| other == path)?;
        let changed = digest(&read_direct(path)) != *wanted;
        changed.then(|| format!("{} has changed", path.display()))
    }

    /// The files that are not as they should be.
    pub fn spoilt(&self) -> Vec<String> {
        let spoilt = |(path, _): &(PathBuf, u64)| self.spoilt_of(path);
        self.0.iter().filter_map(spoilt).collect()
    }
}

/// Moves all blocks of a file together.
pub fn defragment(host: &Mounted, image: &Path) {
    let mut tool = Command::new(if host.is_ext4() {
        "e4defrag"
    } else {
        "xfs_fsr"
    });
    let before = extents(image);
    // Either may end early where the file changes: what it has moved counts.
    let _ = run(tool.arg(image));
    eprintln!("{tool:?}: {before} extents became {}", extents(image));
}

/// Extents of a file, as the file system counts them.
pub fn extents(file: &Path) -> usize {
    let text = run(Command::new("filefrag").arg(file)).unwrap();
    let words = text.rsplit_once(": ").unwrap().1;
    words.split(' ').next().unwrap().parse().unwrap()
}

/// Shares all blocks of a file with a new one.
pub fn reflink(image: &Path, name: PathBuf) -> PathBuf {
    run(Command::new("cp")
        .arg("--reflink=always")
        .arg(image)
        .arg(&name))
    .unwrap();
    name
}

/// Opens a file as one that truncates it would, but does not wait: that would
/// destroy it, once its owner steps back. Only to be used while that owner has
/// a lease.
pub fn try_truncate(image: &Path) {
    let opened = OpenOptions::new()
        .write(true)
        .truncate(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(image);
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Reads a file through the page cache.
pub fn cat(image: &Path) -> Vec<u8> {
    std::fs::read(image).unwrap()
}

/// Stops the file system from changing for a while.
pub fn freeze(host: &Mounted) {
    run(Command::new("fsfreeze").arg("-f").arg(host.root())).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    run(Command::new("fsfreeze").arg("-u").arg(host.root())).unwrap();
}

/// Tries to take the file system away from the image.
pub fn remount(host: &Mounted) {
    let read_only = run(Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(host.root()));
    assert!(read_only.unwrap_err().contains("busy"));
    let gone = run(Command::new("umount").arg(host.root()));
    assert!(gone.unwrap_err().contains("busy"));
}

/// Blocks come and go next to the image, and the disk forgets the free ones.
pub fn churn(host: &Mounted) {
    for round in 0..20 {
        let path = host.path(&format!("churn-{}", round % 3));
        let _ = std::fs::remove_file(&path);
        fallocate(&File::create(path).unwrap(), 0, 0, 3 << 20).unwrap();
    }
    for round in 0..3 {
        std::fs::remove_file(host.path(&format!("churn-{round}"))).unwrap();
    }
    run(Command::new("fstrim").arg(host.root())).unwrap();
}

/// Leaves the file system no free block while `during` runs, and sets `full`.
pub fn fill_up(host: &Mounted, full: &AtomicBool, during: impl FnOnce()) {
    full.store(true, Ordering::SeqCst);
    let (filler, _) = occupy(host, "filler");
    during();
    drop(filler);
    std::fs::remove_file(host.path("filler")).unwrap();
    sync(host);
    full.store(false, Ordering::SeqCst);
}

/// What the file system's own checker says of a device that is not mounted.
pub fn check(ext4: bool, device: &str) -> Result<String, String> {
    let mut tool = if ext4 {
        Command::new("e2fsck")
    } else {
        Command::new("xfs_repair")
    };
    let how: &[&str] = if ext4 { &["-f", "-n"] } else { &["-n"] };
    run(tool.args(how).arg(device))
}

/// Ends what runs besides when it is dropped, also because of a panic.
pub struct Stopper<'a>(pub &'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
