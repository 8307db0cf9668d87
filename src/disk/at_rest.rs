//! A file that nobody writes meanwhile: a snapshot, or an image whose user holds
//! still or has none.

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
    /// The file, open for reading, and for writing where it is to be changed.
    pub file: Arc<File>,
}

impl AtRest {
    /// Opens a snapshot, which nobody may write.
    ///
    /// # Errors
    /// It is none, or in use.
    pub fn open(path: &Path) -> Result<Self, AtRestError> {
        Self::open_held(path)?.locked(
            true,
            "give a snapshot of it, or the --control-path of its extentd instead",
        )
    }

    /// Opens an image to change it, which nobody else may use.
    ///
    /// # Errors
    /// It is no file, or in use.
    pub fn open_to_change(path: &Path) -> Result<Self, AtRestError> {
        Self::open_as(path, false)?.locked(false, "stop who uses it first")
    }

    fn locked(self, read_only: bool, remedy: &str) -> Result<Self, AtRestError> {
        match image_lock::take(&self.file, read_only) {
            Ok(()) => Ok(self),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let identity = Identity::of(&self.file).map_err(self.failed())?;
                let in_use = InUse {
                    path: self.path.clone(),
                    identity,
                };
                Err(AtRestError::Written(format!(
                    "{}: {remedy}",
                    in_use.by_whom()
                )))
            }
            // Some file systems have no locks.
            Err(_) => Ok(self),
        }
    }

    /// Opens an image that is written at other times: whoever asks sees to it
    /// that nobody does now.
    ///
    /// # Errors
    /// It cannot be opened, or is no file.
    pub fn open_held(path: &Path) -> Result<Self, AtRestError> {
        Self::open_as(path, true)
    }

    fn open_as(path: &Path, read_only: bool) -> Result<Self, AtRestError> {
        let failed = |error| AtRestError::File(path.to_owned(), error);
        // What blocks when it is opened is no regular file.
        let meta = std::fs::metadata(path).map_err(failed)?;
        if !meta.is_file() {
            return Err(AtRestError::NoFile(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(open_file(path, read_only, 0).map_err(failed)?),
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
