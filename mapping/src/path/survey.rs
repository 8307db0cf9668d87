//! How the bytes of an image are kept by its file system, extent by extent.

use std::io;
use std::ops::{ControlFlow, Range};

use crate::{ExtentSource, Fiemap, Kind, sharing};

use super::ablation;

/// Bytes by which a file is unshared that shares nothing.
const BLOCK: u64 = 4096;
/// Most bytes that are written or unshared at a time.
pub const PIECE: u64 = 4 << 20;

/// How many bytes of a file are kept how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survey {
    /// On the disk, and this file's alone.
    pub written: u64,
    /// Allocated, and never written.
    pub unwritten: u64,
    /// Not allocated.
    pub holes: u64,
    /// Shared with other files.
    pub shared: u64,
    /// In any other state.
    pub opaque: u64,
    /// Set aside in the copy-on-write fork (XFS): a write puts them elsewhere,
    /// whatever their extents say.
    pub set_aside: u64,
}

impl Survey {
    /// Looks at all of a file. `FIEMAP` opens nothing and breaks no lease.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(source: &Fiemap) -> io::Result<Survey> {
        let size = source.file().metadata()?.len();
        let mut survey = Survey::default();
        let mut extents = 0;
        let mut allocated = 0;
        each_extent(source, 0..size, &mut |kind, range| {
            let bytes = range.end - range.start;
            if kind != Kind::Hole {
                extents += 1;
                allocated += bytes;
            }
            *match kind {
                Kind::Written => &mut survey.written,
                Kind::Unwritten => &mut survey.unwritten,
                Kind::Hole => &mut survey.holes,
                Kind::Shared => &mut survey.shared,
                Kind::Opaque(_) => &mut survey.opaque,
            } += bytes;
        })?;
        if !ablation::left_out("cow") {
            survey.set_aside = sharing::set_aside(source.file(), extents, allocated)?;
        }
        Ok(survey)
    }

    /// Bytes that keep the image from being swap-grade.
    pub fn unfit(&self) -> u64 {
        self.unwritten + self.holes + self.shared + self.opaque + self.set_aside
    }
}

impl std::fmt::Display for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes written, {} not written yet, {} not allocated, {} shared, {} other",
            self.written, self.unwritten, self.holes, self.shared, self.opaque
        )?;
        if self.set_aside > 0 {
            write!(f, ", {} set aside for copies on write", self.set_aside)?;
        }
        Ok(())
    }
}

/// Calls `visit` for every extent in `range` (bytes of the file) and every hole between, in order.
///
/// # Errors
/// What FIEMAP says.
pub fn each_extent(
    source: &Fiemap,
    range: Range<u64>,
    visit: &mut dyn FnMut(Kind, Range<u64>),
) -> io::Result<()> {
    let mut at = range.start;
    source.fill(range.clone(), &mut |extent| {
        if at < extent.start {
            visit(Kind::Hole, at..extent.start);
        }
        visit(extent.kind, extent.start..extent.end());
        at = extent.end();
        ControlFlow::Continue(())
    })?;
    if at < range.end {
        visit(Kind::Hole, at..range.end);
    }
    Ok(())
}

/// Cuts a range into pieces.
pub fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let (start, end) = (range.start, range.end);
    (0..(end - start).div_ceil(PIECE))
        .map(move |i| start + i * PIECE..(start + (i + 1) * PIECE).min(end))
}

/// Takes copies of what a file shares with others, and gives back what was set
/// aside for copies on write, under a lease that the caller holds; safe beside
/// the caller's own writes. Goes on while `may` allows it.
///
/// # Errors
/// What the file system says, as when it is full.
pub fn unshare(source: &Fiemap, may: &mut dyn FnMut() -> bool) -> io::Result<()> {
    if ablation::left_out("cow") || !sharing::can_share(source.file())? {
        return Ok(());
    }
    let size = source.file().metadata()?.len();
    let mut shared = Vec::new();
    each_extent(source, 0..size, &mut |kind, range| {
        if kind == Kind::Shared {
            sharing::append(&mut shared, range);
        }
    })?;
    let shared: Vec<_> = shared.into_iter().flat_map(pieces).collect();
    for piece in shared.into_iter().rev() {
        if !may() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        sharing::unshare(source.file(), &piece)?;
    }
    // Also where nothing is shared: something may be set aside all the same.
    // Any written block will do for that; in a hole it would allocate.
    let mut written = None;
    each_extent(source, 0..size, &mut |kind, range| {
        if kind == Kind::Written {
            written.get_or_insert(range.start..(range.start + BLOCK).min(range.end));
        }
    })?;
    // XFS does nothing while it takes any page of the file for dirty, which it
    // does until it has written the inode back: no sync of the file sees to
    // that.
    rustix::fs::syncfs(source.file())?;
    written.map_or(Ok(()), |block| sharing::unshare(source.file(), &block))
}
