//! Which backups have to be read one after the other, for a snapshot to be
//! there again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::error::BackupError;
use super::format::{Head, Id};
use super::reader::Reader;

/// The ending of a backup's file name.
pub const ENDING: &str = "backup";

/// A backup that was found.
#[derive(Debug, Clone)]
struct Found {
    path: PathBuf,
    head: Head,
}

/// The backups to be read, in their order, for what is `given`: files, of which
/// the last one is wanted and the others, and those beside them, may be its
/// bases; or a folder whose backups end in one snapshot.
///
/// # Errors
/// One is no backup, a base is not there, or it is not clear what is wanted.
pub(super) fn find(given: &[PathBuf]) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = Vec::new();
    let mut wanted = None;
    for path in given {
        if path.is_dir() {
            let inside = folder(path)?;
            wanted = Some(last_of(path, &inside)?);
            found.extend(inside);
        } else {
            let head = head(path)?;
            let one = Found {
                path: path.clone(),
                head,
            };
            wanted = Some(one.clone());
            // Before those beside it: it was named.
            found.insert(0, one);
        }
    }
    let Some(wanted) = wanted else {
        return Ok(Vec::new());
    };
    for path in given.iter().filter(|path| !path.is_dir()) {
        found.extend(folder(beside(path))?);
    }
    let mut chain = vec![wanted];
    while let Some((last, base)) = chain.last().and_then(|last| Some((last, last.head.base?))) {
        let next = best(&found, base).filter(|_| chain.len() <= found.len());
        let Some(next) = next else {
            let missing = base.to_string();
            let name = named_after_since(&last.path);
            return Err(BackupError::NoBase(last.path.clone(), name, missing));
        };
        chain.push(next.clone());
    }
    Ok(chain.into_iter().rev().map(|one| one.path).collect())
}

/// A backup of that snapshot: a full one, where there are both.
fn best(found: &[Found], id: Id) -> Option<&Found> {
    let mut all = found.iter().filter(|one| one.head.id == id);
    let first = all.clone().next();
    all.find(|one| one.head.base.is_none()).or(first)
}

/// The one that no other one is based on.
fn last_of(path: &Path, found: &[Found]) -> Result<Found, BackupError> {
    let is_base = |one: &Found| {
        found
            .iter()
            .any(|other| other.head.base == Some(one.head.id))
    };
    let mut ends: Vec<&Found> = found.iter().filter(|one| !is_base(one)).collect();
    ends.sort_by_key(|one| (one.head.id, one.head.base.is_some()));
    ends.dedup_by_key(|one| one.head.id);
    match ends.as_slice() {
        [] => Err(BackupError::Nothing(path.to_owned())),
        [one] => Ok((*one).clone()),
        several => {
            let mut names: Vec<&str> = several.iter().map(|one| one.head.name.as_str()).collect();
            names.sort_unstable();
            names.truncate(8);
            Err(BackupError::Several(path.to_owned(), names.join(", ")))
        }
    }
}

fn beside(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// All backups of a folder. What is none is left out, as is one that is still
/// being written.
fn folder(path: &Path) -> Result<Vec<Found>, BackupError> {
    let failed = BackupError::host(path, "look into it");
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        if path.extension().is_some_and(|ending| ending == ENDING)
            && let Ok(head) = head(&path)
        {
            found.push(Found { path, head });
        }
    }
    Ok(found)
}

fn head(path: &Path) -> Result<Head, BackupError> {
    let reader = Reader::begin(open(path)?, path)?;
    let none = || BackupError::Damaged(path.to_owned(), "it is empty".to_owned());
    reader.map(|reader| reader.head().clone()).ok_or_else(none)
}

/// Opens a backup, which is a file.
///
/// # Errors
/// It is something else, or cannot be opened.
pub(super) fn open(path: &Path) -> Result<File, BackupError> {
    let failed = BackupError::host(path, "open it");
    // What blocks when it is opened is no file.
    if !fs::metadata(path).map_err(&failed)?.is_file() {
        let why = "it is no file".to_owned();
        return Err(BackupError::Damaged(path.to_owned(), why));
    }
    File::open(path).map_err(failed)
}

/// The older snapshot, as the name of an increment's file has it.
fn named_after_since(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let older = name.rsplit_once(".since-").map(|(_, older)| older);
    older.unwrap_or("an older snapshot").to_owned()
}
