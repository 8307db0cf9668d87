//! A file that is there whole, or not at all: it is written under a hidden
//! name, made stable, renamed, and then its folder is made stable. Nothing is
//! ever replaced.
//!
//! Who writes one has a lock on it, so that what a process has left that has
//! ended is told from what is being written.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, flock, fstat, fsync,
    linkat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

/// What is behind a hidden name.
const ENDING: &str = ".part";

/// Why there is no such file.
#[derive(Debug)]
pub(crate) enum PartError {
    /// There is one of that name already.
    Exists,
    /// Somebody else writes it.
    Busy,
    /// The host refuses to do this.
    Host(&'static str, io::Error),
}

impl PartError {
    fn host(what: &'static str) -> impl Fn(Errno) -> Self {
        move |error| Self::Host(what, error.into())
    }
}

/// A file that is being written in `folder`; removed when dropped before it is
/// finished.
#[derive(Debug)]
pub(crate) struct Part<F: AsFd> {
    /// Its contents, of mode 0600, open for reading and writing.
    pub file: File,
    folder: F,
    name: OsString,
    /// `None` once it has its name.
    hidden: Option<OsString>,
}

impl<F: AsFd> Part<F> {
    /// Begins what shall have that name. What a process has left that has
    /// ended is removed.
    ///
    /// # Errors
    /// There is such a file, somebody else writes it, or the host refuses.
    pub(crate) fn begin(folder: F, name: &OsStr) -> Result<Self, PartError> {
        let refused = PartError::host("make it");
        match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(PartError::Exists),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(refused(error)),
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(ENDING);
        let mut file = open(&folder, &hidden)?;
        if file.metadata().is_ok_and(|meta| meta.len() > 0) {
            // The sandbox lets nobody shorten it.
            unlinkat(&folder, &*hidden, AtFlags::empty()).map_err(refused)?;
            file = open(&folder, &hidden)?;
        }
        Ok(Self {
            file,
            folder,
            name: name.to_owned(),
            hidden: Some(hidden),
        })
    }

    /// Gives it its name when all of it is stable; it has it after a crash too.
    ///
    /// # Errors
    /// Somebody has made such a file meanwhile, or the host refuses.
    pub(crate) fn finish(mut self) -> Result<(), PartError> {
        let unstable = PartError::host("make it stable");
        fsync(&self.file).map_err(&unstable)?;
        if let Some(hidden) = &self.hidden {
            let (folder, name) = (&self.folder, &*self.name);
            let renamed = renameat_with(folder, &**hidden, folder, name, RenameFlags::NOREPLACE);
            match renamed {
                // Not on each file system.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    linkat(folder, &**hidden, folder, name, AtFlags::empty())
                        .and_then(|()| unlinkat(folder, &**hidden, AtFlags::empty()))
                }
                renamed => renamed,
            }
            .map_err(|error| match error {
                Errno::EXIST => PartError::Exists,
                error => PartError::host("give it its name")(error),
            })?;
        }
        self.hidden = None;
        fsync(&self.folder).map_err(unstable)
    }
}

impl<F: AsFd> Drop for Part<F> {
    fn drop(&mut self) {
        if let Some(hidden) = self.hidden.take()
            && let Err(error) = unlinkat(&self.folder, &*hidden, AtFlags::empty())
        {
            // Whoever comes next uses it again.
            log::warn!("cannot remove {}: {error}", hidden.display());
        }
    }
}

/// Whether a file of that name may be one that was not finished.
pub(crate) fn is_part(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(ENDING.as_bytes())
}

/// Removes what a process has left that has ended.
///
/// # Errors
/// Somebody writes it, or the host refuses.
pub(crate) fn remove_left(folder: impl AsFd, hidden: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(&folder, hidden, flags, Mode::empty())?);
    lock(&file)?;
    // While it is locked.
    unlinkat(&folder, hidden, AtFlags::empty())
}

