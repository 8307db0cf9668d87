//! Makes an image fit to swap on: every block of it allocated, really written
//! and its own, so that a write never needs the file system.
//!
//! Data that are there are never touched: only what reads as zeros anyway, as
//! it is a hole or was never written, is written with zeros. What is done is
//! done for good, so that a preparation that was interrupted goes on where it
//! ended. A lease keeps everybody else away meanwhile.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mapping::device::admit;
use mapping::lease::{Lease, LeaseError, Mode};
use mapping::{Config, ExtentSource, Fiemap, Kind};

use crate::disk;
use crate::host::headroom::Headroom;
use crate::host::sys;
use crate::options::size;
use mapping::path::Survey;
use mapping::path::survey::{self, PIECE, each_extent, pieces};

mod error;

pub(crate) use self::error::PrepareError;

/// How long an image that is in use is asked for, and how often.
const SOON_FREE: Duration = Duration::from_millis(500);
const STILL_BUSY: Duration = Duration::from_millis(10);
/// Bytes of the file whose extents are looked at together.
const WINDOW: u64 = 256 << 20;
/// The size of an image is a multiple of this, so that its last block is
/// wholly its own.
const BLOCK: u64 = 4096;

/// How far a preparation has come, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Written or made its own so far.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// Told how far it is; may ask to stop.
pub(crate) type Report<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// The size of the image in bytes.
    pub size: u64,
    /// Bytes that were written or unshared for it.
    pub changed: u64,
    /// In how many pieces it lies on the disk.
    pub extents: u64,
    /// Bytes of a block of its file system.
    pub block: u64,
}

/// Bytes of an extent, on average, below which requests take many operations.
const SMALL_EXTENT: u64 = 16 << 10;

impl Prepared {
    /// What to say of an image that is prepared and still not as good as it
    /// could be: a swap-grade disk does not let the file system put a request
    /// together.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let average = self.size / self.extents.max(1);
        if average < SMALL_EXTENT {
            warnings.push(format!(
                "the image is fragmented: {} extents, {} each on average: larger requests take as many operations, one after the other; prepare a new image on a file system with more free space",
                self.extents,
                size::display(average)
            ));
        }
        if self.block < BLOCK {
            warnings.push(format!(
                "the file system has blocks of {} bytes: writes beside its own records may go through it; one with blocks of {BLOCK} bytes keeps them apart",
                self.block
            ));
        }
        warnings
    }
}

/// Prepares the image at `path`, which is made with `size` bytes if there is
/// none, and made longer if it has less. Block devices need nothing.
///
/// # Errors
/// It cannot be made swap-grade, or `report` has asked to stop.
pub(crate) fn prepare(
    path: &Path,
    size: Option<u64>,
    report: &mut Report<'_>,
) -> Result<Prepared, PrepareError> {
    let failed = |source| PrepareError::Host {
        path: path.to_owned(),
        what: "open it",
        source,
    };
    let made = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if size.is_none() {
                return Err(PrepareError::Missing(path.to_owned()));
            }
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(path).map_err(failed)?;
            true
        }
        Err(error) => return Err(failed(error)),
        Ok(meta) if meta.file_type().is_block_device() => {
            if size.is_some() {
                return Err(PrepareError::DeviceSize(path.to_owned()));
            }
            let device = File::open(path).map_err(failed)?;
            let size = sys::device_size(&device).map_err(failed)?;
            return Ok(Prepared {
                size,
                changed: 0,
                extents: 1,
                block: BLOCK,
            });
        }
        Ok(meta) if !meta.is_file() => return Err(PrepareError::NotAnImage(path.to_owned())),
        Ok(_) => false,
    };
    let result = open(path).and_then(|image| Preparation { path, image }.run(size, report));
    let useless = !matches!(result, Ok(_) | Err(PrepareError::Interrupted));
    if made && useless {
        std::fs::remove_file(path).map_err(failed)?;
    }
    result
}

/// Takes the lease, also from whoever lets go of the image just now: a process
/// that has ended, or a child of one that has not yet become another program.
fn take_soon(lease: &Lease) -> Result<(), LeaseError> {
    let until = Instant::now() + SOON_FREE;
    loop {
        match lease.take() {
            Err(LeaseError::InUse) if Instant::now() < until => std::thread::sleep(STILL_BUSY),
            result => return result,
        }
    }
}

