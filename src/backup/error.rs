//! Why something was not done: one line each, with what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::at_rest::AtRestError;

/// Why a backup, a restore, a clone or the end of sharing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A snapshot or an image cannot be opened.
    #[error("{0}")]
    File(#[from] AtRestError),
    /// Extents are not told.
    #[error("{0}: its file system does not tell where data lie ({1}): snapshots need XFS or btrfs")]
    Extents(PathBuf, #[source] io::Error),
    /// Something is there already.
    #[error(
        "{0}: there is such a file already, which is not replaced: give another name, or remove it"
    )]
    Exists(PathBuf),
    /// Another process writes the same file.
    #[error("{0}: another process is writing it: wait for its end, or give another name")]
    Busy(PathBuf),
    /// The host refuses.
    #[error("{path}: cannot {what}: {source}{remedy}", remedy = remedy(source))]
    Host {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// Standard output or input.
    #[error("{0}: {1}")]
    Stream(&'static str, #[source] io::Error),
    /// A backup is none, or was changed.
    #[error("{0}: {1}: it is not used; give another copy of it")]
    Damaged(PathBuf, String),
    /// A backup of a later version.
    #[error("{0}: version {1} of backups is not known here: use a newer extentctl")]
    Version(PathBuf, u32),
    /// An increment whose base is not there.
    #[error("{0}: its base, the backup of {1} ({2}), is not there: give that file too")]
    NoBase(PathBuf, String, String),
    /// Increments in a wrong order.
    #[error(
        "{0}: it is based on another snapshot ({1}) than the one before it: give the increments in their order"
    )]
    WrongBase(PathBuf, String),
    /// A folder that leads to several snapshots.
    #[error(
        "{0}: backups there end in several snapshots ({1}): give the file of the one that is wanted"
    )]
    Several(PathBuf, String),
    /// A folder without backups.
    #[error("{0}: there is no backup (*.{ending}): give another folder, or a file", ending = super::chain::ENDING)]
    Nothing(PathBuf),
    /// The older snapshot is the same one.
    #[error("--since {0}: it is the snapshot itself: give an older one")]
    Itself(PathBuf),
    /// A backup says something else than its snapshot.
    #[error(
        "{0}: what was written differs from the snapshot at {1}: do not rely on it; look at the disk and its cables"
    )]
    Differs(PathBuf, u64),
    /// Blocks cannot be shared.
    #[error(
        "{0}: its file system cannot share blocks ({1}): have it on XFS (mkfs.xfs -m reflink=1) or btrfs, or copy it whole (cp --sparse=always)"
    )]
    NoClones(PathBuf, #[source] io::Error),
    /// Blocks of two file systems.
    #[error(
        "{0}: it is on another file system than the snapshot: clone it to a place beside that one, or copy it whole (cp --sparse=always)"
    )]
    OtherFileSystem(PathBuf),
    /// Sharing cannot be ended in place.
    #[error(
        "{0}: its file system cannot end sharing in place ({1}): only XFS can; copy it whole instead (cp --reflink=never --sparse=always)"
    )]
    NoUnshare(PathBuf, #[source] io::Error),
    /// Somebody has asked to stop.
    #[error("{0}: stopped as asked: {1}")]
    Stopped(PathBuf, &'static str),
}

impl BackupError {
    /// Of something tried on a file.
    pub(super) fn host(
        path: &Path,
        what: &'static str,
    ) -> impl Fn(io::Error) -> BackupError + use<> {
        let path = path.to_owned();
        move |source| BackupError::Host {
            path: path.clone(),
            what,
            source,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            ": make room on the file system, or give another place"
        }
        Some(libc::EFBIG) => ": its file system, or a limit (ulimit -f), lets no file be as long",
        _ => "",
    }
}
