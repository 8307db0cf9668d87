//! A snapshot as what is served: its file, its extents, and where it differs
//! from older ones.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mapping::difference::Comparison;
use mapping::{ExtentSource, Fiemap, Kind};
use rustix::fs::{Advice, fadvise};

use super::contents::{ALLOCATION, Contents, DIRTY, HOLE, Sink, ZERO};
use crate::disk::at_rest::{AtRest, AtRestError};

/// Before the name of an older snapshot, as QEMU names its bitmaps.
const BITMAP: &str = "qemu:dirty-bitmap:";

/// Why a snapshot cannot be served: one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It, or an older one, cannot be opened.
    #[error("{0}")]
    File(#[from] AtRestError),
    /// Its file system tells no extents.
    #[error(
        "{path}: its file system does not tell where data lie ({source}): give a file on XFS, btrfs or ext4"
    )]
    Extents {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Two older ones would have the same bitmap.
    #[error("--since {0}: another older snapshot has the same file name: rename one of them")]
    Twice(PathBuf),
}

/// An open snapshot.
#[derive(Debug)]
pub(crate) struct Snapshot {
    name: String,
    size: u64,
    file: Arc<File>,
    extents: Fiemap,
    /// In the order of `contexts`, behind the first.
    older: Vec<Comparison>,
    contexts: Vec<String>,
    /// Locked as long as they are served.
    _kept: Vec<AtRest>,
}

impl Snapshot {
    /// Opens it, and the older ones that it is compared with.
    ///
    /// # Errors
    /// One of them is none, is being written, or its extents are not told.
    pub(crate) fn open(path: &Path, since: &[PathBuf]) -> Result<Self, SnapshotError> {
        let this = AtRest::open(path)?;
        let told = |path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::Extents { path, source }
        };
        let extents = Fiemap::new(Arc::clone(&this.file));
        let size = this.size()?;
        let first = &mut |_| ControlFlow::Break(());
        extents.fill(0..size, first).map_err(told(path))?;
        let mut all = Self {
            name: file_name(path),
            size,
            file: Arc::clone(&this.file),
            extents,
            older: Vec::new(),
            contexts: vec![ALLOCATION.to_owned()],
            _kept: Vec::new(),
        };
        for older in since {
            let context = format!("{BITMAP}{}", file_name(older));
            if all.contexts.contains(&context) {
                return Err(SnapshotError::Twice(older.clone()));
            }
            let from = AtRest::open(older)?;
            let comparison = Comparison::new(&from.file, &this.file).map_err(told(older))?;
            if let Some(Err(error)) = comparison.differences_in(0..1).next() {
                return Err(told(older)(error));
            }
            all.contexts.push(context);
            all.older.push(comparison);
            all._kept.push(from);
        }
        all._kept.push(this);
        Ok(all)
    }

    fn allocation(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let mut at = range.start;
        let mut ended = false;
        self.extents.fill(range.clone(), &mut |extent| {
            let flags = match extent.kind {
                Kind::Hole => HOLE | ZERO,
                Kind::Unwritten => ZERO,
                _ => 0,
            };
            let gap = extent.start.saturating_sub(at);
            at = extent.end();
            ended = gap > 0 && sink(gap, HOLE | ZERO).is_break();
            ended = ended || sink(extent.len, flags).is_break();
            if ended {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if !ended && at < range.end {
            // Nothing is behind the last run.
            let _ = sink(range.end - at, HOLE | ZERO);
        }
        Ok(())
    }
}

/// As clients name it; what is no text has marks.
fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

impl Contents for Snapshot {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn contexts(&self) -> &[String] {
        &self.contexts
    }

    fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn runs(&self, context: usize, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let Some(older) = context.checked_sub(1) else {
            return self.allocation(range, sink);
        };
        let comparison = self.older.get(older);
        let comparison = comparison.ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = range.start;
        for one in comparison.differences_in(range.clone()) {
            let one = one?;
            let gap = one.start.saturating_sub(at);
            if gap > 0 && sink(gap, 0).is_break() {
                return Ok(());
            }
            if sink(one.len, DIRTY).is_break() {
                return Ok(());
            }
            at = one.end();
        }
        if at < range.end {
            // Nothing is behind the last run.
            let _ = sink(range.end - at, 0);
        }
        Ok(())
    }

    fn soon(&self, range: Range<u64>) {
        let length = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
        // A hint; whoever reads sees what is wrong.
        let _ = fadvise(&self.file, range.start, length, Advice::WillNeed);
    }
}
