//! Makes an image of backups: of a full one, and of the increments after it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chain;
use super::error::BackupError;
use super::format::Id;
use super::progress::Watch;
use super::reader::{Item, Reader};
use super::whole::Part;
use crate::host::sys;

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// Where backups come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// Files or folders.
    Files(Vec<PathBuf>),
    /// Standard input, one after the other.
    Pipe,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The snapshot's name.
    pub name: String,
    /// Bytes of the image.
    pub size: u64,
    /// How many backups were read.
    pub backups: u64,
    /// Bytes of data that were written.
    pub data: u64,
}

/// Makes a new image at `path`, which is sparse.
///
/// # Errors
/// Then there is no image.
pub fn restore(from: &From, path: &Path, watch: &mut Watch<'_>) -> Result<Restored, BackupError> {
    let files = match from {
        From::Files(given) => chain::find(given)?,
        From::Pipe => Vec::new(),
    };
    let part = Part::begin(path)?;
    let mut restoring = Restoring {
        image: part.file(),
        path,
        last: None,
        done: Restored {
            name: String::new(),
            size: 0,
            backups: 0,
            data: 0,
        },
        watch,
    };
    match from {
        From::Files(_) => {
            for file in &files {
                let input = BufReader::with_capacity(BUFFER, chain::open(file)?);
                if let Some(reader) = restoring.one(input, file)? {
                    reader.ends()?;
                }
            }
        }
        From::Pipe => {
            let name = Path::new("standard input");
            let mut input = BufReader::with_capacity(BUFFER, io::stdin().lock());
            while let Some(reader) = restoring.one(input, name)? {
                input = reader.into_input();
            }
        }
    }
    let done = restoring.done;
    if done.backups == 0 {
        let why = "there is no backup in it".to_owned();
        return Err(BackupError::Damaged("standard input".into(), why));
    }
    part.finish()?;
    Ok(done)
}

struct Restoring<'a, 'b> {
    image: &'a File,
    path: &'a Path,
    /// The snapshot that the image is now.
    last: Option<Id>,
    done: Restored,
    watch: &'a mut Watch<'b>,
}

impl Restoring<'_, '_> {
    /// Takes one backup over; `None` where there was none.
    fn one<R: Read>(&mut self, input: R, from: &Path) -> Result<Option<Reader<R>>, BackupError> {
        let Some(mut reader) = Reader::begin(input, from)? else {
            return Ok(None);
        };
        let head = reader.head().clone();
        match (self.last, head.base) {
            (None, None) => {}
            (Some(last), Some(base)) if last == base => {}
            (None, Some(base)) => {
                let name = "an older snapshot".to_owned();
                return Err(BackupError::NoBase(from.to_owned(), name, base.to_string()));
            }
            (Some(_), base) => {
                let base = base.map_or("none".to_owned(), |base| base.to_string());
                return Err(BackupError::WrongBase(from.to_owned(), base));
            }
        }
        let failed = BackupError::host(self.path, "write it");
        // What an increment makes longer reads as zeros there.
        self.image.set_len(head.size).map_err(&failed)?;
        while let Some(item) = reader.next()? {
            let at = match item {
                Item::Data(start, data) => {
                    self.image.write_all_at(data, start).map_err(&failed)?;
                    self.done.data = self.done.data.saturating_add(data.len() as u64);
                    start
                }
                Item::Zeros(range) => {
                    self.clear(range.start, range.end).map_err(&failed)?;
                    range.start
                }
            };
            if (self.watch)(at, head.size).is_break() {
                let path = self.path.to_owned();
                return Err(BackupError::Stopped(path, "there is no image"));
            }
        }
        self.last = Some(head.id);
        self.done.name = head.name;
        self.done.size = head.size;
        self.done.backups = self.done.backups.saturating_add(1);
        Ok(Some(reader))
    }

    fn clear(&self, start: u64, end: u64) -> io::Result<()> {
        let beyond = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let (from, length) = (
            i64::try_from(start).map_err(beyond)?,
            i64::try_from(end - start).map_err(beyond)?,
        );
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match sys::fallocate(self.image.as_raw_fd(), punch, from, length) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.write_zeros(start, end)
            }
            done => done,
        }
    }

    /// Where the file system makes no holes.
    fn write_zeros(&self, start: u64, end: u64) -> io::Result<()> {
        let zeros = [0; 64 << 10];
        let mut at = start;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = zeros.get(..left).unwrap_or(&zeros);
            self.image.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}
