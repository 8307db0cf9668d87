//! Where two files of one file system differ, told from their extents without reading a byte of either.
//!
//! Blocks that two files share are the same blocks: whoever writes to one of the files gets another block for it
//! (copy on write). So two clones of one image can differ only where their extents lie at different places of the
//! disk. What is told may be more than what differs (a defragmented file has other places and the same bytes), and
//! never less.
//!
//! Neither file may change meanwhile: compare clones that are at rest, or hold whoever writes.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::MetadataExt;

use crate::source::ExtentSource;
use crate::source::extent::{Extent, Kind};
use crate::source::fiemap::Fiemap;
use crate::sync::Arc;
use crate::sys;

/// Extents of one file in memory at a time.
const BATCH: usize = 512;

/// A range in which the bytes of two files may differ. All numbers are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Offset of the first byte.
    pub start: u64,
    /// Length, never 0.
    pub len: u64,
    /// The second file reads zeros there: nothing has to be read of it.
    pub zeros: bool,
}

impl Difference {
    /// The offset behind the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Two files that are compared.
#[derive(Debug)]
pub struct Comparison {
    from: Fiemap,
    to: Fiemap,
    size: u64,
    one_disk: bool,
}

impl Comparison {
    /// Compares `from` with `to`, both of which any open mode will do for. Dirty pages are written out first.
    ///
    /// # Errors
    /// What the system said about their file systems.
    pub fn new(from: &Arc<File>, to: &Arc<File>) -> io::Result<Comparison> {
        Ok(Comparison {
            from: Fiemap::new(Arc::clone(from)),
            to: Fiemap::new(Arc::clone(to)),
            size: from.metadata()?.len().max(to.metadata()?.len()),
            one_disk: on_one_disk(from, to)?,
        })
    }

    /// Whether places of both files can be compared: they are on one ext4, XFS or btrfs. Where not, all bytes that
    /// are not zeros in both are told as different.
    #[must_use]
    pub fn one_disk(&self) -> bool {
        self.one_disk
    }

    /// Where they may differ, up to the end of the longer one; the other one counts as zeros behind its end.
    #[must_use]
    pub fn differences(&self) -> Differences<'_, Fiemap> {
        self.differences_in(0..self.size)
    }

    /// As [`differences`](Self::differences), within `range` (bytes).
    #[must_use]
    pub fn differences_in(&self, range: Range<u64>) -> Differences<'_, Fiemap> {
        let range = range.start..range.end.min(self.size);
        Differences::new(&self.from, &self.to, range, self.one_disk)
    }
}

/// Whether a place of one file means the same as in the other.
fn on_one_disk(one: &File, other: &File) -> io::Result<bool> {
    let magic = sys::filesystem(one)?;
    if magic != sys::filesystem(other)? {
        return Ok(false);
    }
    // A stacked file system tells places of whichever is below; others have several disks with places of their own.
    let same = match magic {
        sys::EXT4_MAGIC => true,
        // The realtime device has places of its own.
        sys::XFS_MAGIC => sys::is_realtime(one)? == sys::is_realtime(other)?,
        // Each subvolume has a device number of its own, and places are those of the whole.
        sys::BTRFS_MAGIC => return Ok(sys::btrfs_id(one)? == sys::btrfs_id(other)?),
        _ => false,
    };
    Ok(same && one.metadata()?.dev() == other.metadata()?.dev())
}

/// The differences, in ascending order; neighbours are told as one. Ends after an error.
#[derive(Debug)]
pub struct Differences<'a, S> {
    from: Cursor<'a, S>,
    to: Cursor<'a, S>,
    at: u64,
    end: u64,
    one_disk: bool,
}

impl<'a, S: ExtentSource> Differences<'a, S> {
    /// Compares what two sources tell of `range`. `one_disk` says whether their places are of one disk, whose data
    /// never change in place while two files have them.
    pub fn new(from: &'a S, to: &'a S, range: Range<u64>, one_disk: bool) -> Self {
        Self {
            from: Cursor::new(from, range.clone()),
            to: Cursor::new(to, range.clone()),
            at: range.start,
            end: range.end,
            one_disk,
        }
    }