/// Looks whether the image at `path`, which somebody else has, was prepared
/// before: then it can be written in place while they have it.
///
/// # Errors
/// It was not, or could not be used all the same.
pub fn find_prepared(path: &Path) -> Result<(), PrepareError> {
    let image = open(path)?;
    let preparation = Preparation { path, image };
    let source = Fiemap::new(Arc::clone(&preparation.image));
    let size = preparation.set_size(None)?;
    let survey = Survey::of(&source).map_err(preparation.host("read its extents"))?;
    if survey.unfit() > 0 {
        return Err(PrepareError::Unprepared {
            path: path.to_owned(),
            survey,
        });
    }
    preparation.check_memory(&source, size)?;
    Ok(())
}

fn open(path: &Path) -> Result<Arc<File>, PrepareError> {
    let open = |flags| {
        disk::open_file(path, false, flags).map_err(|source| PrepareError::Host {
            path: path.to_owned(),
            what: "open it",
            source,
        })
    };
    // What it says comes before an error of O_DIRECT, which says less.
    admit(&open(0)?).map_err(|refusal| PrepareError::Refused {
        path: path.to_owned(),
        refusal,
    })?;
    Ok(Arc::new(open(libc::O_DIRECT)?))
}

struct Preparation<'a> {
    path: &'a Path,
    image: Arc<File>,
}

impl Preparation<'_> {
    fn host(&self, what: &'static str) -> impl FnOnce(io::Error) -> PrepareError {
        let path = self.path.to_owned();
        move |source| PrepareError::Host { path, what, source }
    }

    fn in_use(&self, source: LeaseError) -> PrepareError {
        PrepareError::InUse {
            path: self.path.to_owned(),
            source,
        }
    }

    fn run(&self, size: Option<u64>, report: &mut Report<'_>) -> Result<Prepared, PrepareError> {
        let lease = Lease::new(Arc::clone(&self.image), Mode::Exclusive)
            .map_err(self.host("watch over it"))?;
        take_soon(&lease).map_err(|error| self.in_use(error))?;
        let size = self.set_size(size)?;
        let source = Fiemap::new(Arc::clone(&self.image));
        let before = Survey::of(&source).map_err(self.host("read its extents"))?;
        self.check_space(before.holes + before.shared)?;
        // What is set aside already has its blocks, and is given back at once.
        let total = before.unwritten + before.holes + before.shared;
        let mut work = Work {
            of: self,
            lease: &lease,
            source: &source,
            report,
            progress: Progress { done: 0, total },
        };
        if total > 0 {
            work.tell()?;
            work.allocate(size)?;
            work.write(size)?;
        }
        survey::unshare(&source, &mut || lease.is_held())
            .map_err(self.host("unshare its blocks"))?;
        self.image
            .sync_data()
            .map_err(self.host("make it durable"))?;
        let survey = Survey::of(&source).map_err(self.host("read its extents"))?;
        if survey.unfit() > 0 {
            return Err(PrepareError::Unfit {
                path: self.path.to_owned(),
                survey,
            });
        }
        let extents = self.check_memory(&source, size)?;
        Ok(Prepared {
            size,
            changed: total,
            extents,
            block: sys::filesystem_block(&self.image)
                .map_err(self.host("ask for its blocks"))?
                .into(),
        })
    }

    /// The size of the image, which is made as long as it is to be.
    fn set_size(&self, size: Option<u64>) -> Result<u64, PrepareError> {
        let path = || self.path.to_owned();
        let have = self
            .image
            .metadata()
            .map_err(self.host("read its size"))?
            .len();
        let want = size.unwrap_or(have);
        if want < have {
            return Err(PrepareError::Shrinks {
                path: path(),
                have,
                size: want,
            });
        }
        if want == 0 || !want.is_multiple_of(BLOCK) {
            return Err(PrepareError::Ragged(path(), want));
        }
        if want > have {
            // Before it is made longer, so that what is refused stays as it is.
            self.check_space(want - have)?;
            self.image.set_len(want).map_err(self.host("lengthen it"))?;
        }
        Ok(want)
    }

    fn free(&self) -> Result<u64, PrepareError> {
        sys::filesystem_free(&self.image).map_err(self.host("ask for its free space"))
    }

    fn no_space(&self, needed: u64) -> Result<PrepareError, PrepareError> {
        Ok(PrepareError::Space {
            path: self.path.to_owned(),
            needed,
            left: self.free()?,
        })
    }

    fn check_space(&self, needed: u64) -> Result<(), PrepareError> {
        if needed > self.free()? {
            return Err(self.no_space(needed)?);
        }
        Ok(())
    }

    /// The map has to fit into memory well; how many extents it has.
    fn check_memory(&self, source: &Fiemap, size: u64) -> Result<u64, PrepareError> {
        let extents = source
            .count(0..size)
            .map_err(self.host("count its extents"))?;
        let needed = Config::default().reserve_whole(size, extents).pin_reserve;
        let left = Headroom::find()
            .and_then(|mut headroom| headroom.bytes())
            .map_err(self.host("read /proc/meminfo"))?;
        if needed > left / 2 {
            return Err(PrepareError::Memory {
                path: self.path.to_owned(),
                extents,
                needed,
                left,
            });
        }
        Ok(extents)
    }
}

