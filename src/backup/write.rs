//! Writes a backup of a snapshot: all of it, or what differs from an older one.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mapping::difference::Comparison;
use mapping::{ExtentSource, Fiemap, Kind as ExtentKind};
use rustix::fs::{Advice, fadvise};

use super::chain::ENDING;
use super::error::BackupError;
use super::format::{CHUNK, HEAD_BYTES, Head, Id, Kind, RECORD_BYTES, Record, Whole, sum};
use super::progress::Watch;
use super::reader::{Item, Reader};
use super::whole::Part;
use crate::disk::at_rest::AtRest;

/// Bytes that are given to the output at once.
const BUFFER: usize = 256 << 10;

/// Where a backup goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A file of its own in this folder.
    Folder(PathBuf),
    /// Standard output.
    Pipe,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The file; none for a pipe.
    pub file: Option<PathBuf>,
    /// Its head.
    pub head: Head,
    /// Records in it.
    pub records: u64,
    /// Bytes of the disk that are in it.
    pub data: u64,
    /// Bytes that have become zeros.
    pub zeros: u64,
    /// Bytes of the backup.
    pub bytes: u64,
}

/// A snapshot, and the older one that is known already.
struct Source {
    snapshot: AtRest,
    size: u64,
    extents: Fiemap,
    since: Option<Comparison>,
    /// Locked as long as it is compared.
    _older: Option<AtRest>,
}

/// Writes a backup of the snapshot at `path`: of all of it, or of what differs
/// from `since`. `verify`: it is read again and compared.
///
/// # Errors
/// It was not written, or is not as the snapshot; then there is no file.
pub fn backup(
    path: &Path,
    since: Option<&Path>,
    to: &To,
    verify: bool,
    watch: &mut Watch<'_>,
) -> Result<Made, BackupError> {
    let (source, head) = open(path, since)?;
    let To::Folder(folder) = to else {
        return source.write(
            &mut io::stdout().lock(),
            head,
            &|error| BackupError::Stream("standard output", error),
            watch,
        );
    };
    let name = match since {
        Some(older) => format!("{}.since-{}.{ENDING}", head.name, file_name(older)),
        None => format!("{}.full.{ENDING}", head.name),
    };
    let file = folder.join(name);
    let part = Part::begin(&file)?;
    let failed = BackupError::host(&file, "write it");
    let made = source.write(&mut part.file(), head, &failed, watch)?;
    if verify {
        part.file().sync_all().map_err(&failed)?;
        source.compare(part.file(), &file, made.bytes, watch)?;
    }
    part.finish()?;
    Ok(Made {
        file: Some(file),
        ..made
    })
}

fn open(path: &Path, since: Option<&Path>) -> Result<(Source, Head), BackupError> {
    let snapshot = AtRest::open(path)?;
    let size = snapshot.size()?;
    let id = id(&snapshot)?;
    let (mut base, mut comparison, mut older) = (None, None, None);
    if let Some(since) = since {
        let from = AtRest::open(since)?;
        let from_id = self::id(&from)?;
        if from_id == id {
            return Err(BackupError::Itself(since.to_owned()));
        }
        base = Some(from_id);
        let compared = Comparison::new(&from.file, &snapshot.file);
        comparison = Some(compared.map_err(|error| extents(path, error))?);
        older = Some(from);
    }
    let head = Head {
        name: file_name(path),
        size,
        written: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        id,
        base,
    };
    let source = Source {
        extents: Fiemap::new(Arc::clone(&snapshot.file)),
        snapshot,
        size,
        since: comparison,
        _older: older,
    };
    Ok((source, head))
}

