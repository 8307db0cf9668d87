//! A file that is there whole, or not at all, where a path says.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::BackupError;
use crate::host::part::{self, PartError};

/// A file that is being written; removed when dropped before it is finished.
#[derive(Debug)]
pub(super) struct Part {
    part: part::Part<File>,
    path: PathBuf,
}

impl Part {
    /// Begins what shall be at `path`. What a process has left that has ended
    /// is replaced.
    ///
    /// # Errors
    /// There is such a file, somebody else makes it, or the host refuses.
    pub(super) fn begin(path: &Path) -> Result<Self, BackupError> {
        let refused = BackupError::host(path, "make it");
        let Some(name) = path.file_name() else {
            return Err(refused(io::ErrorKind::InvalidInput.into()));
        };
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str() != OsStr::new("") => folder,
            _ => Path::new("."),
        };
        let folder = File::open(folder).map_err(refused)?;
        Ok(Self {
            part: part::Part::begin(folder, name).map_err(|error| told(error, path))?,
            path: path.to_owned(),
        })
    }

    /// Its contents.
    pub(super) fn file(&self) -> &File {
        &self.part.file
    }

    /// Gives it its name, when all of it is stable.
    ///
    /// # Errors
    /// Somebody has made such a file meanwhile, or the host refuses.
    pub(super) fn finish(self) -> Result<(), BackupError> {
        let Self { part, path } = self;
        part.finish().map_err(|error| told(error, &path))
    }
}

fn told(error: PartError, path: &Path) -> BackupError {
    match error {
        PartError::Exists => BackupError::Exists(path.to_owned()),
        PartError::Busy => BackupError::Busy(path.to_owned()),
        PartError::Host(what, error) => BackupError::host(path, what)(error),
    }
}