    /// What becomes of the bytes from here on, and how far it is so.
    fn step(&mut self) -> io::Result<(Option<bool>, u64)> {
        let (from, to) = (self.from.at(self.at)?, self.to.at(self.at)?);
        let end = from.end().min(to.end());
        let zeros = |extent: &Extent| matches!(extent.kind, Kind::Hole | Kind::Unwritten);
        let places = (from.disk_at(self.at), to.disk_at(self.at));
        let same = match (zeros(&from), zeros(&to)) {
            (true, true) => true,
            (false, false) => {
                self.one_disk && matches!(places, (Some(one), Some(other)) if one == other)
            }
            _ => false,
        };
        Ok(((!same).then(|| zeros(&to)), end))
    }
}

impl<S: ExtentSource> Iterator for Differences<'_, S> {
    type Item = io::Result<Difference>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut found: Option<Difference> = None;
        while self.at < self.end {
            let (differs, end) = match self.step() {
                Ok(step) => step,
                Err(error) => {
                    self.at = self.end;
                    return Some(Err(error));
                }
            };
            match (&mut found, differs) {
                (None, None) => {}
                (None, Some(zeros)) => {
                    found = Some(Difference {
                        start: self.at,
                        len: end - self.at,
                        zeros,
                    });
                }
                (Some(found), Some(zeros)) if found.zeros == zeros => found.len = end - found.start,
                (Some(_), _) => break,
            }
            self.at = end;
        }
        found.map(Ok)
    }
}

/// A place in what a source tells.
#[derive(Debug)]
struct Cursor<'a, S> {
    source: &'a S,
    batch: Vec<Extent>,
    next: usize,
    /// What the source was not asked for yet.
    left: Range<u64>,
    end: u64,
}

impl<'a, S: ExtentSource> Cursor<'a, S> {
    fn new(source: &'a S, range: Range<u64>) -> Self {
        Self {
            source,
            batch: Vec::with_capacity(BATCH),
            next: 0,
            end: range.end,
            left: range,
        }
    }