struct Work<'a, 'r> {
    of: &'a Preparation<'a>,
    lease: &'a Lease,
    source: &'a Fiemap,
    report: &'a mut Report<'r>,
    progress: Progress,
}

impl Work<'_, '_> {
    /// Says how far it is, and stops where it should.
    fn tell(&mut self) -> Result<(), PrepareError> {
        if !self.lease.is_held() {
            return Err(self.of.in_use(LeaseError::InUse));
        }
        match (self.report)(self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                self.of
                    .image
                    .sync_data()
                    .map_err(self.of.host("make it durable"))?;
                Err(PrepareError::Interrupted)
            }
        }
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<(Kind, Range<u64>)>, PrepareError> {
        let mut extents = Vec::new();
        each_extent(self.source, range, &mut |kind, range| {
            extents.push((kind, range));
        })
        .map_err(self.of.host("read its extents"))?;
        Ok(extents)
    }

    fn change(&self, mode: i32, range: &Range<u64>) -> Result<(), PrepareError> {
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (start, bytes) = (number(range.start), number(range.end - range.start));
        match sys::fallocate(self.of.image.as_raw_fd(), mode, start, bytes) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                let needed = self.progress.total - self.progress.done;
                Err(self.of.no_space(needed)?)
            }
            result => result.map_err(self.of.host("allocate its blocks")),
        }
    }

    /// All blocks first, so that a file system that is too full is found out
    /// before hours of writing.
    fn allocate(&mut self, size: u64) -> Result<(), PrepareError> {
        for window in windows(size) {
            for (kind, range) in self.extents(window)? {
                if kind == Kind::Hole {
                    self.change(libc::FALLOC_FL_KEEP_SIZE, &range)?;
                }
            }
            self.tell()?;
        }
        Ok(())
    }

    /// Writes what was never written, and takes copies of what is shared.
    fn write(&mut self, size: u64) -> Result<(), PrepareError> {
        // Direct I/O takes buffers that are aligned.
        let memory = vec![0u8; usize::try_from(PIECE + BLOCK).unwrap_or(0)];
        let skip = memory.as_ptr().align_offset(4096);
        let zeros = memory.get(skip..).unwrap_or_default();
        for window in windows(size) {
            for (kind, range) in self.extents(window)? {
                for piece in pieces(range) {
                    let bytes = piece.end - piece.start;
                    match kind {
                        Kind::Unwritten => {
                            let part = usize::try_from(bytes).unwrap_or(0);
                            let zeros = zeros.get(..part).unwrap_or_default();
                            self.of
                                .image
                                .write_all_at(zeros, piece.start)
                                .map_err(self.of.host("write its blocks"))?;
                        }
                        Kind::Shared => self.change(libc::FALLOC_FL_UNSHARE_RANGE, &piece)?,
                        Kind::Written | Kind::Hole | Kind::Opaque(_) => continue,
                    }
                    self.progress.done += bytes;
                    self.tell()?;
                }
            }
            // So that little is lost if the machine stops.
            self.of
                .image
                .sync_data()
                .map_err(self.of.host("make it durable"))?;
        }
        Ok(())
    }
}

fn windows(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(WINDOW)).map(move |i| i * WINDOW..((i + 1) * WINDOW).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_pieces_cover_everything_once() {
        for size in [BLOCK, PIECE, WINDOW, WINDOW + BLOCK, 3 * WINDOW + PIECE + 1] {
            let mut at = 0;
            for window in windows(size) {
                assert_eq!(window.start, at);
                for piece in pieces(window) {
                    assert_eq!(piece.start, at);
                    assert!(piece.end - piece.start <= PIECE);
                    at = piece.end;
                }
            }
            assert_eq!(at, size);
        }
    }
}
