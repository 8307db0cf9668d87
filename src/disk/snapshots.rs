//! Snapshots: clones of the image in a folder of their own. Whoever looks there
//! finds a snapshot whole, or not at all: it is made under another name, made
//! stable, renamed, and then the folder is made stable.

pub(crate) mod cloner;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps, flock,
    fstat, fsync, futimens, ioctl_ficlone, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::host::sys;

/// Longest name, so that there is room for what parts have around it.
const NAME_BYTES: usize = 200;
/// What is not a snapshot yet has a dot before its name, and this behind it.
const PART: &str = ".part";

/// Why there is no snapshot: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The folder cannot be used.
    #[error("--snapshot-dir {0}: {1}: give a folder that this user may write")]
    Folder(PathBuf, #[source] io::Error),
    /// There a clone is impossible.
    #[error(
        "--snapshot-dir {0}: the image cannot be cloned to there ({1}): have both on one XFS (made with reflink=1) or one btrfs, or leave the option out"
    )]
    NoClones(PathBuf, #[source] io::Error),
    /// It is no file.
    #[error(
        "--snapshot-dir: the image is a block device, which cannot be cloned: leave the option out"
    )]
    Device,
    /// It would be no name of a file, or a hidden one.
    #[error(
        "snapshot: {0:?} is no name for one: give 1 to {NAME_BYTES} bytes without / and control characters, the first of them no dot"
    )]
    Name(String),
    /// It is there already, or is being made.
    #[error("snapshot: there is a {0} already: give another name, or remove that one")]
    Exists(String),
    /// It was not whole when it was given up.
    #[error("snapshot {name}: given up: {reason}")]
    GivenUp {
        /// Of the snapshot.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The host refuses.
    #[error("snapshot {name}: {source}{remedy}", remedy = remedy(.source))]
    Host {
        /// Of the snapshot.
        name: String,
        /// What the host says.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ": make room on the file system",
        _ => "",
    }
}

/// The folder of `--snapshot-dir`.
#[derive(Debug)]
pub(crate) struct SnapshotFolder {
    path: PathBuf,
    folder: OwnedFd,
}

/// A snapshot that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// What of it is not UTF-8 is replaced.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was taken, since 1970.
    pub taken: Duration,
}

impl SnapshotFolder {
    /// Opens the folder, and tries whether `image` can be cloned there. What
    /// was not finished by a process that has ended is removed.
    ///
    /// # Errors
    /// The folder cannot be used, or clones are impossible.
    pub(crate) fn open(path: &Path, image: &File) -> Result<Self, SnapshotError> {
        let failed = |error: Errno| SnapshotError::Folder(path.to_owned(), error.into());
        if !FileType::from_raw_mode(fstat(image).map_err(failed)?.st_mode).is_file() {
            return Err(SnapshotError::Device);
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let this = Self {
            path: path.to_owned(),
            folder,
        };
        this.remove_leftovers().map_err(failed)?;
        let trial = this
            .create(format!("trial-{}", std::process::id()))
            .map_err(|error| match error {
                SnapshotError::Host { source, .. } => {
                    SnapshotError::Folder(path.to_owned(), source)
                }
                error => error,
            })?;
        // One block: the whole may take long.
        sys::clone_start(&trial.file, image)
            .map_err(|error| SnapshotError::NoClones(path.to_owned(), error))?;
        drop(trial);
        Ok(this)
    }

    /// Begins a snapshot of that name: nothing of it is seen yet.
    ///
    /// # Errors
    /// It is no name, or there is one.
    pub(crate) fn begin(&self, name: &str) -> Result<Part<'_>, SnapshotError> {
        if !is_name(name) {
            return Err(SnapshotError::Name(name.to_owned()));
        }
        if statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(SnapshotError::Exists(name.to_owned()));
        }
        self.create(name.to_owned())
    }

    fn create(&self, name: String) -> Result<Part<'_>, SnapshotError> {
        let hidden = format!(".{name}{PART}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = || {
            openat(
                &self.folder,
                hidden.as_str(),
                flags,
                Mode::RUSR | Mode::WUSR,
            )
        };
        let created = match create() {
            Err(Errno::EXIST) => {
                let _ = self.remove_if_left(&hidden);
                create()
            }
            created => created,
        };
        let failed = |error: Errno| match error {
            Errno::EXIST => SnapshotError::Exists(name.clone()),
            error => SnapshotError::Host {
                name: name.clone(),
                source: error.into(),
            },
        };
        let file = created.map_err(failed)?;
        // So that nobody takes it for something that was left.
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(failed)?;
        Ok(Part {
            folder: self,
            name,
            hidden: Some(hidden),
            file,
        })
    }

    /// What is there, by name.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<Found>, SnapshotError> {
        let failed = |error: Errno| SnapshotError::Folder(self.path.clone(), error.into());
        let mut found = Vec::new();
        for entry in self.entries().map_err(failed)? {
            let Ok(stat) = statat(&self.folder, &*entry, AtFlags::SYMLINK_NOFOLLOW) else {
                // It has gone meanwhile.
                continue;
            };
            if is_hidden(&entry) || !FileType::from_raw_mode(stat.st_mode).is_file() {
                continue;
            }
            found.push(Found {
                name: entry.to_string_lossy().into_owned(),
                bytes: u64::try_from(stat.st_size).unwrap_or(0),
                taken: Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0)),
            });
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// Removes parts whose process has ended.
    fn remove_leftovers(&self) -> Result<(), Errno> {
        for entry in self.entries()? {
            if is_hidden(&entry) && entry.as_encoded_bytes().ends_with(PART.as_bytes()) {
                // Whoever has it locked still makes it.
                let _ = self.remove_if_left(&entry);
            }
        }
        Ok(())
    }

    fn remove_if_left(&self, hidden: impl AsRef<std::ffi::OsStr>) -> Result<(), Errno> {
        let hidden = hidden.as_ref();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.folder, hidden, flags, Mode::empty())?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        unlinkat(&self.folder, hidden, AtFlags::empty())?;
        log::info!(
            "{}: removed {}, which was not finished",
            self.path.display(),
            hidden.display()
        );
        Ok(())
    }

    fn entries(&self) -> Result<Vec<OsString>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.folder)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn is_name(name: &str) -> bool {
    let length = (1..=NAME_BYTES).contains(&name.len());
    length && !name.starts_with('.') && !name.contains(|c: char| c == '/' || c.is_control())
}

