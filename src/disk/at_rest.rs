//! A file that is only read, while nobody writes it: a snapshot, or an image
//! whose user holds still.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::holders::{Identity, InUse};
use super::image_file::open_file;
use super::image_lock;

/// Why a file cannot be read like that: one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AtRestError {
    /// It cannot be opened or looked at.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("{0}: not a regular file: give a snapshot, or an image that is a file")]
    NoFile(PathBuf),
    /// Somebody writes it.
    #[error("{0}")]
    Written(String),
}

/// An open file. Locked as QEMU locks images that are read, so that no guest
/// begins to write it meanwhile.
#[derive(Debug)]
pub struct AtRest {
    /// Where it was found.
    pub path: PathBuf,
    /// The file, open for reading.
    pub file: Arc<File>,
}

impl AtRest {
    /// Opens a snapshot, which nobody may write.
    ///
    /// # Errors
    /// It is none, or in use.
    pub fn open(path: &Path) -> Result<Self, AtRestError> {
        let this = Self::open_held(path)?;
        match image_lock::take(&this.file, true) {
            Ok(()) => Ok(this),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let identity = Identity::of(&this.file).map_err(this.failed())?;
                let in_use = InUse {
                    path: path.to_owned(),
                    identity,
                };
                Err(AtRestError::Written(format!(
                    "{}: give a snapshot of it, or the --control-path of its extentd instead",
                    in_use.by_whom()
                )))
            }
            // Some file systems have no locks.
            Err(_) => Ok(this),
        }
    }

    /// Opens an image that is written at other times: whoever asks sees to it
    /// that nobody does now.
    ///
    /// # Errors
    /// It cannot be opened, or is no file.
    pub fn open_held(path: &Path) -> Result<Self, AtRestError> {
        let failed = |error| AtRestError::File(path.to_owned(), error);
        // What blocks when it is opened is no regular file.
        let meta = std::fs::metadata(path).map_err(failed)?;
        if !meta.is_file() {
            return Err(AtRestError::NoFile(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(open_file(path, true, 0).map_err(failed)?),
        })
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn size(&self) -> Result<u64, AtRestError> {
        Ok(self.file.metadata().map_err(self.failed())?.len())
    }

    /// What an error on it is told as.
    pub fn failed(&self) -> impl Fn(io::Error) -> AtRestError {
        |error| AtRestError::File(self.path.clone(), error)
    }
}
