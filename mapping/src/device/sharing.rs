//! What a file system does when files share blocks, and what is left of it afterwards.
//!
//! On XFS a write to shared blocks goes to a *copy-on-write fork*: blocks are set aside there, for more than was
//! written, and the file's extents are changed when the write has ended. What was set aside stays when nothing is
//! shared any more, and a later write still goes there, although FIEMAP calls the extent written and not shared:
//! it moves.
//!
//! No call tells what is in that fork (`XFS_IOC_GETBMAPX` does on kernels built for debugging only). But
//! [`unshare`] empties it: once nothing in the file is shared, XFS takes the mark of a file that may share off it,
//! and with it everything that was set aside.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use crate::sys;

/// Extents that an inode has room for, at least.
const IN_INODE: u64 = 9;
/// Extents in a block of the tree that holds more of them, at least: half of what fits in 1 KiB.
const IN_BLOCK: u64 = 29;
/// Blocks of the tree's upper levels, and of extended attributes.
const OTHER_BLOCKS: u64 = 16;

/// Whether files on the file system of `file` can share blocks, so that others who have it open for reading can
/// have its blocks replaced (`FIDEDUPERANGE`), and a write to it may move them. True where it does not tell.
///
/// # Errors
/// The file system cannot be asked.
pub fn can_share(file: &File) -> io::Result<bool> {
    if sys::filesystem(file)? != sys::XFS_MAGIC {
        return Ok(false);
    }
    Ok(sys::has_reflink(file).unwrap_or(true))
}

/// Takes copies of what a range of `file` (bytes, not beyond its end) shares with others
/// (`FALLOC_FL_UNSHARE_RANGE`). If nothing in the whole file is shared then, nothing is set aside for copies on
/// write either, and nothing will be until somebody shares its blocks again, which takes a descriptor: an
/// exclusive [lease](crate::device::lease) keeps that away. Holes in the range are allocated.
///
/// # Errors
/// What the file system says, as when it is full.
pub fn unshare(file: &File, range: &Range<u64>) -> io::Result<()> {
    sys::unshare(file, range)
}

/// Adds a range to others that lie before it, to the last of these if they touch: each call of [`unshare`] waits for
/// the disk, and XFS looks after it for what is shared still, extent by extent from the file's beginning to the first
/// one. Hence as few as can be, and the last one first.
pub fn append(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Bytes that the file system has set aside for `file` beyond its extents, of which there are `extents` with
/// `allocated` bytes up to its end: what is in the copy-on-write fork, but for small amounts that could be the
/// tree of its extents or its attributes as well. 0 on file systems without sharing.
///
/// # Errors
/// The file cannot be asked.
pub fn set_aside(file: &File, extents: u64, allocated: u64) -> io::Result<u64> {
    if !can_share(file)? {
        return Ok(0);
    }
    let stat = file.metadata()?;
    let tree = if extents > IN_INODE {
        extents.div_ceil(IN_BLOCK)
    } else {
        0
    };
    let mut records = Vec::new();
    sys::fiemap(file, stat.len(), u64::MAX - stat.len(), false, &mut records)?;
    let behind = |record: &sys::FiemapRecord| {
        let end = record.logical.saturating_add(record.length);
        end - record.logical.max(stat.len()).min(end)
    };
    let allocated = allocated.saturating_add(records.iter().map(behind).sum());
    let explained = allocated.saturating_add((tree + OTHER_BLOCKS).saturating_mul(stat.blksize()));
    Ok(stat.blocks().saturating_mul(512).saturating_sub(explained))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = Vec::new();
        for range in [0..4, 4..6, 8..9] {
            append(&mut ranges, range);
        }
        assert_eq!(ranges, [0..6, 8..9]);
    }
}