/// A snapshot that nobody sees yet. It is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    folder: &'a SnapshotFolder,
    name: String,
    hidden: Option<String>,
    file: OwnedFd,
}

impl Part<'_> {
    /// Makes it what `image` is now. The file system lets nobody write
    /// meanwhile.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn clone_of(&self, image: &File) -> Result<(), SnapshotError> {
        ioctl_ficlone(&self.file, image).map_err(|error| self.failed(error))
    }

    /// Its name, once it is seen.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes these bytes of it what those of `image` are now. They are whole
    /// blocks, but for the last of the image. It is as long as that from then
    /// on, or longer.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn clone_range(
        &self,
        image: &File,
        range: &Range<u64>,
    ) -> Result<(), SnapshotError> {
        sys::clone_range(&self.file, image, range).map_err(|error| self.refused(error))
    }

    /// Has it seen as what was taken then, since 1970; now and after a crash.
    ///
    /// # Errors
    /// It is not: somebody else has made one of that name, or the host says
    /// something.
    pub(crate) fn finish(mut self, taken: Duration) -> Result<Found, SnapshotError> {
        let time = Timespec {
            tv_sec: i64::try_from(taken.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: taken.subsec_nanos().into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        futimens(&self.file, &times).map_err(|error| self.failed(error))?;
        fsync(&self.file).map_err(|error| self.failed(error))?;
        let stat = fstat(&self.file).map_err(|error| self.failed(error))?;
        let folder = &self.folder.folder;
        if let Some(hidden) = &self.hidden {
            let flags = RenameFlags::NOREPLACE;
            renameat_with(folder, hidden.as_str(), folder, self.name.as_str(), flags).map_err(
                |error| match error {
                    Errno::EXIST => SnapshotError::Exists(self.name.clone()),
                    error => self.failed(error),
                },
            )?;
        }
        self.hidden = None;
        fsync(folder).map_err(|error| self.failed(error))?;
        Ok(Found {
            name: self.name.clone(),
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            taken,
        })
    }

    fn failed(&self, error: Errno) -> SnapshotError {
        self.refused(error.into())
    }

    /// The host says so.
    pub(crate) fn refused(&self, source: io::Error) -> SnapshotError {
        SnapshotError::Host {
            name: self.name.clone(),
            source,
        }
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if let Some(hidden) = self.hidden.take() {
            // The next start tries it again.
            let _ = unlinkat(&self.folder.folder, hidden.as_str(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_that_can_be_seen_are_names() {
        for name in ["monday", "2026-11-29 04:00", "ä", &"x".repeat(NAME_BYTES)] {
            assert!(is_name(name), "{name}");
        }
        let long = "x".repeat(NAME_BYTES + 1);
        for name in [
            "",
            ".",
            "..",
            ".monday",
            "a/b",
            "/etc/passwd",
            "a\nb",
            "a\0",
            &long,
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn where_nothing_can_be_cloned_it_is_said_at_once_and_nothing_is_left() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let image = folder.path().join("image");
        std::fs::write(&image, [1; 4096]).unwrap();
        let snapshots = folder.path().join("snapshots");
        let image = File::open(image).unwrap();
        let error = SnapshotFolder::open(&snapshots, &image).unwrap_err();
        assert!(matches!(error, SnapshotError::Folder(..)), "{error}");
        std::fs::create_dir(&snapshots).unwrap();
        let error = SnapshotFolder::open(&snapshots, &image).unwrap_err();
        assert!(matches!(error, SnapshotError::NoClones(..)), "{error}");
        assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 0);
    }
}