/// Opens or makes it, for us alone.
fn open(folder: impl AsFd, hidden: &OsStr) -> Result<File, PartError> {
    let refused = PartError::host("make it");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = File::from(openat(&folder, hidden, flags, mode).map_err(&refused)?);
    // Some file systems have no locks.
    if lock(&file) == Err(Errno::WOULDBLOCK) {
        return Err(PartError::Busy);
    }
    // Whoever had the lock before may have finished or removed it meanwhile.
    let here = fstat(&file).map_err(&refused)?;
    let is_it = |there: Stat| (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino);
    let is_file = FileType::from_raw_mode(here.st_mode).is_file();
    if is_file && statat(&folder, hidden, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_it) {
        return Ok(file);
    }
    Err(PartError::Busy)
}

fn lock(file: &File) -> Result<(), Errno> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn begin(folder: &Path, name: &str) -> Result<Part<File>, PartError> {
        Part::begin(File::open(folder).unwrap(), OsStr::new(name))
    }

    #[test]
    fn a_file_is_there_when_it_is_finished_and_never_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let mut part = begin(folder.path(), "a").unwrap();
        part.file.write_all(b"half").unwrap();
        assert!(!path.exists());
        assert!(matches!(begin(folder.path(), "a"), Err(PartError::Busy)));
        drop(part);
        assert_eq!(names(), 0);
        // As left by a kill.
        fs::write(folder.path().join(".a.part"), "left").unwrap();
        let mut part = begin(folder.path(), "a").unwrap();
        part.file.write_all(b"all").unwrap();
        part.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names()), (b"all".to_vec(), 1));
        assert!(matches!(begin(folder.path(), "a"), Err(PartError::Exists)));
    }

    #[test]
    fn who_comes_first_keeps_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let part = begin(folder.path(), "a").unwrap();
        fs::write(&path, "first").unwrap();
        assert!(matches!(part.finish(), Err(PartError::Exists)));
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert!(!folder.path().join(".a.part").exists());
    }

    #[test]
    fn of_many_who_make_one_file_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let make = |who: u8| {
            let made = |name: &usize| {
                let name = name.to_string();
                let Ok(mut part) = begin(folder.path(), &name) else {
                    return false;
                };
                part.file.write_all(&[who; 64]).unwrap();
                match part.finish() {
                    Ok(()) => true,
                    Err(PartError::Exists) => false,
                    Err(error) => panic!("{error:?}"),
                }
            };
            (0..500).filter(made).count()
        };
        let made: usize = std::thread::scope(|scope| {
            let threads = [1, 2, 3, 4].map(|who| scope.spawn(move || make(who)));
            threads.map(|thread| thread.join().unwrap()).iter().sum()
        });
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut there = 0;
        for entry in entries {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            assert!(bytes.len() == 64 && bytes.iter().all(|byte| *byte == bytes[0]));
            there += 1;
        }
        assert_eq!(made, there, "nobody lost what was finished");
    }

    #[test]
    fn what_is_being_written_is_not_left_and_what_is_no_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let hidden = OsStr::new(".a.part");
        assert!(is_part(hidden) && !is_part(OsStr::new("a.part")));
        let open = || File::open(folder.path()).unwrap();
        let part = begin(folder.path(), "a").unwrap();
        assert_eq!(remove_left(open(), hidden), Err(Errno::WOULDBLOCK));
        drop(part);
        let at = folder.path().join(hidden);
        fs::write(&at, "left").unwrap();
        remove_left(open(), hidden).unwrap();
        assert!(!at.exists());
        // A link leads elsewhere, and a pipe has no contents.
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &at).unwrap();
        assert!(matches!(
            begin(folder.path(), "a"),
            Err(PartError::Host(..))
        ));
        assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
        fs::remove_file(&at).unwrap();
        rustix::fs::mkfifoat(open(), ".a.part", Mode::RWXU).unwrap();
        assert!(matches!(begin(folder.path(), "a"), Err(PartError::Busy)));
    }
}