/// What a snapshot is known by: which file it is, when it was made and last
/// written, and its size. Another file in its place has another one.
fn id(snapshot: &AtRest) -> Result<Id, BackupError> {
    let failed = BackupError::host(&snapshot.path, "look at it");
    let meta = snapshot.file.metadata().map_err(&failed)?;
    let nanoseconds =
        |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    let made = meta.created().map_err(&failed)?;
    let written = meta.modified().map_err(&failed)?;
    let mut known = b"extentd snapshot".to_vec();
    known.extend(meta.ino().to_le_bytes());
    known.extend(nanoseconds(made).to_le_bytes());
    known.extend(nanoseconds(written).to_le_bytes());
    known.extend(meta.len().to_le_bytes());
    Ok(Id(sum(&known)))
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn extents(path: &Path, error: io::Error) -> BackupError {
    BackupError::Extents(path.to_owned(), error)
}

type Take<'a> = dyn FnMut(Range<u64>, bool) -> Result<(), BackupError> + 'a;

impl Source {
    /// The ranges that belong into the backup, and whether they are zeros.
    fn each_range(&self, take: &mut Take<'_>) -> Result<(), BackupError> {
        let path = &self.snapshot.path;
        if let Some(comparison) = &self.since {
            for one in comparison.differences_in(0..self.size) {
                let one = one.map_err(|error| extents(path, error))?;
                take(one.start..one.end(), one.zeros)?;
            }
            return Ok(());
        }
        let mut result = Ok(());
        let all = self.extents.fill(0..self.size, &mut |extent| {
            if !matches!(extent.kind, ExtentKind::Hole | ExtentKind::Unwritten) {
                result = take(extent.start..extent.end(), false);
            }
            if result.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        result?;
        all.map_err(|error| extents(path, error))
    }

    fn read(&self, into: &mut [u8], at: u64) -> Result<(), BackupError> {
        let file = &self.snapshot.file;
        file.read_exact_at(into, at)
            .map_err(BackupError::host(&self.snapshot.path, "read it"))?;
        // Nobody reads it again soon; a hint.
        let length = u64::try_from(into.len())
            .ok()
            .and_then(std::num::NonZeroU64::new);
        let _ = fadvise(file, at, length, Advice::DontNeed);
        Ok(())
    }

    fn write(
        &self,
        out: &mut dyn Write,
        head: Head,
        failed: &dyn Fn(io::Error) -> BackupError,
        watch: &mut Watch<'_>,
    ) -> Result<Made, BackupError> {
        let bytes = head.to_bytes();
        let mut out = BufWriter::with_capacity(BUFFER, out);
        out.write_all(&bytes).map_err(failed)?;
        let mut whole = Whole::new(&bytes);
        let mut buffer = vec![0; CHUNK];
        let full = self.since.is_none();
        self.each_range(&mut |range, zeros| {
            if zeros {
                return put(&mut out, &mut whole, zeros_of(&range), &[]).map_err(failed);
            }
            let mut at = range.start;
            while at < range.end {
                let length = chunk(range.end - at);
                let data = buffer.get_mut(..length).unwrap_or_default();
                self.read(data, at)?;
                let next = at + length as u64;
                let record = if data.iter().any(|byte| *byte != 0) {
                    Some(Record {
                        kind: Kind::Data,
                        start: at,
                        len: next - at,
                        sum: sum(data),
                    })
                } else {
                    (!full).then(|| zeros_of(&(at..next)))
                };
                if let Some(record) = record {
                    put(&mut out, &mut whole, record, data).map_err(failed)?;
                }
                at = next;
                if watch(at, self.size).is_break() {
                    let path = self.snapshot.path.clone();
                    return Err(BackupError::Stopped(path, "there is no backup"));
                }
            }
            Ok(())
        })?;
        let end = whole.end();
        out.write_all(&end.to_bytes()).map_err(failed)?;
        out.flush().map_err(failed)?;
        let records = whole.records;
        Ok(Made {
            file: None,
            head,
            records,
            data: whole.data,
            zeros: whole.zeros,
            bytes: (HEAD_BYTES as u64)
                .saturating_add(whole.data)
                .saturating_add(
                    records
                        .saturating_add(1)
                        .saturating_mul(RECORD_BYTES as u64),
                ),
        })
    }

    /// Reads what was written, past what is still in memory of it, and the
    /// snapshot once more.
    fn compare(
        &self,
        written: &File,
        path: &Path,
        bytes: u64,
        watch: &mut Watch<'_>,
    ) -> Result<(), BackupError> {
        let failed = BackupError::host(path, "read it again");
        // A hint: where it is not followed the memory is read.
        let _ = fadvise(written, 0, None, Advice::DontNeed);
        let input = FromStart {
            file: written,
            at: 0,
        };
        let mut reader = Reader::begin(input, path)?
            .ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        let mut again = vec![0; CHUNK];
        while let Some(item) = reader.next()? {
            let (start, data) = match item {
                Item::Zeros(_) => continue,
                Item::Data(start, data) => (start, data),
            };
            let same = again.get_mut(..data.len()).unwrap_or_default();
            self.read(same, start)?;
            if same != data {
                return Err(BackupError::Differs(path.to_owned(), start));
            }
            if watch(start, self.size).is_break() {
                let path = self.snapshot.path.clone();
                return Err(BackupError::Stopped(path, "there is no backup"));
            }
        }
        if reader.into_input().at != bytes {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

fn zeros_of(range: &Range<u64>) -> Record {
    Record {
        kind: Kind::Zeros,
        start: range.start,
        len: range.end - range.start,
        sum: [0; 32],
    }
}

/// Bytes of the next record of so many.
fn chunk(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

fn put(out: &mut dyn Write, whole: &mut Whole, record: Record, data: &[u8]) -> io::Result<()> {
    whole.add(&record);
    out.write_all(&record.to_bytes())?;
    match record.kind {
        Kind::Data => out.write_all(data),
        Kind::Zeros | Kind::End => Ok(()),
    }
}

/// A file that is read from its start, wherever its own position is.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.at)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}
