//! Snapshots: clones of the image in a folder of their own. Whoever looks there
//! finds a snapshot whole, or not at all.

pub(crate) mod cloner;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, fstat, futimens, ioctl_ficlone,
    statat,
};
use rustix::io::Errno;

use crate::host::part::{self, PartError};
use crate::host::sys;

/// Longest name, so that there is room for what parts have around it.
const NAME_BYTES: usize = 200;

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
        sys::clone_start(&trial.part.file, image)
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
        match part::Part::begin(self.folder.as_fd(), name.as_ref()) {
            Ok(part) => Ok(Part { part, name }),
            Err(error) => Err(told(error, &name)),
        }
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
            // Whoever has it locked still makes it.
            if part::is_part(&entry) && part::remove_left(&self.folder, &entry).is_ok() {
                log::info!(
                    "{}: removed {}, which was not finished",
                    self.path.display(),
                    entry.display()
                );
            }
        }
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

/// What went wrong with one of that name.
fn told(error: PartError, name: &str) -> SnapshotError {
    match error {
        PartError::Exists | PartError::Busy => SnapshotError::Exists(name.to_owned()),
        PartError::Host(_, source) => SnapshotError::Host {
            name: name.to_owned(),
            source,
        },
    }
}

/// A snapshot that nobody sees yet. It is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    part: part::Part<BorrowedFd<'a>>,
    name: String,
}

impl Part<'_> {
    /// Makes it what `image` is now. The file system lets nobody write
    /// meanwhile.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn clone_of(&self, image: &File) -> Result<(), SnapshotError> {
        ioctl_ficlone(&self.part.file, image).map_err(|error| self.failed(error))
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
        sys::clone_range(&self.part.file, image, range).map_err(|error| self.refused(error))
    }

    /// Has it seen as what was taken then, since 1970; now and after a crash.
    ///
    /// # Errors
    /// It is not: somebody else has made one of that name, or the host says
    /// something.
    pub(crate) fn finish(self, taken: Duration) -> Result<Found, SnapshotError> {
        let time = Timespec {
            tv_sec: i64::try_from(taken.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: taken.subsec_nanos().into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        futimens(&self.part.file, &times).map_err(|error| self.failed(error))?;
        let stat = fstat(&self.part.file).map_err(|error| self.failed(error))?;
        let Self { part, name } = self;
        part.finish().map_err(|error| told(error, &name))?;
        Ok(Found {
            name,
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