    /// The extent at `offset`, which is never before the one asked for last; a hole where there is none.
    fn at(&mut self, offset: u64) -> io::Result<Extent> {
        loop {
            match self.batch.get(self.next) {
                Some(extent) if extent.end() <= offset => self.next += 1,
                Some(extent) if extent.start <= offset => return Ok(*extent),
                None if !self.left.is_empty() => self.fill()?,
                behind => {
                    let end = behind.map_or(self.end, |extent| extent.start);
                    return Ok(Extent {
                        start: offset,
                        len: end - offset,
                        disk: 0,
                        kind: Kind::Hole,
                    });
                }
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.batch.clear();
        self.next = 0;
        let batch = &mut self.batch;
        self.source.fill(self.left.clone(), &mut |extent| {
            batch.push(extent);
            if batch.len() < BATCH {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        self.left.start = match self.batch.last() {
            Some(last) if self.batch.len() == BATCH => last.end(),
            _ => self.left.end,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::extent::Reason;
    use proptest::prelude::*;

    const SIZE: u64 = 64;

    /// Extents as they are.
    struct Told(Vec<Extent>);

    impl ExtentSource for Told {
        fn fill(&self, range: Range<u64>, sink: &mut crate::Sink<'_>) -> io::Result<()> {
            for extent in self.0.iter().filter_map(|extent| extent.clip(&range)) {
                if sink(extent).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    fn extent(start: u64, len: u64, disk: u64, kind: Kind) -> Extent {
        Extent {
            start,
            len,
            disk,
            kind,
        }
    }

    fn told(from: &[Extent], to: &[Extent], one_disk: bool) -> Vec<(u64, u64, bool)> {
        let (from, to) = (Told(from.to_vec()), Told(to.to_vec()));
        let all = Differences::new(&from, &to, 0..SIZE, one_disk);
        all.map(|one| one.map(|one| (one.start, one.len, one.zeros)).unwrap())
            .collect()
    }

    #[test]
    fn the_same_place_is_the_same_however_it_is_cut() {
        let whole = [extent(8, 32, 1000, Kind::Shared)];
        let cut = [
            extent(8, 10, 1000, Kind::Shared),
            extent(18, 22, 1010, Kind::Written),
        ];
        assert_eq!(told(&whole, &cut, true), []);
        assert_eq!(told(&whole, &cut, false), [(8, 32, false)]);
        let moved = [extent(8, 32, 1001, Kind::Shared)];
        assert_eq!(told(&whole, &moved, true), [(8, 32, false)]);
    }

    #[test]
    fn zeros_are_zeros_and_what_became_zeros_is_told_as_such() {
        let data = [extent(0, 20, 1000, Kind::Shared)];
        let reserved = [
            extent(0, 8, 1000, Kind::Shared),
            extent(8, 30, 500, Kind::Unwritten),
        ];
        assert_eq!(told(&data, &reserved, true), [(8, 12, true)]);
        assert_eq!(told(&reserved, &data, true), [(8, 12, false)]);
        assert_eq!(told(&[], &reserved[1..], true), []);
        // Data that became zeros beside data that changed are two.
        let both = [extent(8, 4, 2000, Kind::Written)];
        assert_eq!(
            told(&data, &both, true),
            [(0, 8, true), (8, 4, false), (12, 8, true)]
        );
    }

    #[test]
    fn what_has_no_place_may_differ() {
        for reason in [Reason::Encoded, Reason::Inline, Reason::NotAllocated] {
            let opaque = [extent(4, 8, 0, Kind::Opaque(reason))];
            assert_eq!(told(&opaque, &opaque, true), [(4, 8, false)], "{reason}");
        }
    }

    #[test]
    fn an_error_is_told_once_and_ends_it() {
        struct Fails;
        impl ExtentSource for Fails {
            fn fill(&self, _: Range<u64>, _: &mut crate::Sink<'_>) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
        let mut all = Differences::new(&Fails, &Fails, 0..SIZE, true);
        assert!(all.next().unwrap().is_err());
        assert!(all.next().is_none());
    }

    #[test]
    fn more_extents_than_one_batch_are_compared_in_pieces() {
        let count = BATCH as u64 * 2 + 1;
        let every = |shift: u64| {
            let one = |at: u64| extent(at * 2, 1, at * 2 + shift, Kind::Shared);
            Told((0..count).map(one).collect())
        };
        let range = 0..count * 2;
        let (one, same, moved) = (every(1000), every(1000), every(1001));
        assert_eq!(
            Differences::new(&one, &same, range.clone(), true).count(),
            0
        );
        let all = Differences::new(&one, &moved, range, true);
        assert_eq!(all.count() as u64, count);
    }

    fn file() -> impl Strategy<Value = Vec<Extent>> {
        let kinds = prop::sample::select(vec![
            Kind::Written,
            Kind::Shared,
            Kind::Unwritten,
            Kind::Opaque(Reason::Encoded),
        ]);
        prop::collection::vec((0..4u64, 1..6u64, 0..3u64, kinds), 0..16).prop_map(|parts| {
            let mut at = 0;
            let extents = parts.into_iter().map(|(gap, len, shift, kind)| {
                let start = at + gap;
                at = start + len;
                let disk = match kind {
                    Kind::Opaque(_) => 0,
                    _ => 1000 * (shift + 1) + start,
                };
                extent(start, len, disk, kind)
            });
            let whole = extents.collect::<Vec<_>>();
            whole
                .iter()
                .filter_map(|one| one.clip(&(0..SIZE)))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_byte_is_told_as_its_extents_say(from in file(), to in file()) {
            let all = told(&from, &to, true);
            let at = |extents: &[Extent], byte: u64| {
                let found = extents.iter().find(|extent| extent.range().contains(&byte));
                found.copied().unwrap_or(extent(byte, 1, 0, Kind::Hole))
            };
            let mut last = None;
            for (start, len, zeros) in &all {
                prop_assert!(*len > 0 && last.is_none_or(|(end, was)| end < *start || (end == *start && was != *zeros)));
                last = Some((start + len, *zeros));
            }
            for byte in 0..SIZE {
                let (one, other) = (at(&from, byte), at(&to, byte));
                let zero = |extent: Extent| matches!(extent.kind, Kind::Hole | Kind::Unwritten);
                let same = zero(one) && zero(other)
                    || one.disk_at(byte).is_some() && one.disk_at(byte) == other.disk_at(byte);
                let found = all.iter().find(|(start, len, _)| (*start..start + len).contains(&byte));
                prop_assert_eq!(found.map(|found| found.2), (!same).then(|| zero(other)), "{}", byte);
            }
        }
    }
}
