//! A file that is there whole, or not at all: written under another name, made
//! stable, and then renamed. Nothing is ever replaced.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::error::BackupError;

/// A file that is being written; removed when dropped before it is finished.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    path: PathBuf,
    part: PathBuf,
    finished: bool,
}

impl Part {
    /// Begins what shall be at `path`. What a process has left that has ended
    /// is replaced.
    ///
    /// # Errors
    /// There is such a file, somebody else makes it, or the host refuses.
    pub(super) fn begin(path: &Path) -> Result<Self, BackupError> {
        let refused = BackupError::host(path, "make it");
        match fs::symlink_metadata(path) {
            Ok(_) => return Err(BackupError::Exists(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
        }
        let Some(name) = path.file_name() else {
            return Err(refused(io::ErrorKind::InvalidInput.into()));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".part");
        let part = path.with_file_name(hidden);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part)
            .map_err(&refused)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(BackupError::Busy(path.to_owned()));
        }
        // Whoever had the lock before may have finished it meanwhile.
        let same = |meta: &fs::Metadata| (meta.dev(), meta.ino());
        let here = file.metadata().map_err(&refused)?;
        if !fs::symlink_metadata(&part).is_ok_and(|meta| same(&meta) == same(&here)) {
            return Err(BackupError::Busy(path.to_owned()));
        }
        file.set_len(0).map_err(&refused)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            part,
            finished: false,
        })
    }

    /// Gives it its name, when all of it is stable.
    ///
    /// # Errors
    /// Somebody has made such a file meanwhile, or the host refuses.
    pub(super) fn finish(mut self) -> Result<(), BackupError> {
        let refused = BackupError::host(&self.path, "make it stable");
        self.file.sync_all().map_err(&refused)?;
        let renamed = renameat_with(CWD, &self.part, CWD, &self.path, RenameFlags::NOREPLACE);
        let renamed = match renamed {
            // Not on each file system.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(&self.part, &self.path).and_then(|()| fs::remove_file(&self.part))
            }
            renamed => renamed.map_err(io::Error::from),
        };
        match renamed {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(BackupError::Exists(self.path.clone()));
            }
            renamed => renamed.map_err(BackupError::host(&self.path, "give it its name"))?,
        }
        self.finished = true;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let stable = File::open(folder).and_then(|folder| folder.sync_all());
        stable.map_err(refused)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_file(&self.part)
        {
            log::warn!("cannot remove {}: {error}", self.part.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_finished_and_never_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let mut part = Part::begin(&path).unwrap();
        part.file.write_all(b"half").unwrap();
        assert!(!path.exists());
        assert!(matches!(Part::begin(&path), Err(BackupError::Busy(_))));
        drop(part);
        assert_eq!(names(), 0);
        // As left by a kill.
        fs::write(folder.path().join(".a.part"), "left").unwrap();
        let mut part = Part::begin(&path).unwrap();
        part.file.write_all(b"all").unwrap();
        part.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names()), (b"all".to_vec(), 1));
        assert!(matches!(Part::begin(&path), Err(BackupError::Exists(_))));
    }

    #[test]
    fn who_comes_first_keeps_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let part = Part::begin(&path).unwrap();
        fs::write(&path, "first").unwrap();
        assert!(matches!(part.finish(), Err(BackupError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert!(!folder.path().join(".a.part").exists());
    }
}
