//! Extents from the file system, by FIEMAP.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::source::extent::{DISK_LIMIT, Extent, Kind, Reason};
use crate::source::{ExtentSource, Sink};
use crate::sync::Arc;
use crate::sys;

/// Records asked for in one call: 56 bytes each.
const BATCH: usize = 512;

pub(crate) const LAST: u32 = 0x1;
const UNKNOWN: u32 = 0x2;
const DELALLOC: u32 = 0x4;
const ENCODED: u32 = 0x8;
const DATA_ENCRYPTED: u32 = 0x80;
const NOT_ALIGNED: u32 = 0x100;
const DATA_INLINE: u32 = 0x200;
const DATA_TAIL: u32 = 0x400;
const UNWRITTEN: u32 = 0x800;
const MERGED: u32 = 0x1000;
const SHARED: u32 = 0x2000;

/// Whether the kernel writes dirty pages out before it tells extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Yes (`FIEMAP_FLAG_SYNC`): extents that wait for their place get one, and an extent told as
    /// unwritten has no dirty page over it. Costs nothing when there are none; waits for ever if there are and
    /// the file system is frozen.
    Always,
    /// No: ranges that wait for their place are opaque, and an extent told as unwritten or a hole may have data in
    /// the page cache.
    Never,
}

/// The extents of a regular file, as its file system tells them.
///
/// Numbers are checked: records are clamped to the file's size, and whatever overflows, is not aligned,
/// or carries a flag that is not understood becomes [`Kind::Opaque`]. `FIEMAP_FLAG_CACHE` is never used
/// (ext4 then reads the whole file's extents at every call), nor is `SEEK_DATA` or `FIBMAP`.
#[derive(Clone, Debug)]
pub struct Fiemap {
    file: Arc<File>,
    sync: SyncPolicy,
    align: u64,
    exclusive: bool,
    /// Not modelled: nothing depends on it.
    calls: std::sync::Arc<AtomicU64>,
}

impl Fiemap {
    /// The extents of `file`, which any open mode will do for. [`SyncPolicy::Always`], alignment 512 bytes.
    #[must_use]
    pub fn new(file: Arc<File>) -> Fiemap {
        Fiemap {
            file,
            sync: SyncPolicy::Always,
            align: 512,
            exclusive: false,
            calls: std::sync::Arc::default(),
        }
    }

    /// Sets whether dirty pages are written out first.
    #[must_use]
    pub fn sync(self, sync: SyncPolicy) -> Fiemap {
        Fiemap { sync, ..self }
    }

    /// Extents that do not begin and end on multiples of `bytes` (a power of two: the device's logical block)
    /// are [`Reason::NotAligned`].
    #[must_use]
    pub fn align(self, bytes: u32) -> Fiemap {
        Fiemap {
            align: u64::from(bytes.max(1)),
            ..self
        }
    }

    /// For a file that nobody else uses and that is written past its page cache: a range is told only after
    /// its pages are proved to be gone from the cache (written out and dropped if need be).
    #[must_use]
    pub fn exclusive(self) -> Fiemap {
        Fiemap {
            exclusive: true,
            ..self
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// How often the file system was asked, by this one and its clones.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn call(&self, range: &Range<u64>, records: &mut Vec<sys::FiemapRecord>) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        sys::fiemap(
            &self.file,
            range.start,
            range.end - range.start,
            self.sync == SyncPolicy::Always,
            records,
        )?;
        if self.exclusive && !records.is_empty() && sys::is_realtime(&self.file)? {
            // A file without extents can be moved to another device by a mere flag; one with extents cannot.
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }
}

impl ExtentSource for Fiemap {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        let range = range.start..range.end.min(size);
        let call = |left: &_, records: &mut _| self.call(left, records);
        hand_out(range, self.align, BATCH, call, sink)
    }

    fn settle(&self, range: Range<u64>) -> io::Result<bool> {
        if !self.exclusive || sys::cached_pages(&self.file, &range)? == 0 {
            return Ok(true);
        }
        sys::write_out(&self.file)?;
        sys::drop_cache(&self.file, &range)?;
        Ok(sys::cached_pages(&self.file, &range)? == 0)
    }

    fn count(&self, range: Range<u64>) -> io::Result<u64> {
        let size = self.file.metadata()?.len();
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            return Ok(0);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        sys::fiemap_count(&self.file, range.start, range.end - range.start)
    }
}

/// Hands out what `call` tells of `left`, in as many calls as it takes; one that tells `batch` records
/// may have left some out.
pub(crate) fn hand_out(
    mut left: Range<u64>,
    align: u64,
    batch: usize,
    mut call: impl FnMut(&Range<u64>, &mut Vec<sys::FiemapRecord>) -> io::Result<()>,
    sink: &mut Sink<'_>,
) -> io::Result<()> {
    let mut records = Vec::with_capacity(batch);
    // Where the record before ended: one that begins earlier contradicts it.
    let mut behind = None;
    while !left.is_empty() {
        call(&left, &mut records)?;
        let (full, before) = (records.len() == batch, left.start);
        for record in &records {
            let Some(mut extent) = parse(record, &left, align) else {
                continue;
            };
            if behind.is_some_and(|end| record.logical < end) {
                extent.kind = Kind::Opaque(Reason::Invalid);
                extent.disk = 0;
            }
            if sink(extent).is_break() {
                return Ok(());
            }
            left.start = extent.end();
            behind = Some(left.start);
        }
        // Another call may draw other boundaries, but none within a block.
        behind = behind.filter(|end| !end.is_multiple_of(align));
        let last = records.last().is_none_or(|record| record.flags & LAST != 0);
        if last || !full {
            break;
        }
        // A batch that led nowhere would be asked for again for ever.
        if left.start == before {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "FIEMAP does not advance",
            ));
        }
    }
    Ok(())
}

/// One record, clipped to `range`; `None` if nothing of it lies there.
fn parse(record: &sys::FiemapRecord, range: &Range<u64>, align: u64) -> Option<Extent> {
    let start = record.logical;
    let len = record.length.min(u64::MAX - start);
    let kind = kind_of(record, align);
    let disk = if matches!(kind, Kind::Opaque(_)) {
        0
    } else {
        record.physical
    };
    Extent {
        start,
        len,
        disk,
        kind,
    }
    .clip(range)
}

fn kind_of(record: &sys::FiemapRecord, align: u64) -> Kind {
    let flags = record.flags;
    let known = LAST
        | UNKNOWN
        | DELALLOC
        | ENCODED
        | DATA_ENCRYPTED
        | NOT_ALIGNED
        | DATA_INLINE
        | DATA_TAIL
        | UNWRITTEN
        | MERGED
        | SHARED;
    let reasons = [
        (!known, Reason::UnknownFlag),
        (UNKNOWN | DELALLOC, Reason::NotAllocated),
        (DATA_ENCRYPTED, Reason::Encrypted),
        (DATA_INLINE | DATA_TAIL, Reason::Inline),
        (ENCODED, Reason::Encoded),
        (NOT_ALIGNED, Reason::NotAligned),
    ];
    if let Some((_, reason)) = reasons.into_iter().find(|(mask, _)| flags & mask != 0) {
        return Kind::Opaque(reason);
    }
    let end = record.physical.checked_add(record.length);
    let beyond = end.is_none_or(|end| end > DISK_LIMIT)
        || record.logical.checked_add(record.length).is_none();
    // No file system keeps file data in its first block: a place of 0 means none.
    if beyond || record.length == 0 || record.physical == 0 {
        return Kind::Opaque(Reason::Invalid);
    }
    if !(record.physical | record.logical | record.length).is_multiple_of(align) {
        return Kind::Opaque(Reason::NotAligned);
    }
    // Unwritten before shared: a shared unwritten extent reads zeros, not what lies on the disk.
    match (flags & UNWRITTEN != 0, flags & SHARED != 0) {
        (true, _) => Kind::Unwritten,
        (false, true) => Kind::Shared,
        (false, false) => Kind::Written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: Range<u64> = 0..1 << 40;

    fn one(flags: u32) -> Kind {
        parse(
            &sys::FiemapRecord::new(4096, 8192, 4096, flags),
            &WHOLE,
            512,
        )
        .unwrap()
        .kind
    }

    #[test]
    fn every_flag_has_its_kind_and_unknown_ones_are_opaque() {
        assert_eq!(one(0), Kind::Written);
        assert_eq!(one(LAST | MERGED), Kind::Written);
        assert_eq!(one(UNWRITTEN), Kind::Unwritten);
        assert_eq!(one(SHARED), Kind::Shared);
        assert_eq!(
            one(SHARED | UNWRITTEN),
            Kind::Unwritten,
            "reads zeros, not the shared blocks"
        );
        assert_eq!(one(UNKNOWN), Kind::Opaque(Reason::NotAllocated));
        assert_eq!(one(DELALLOC | UNKNOWN), Kind::Opaque(Reason::NotAllocated));
        assert_eq!(one(ENCODED), Kind::Opaque(Reason::Encoded));
        assert_eq!(
            one(DATA_ENCRYPTED | ENCODED),
            Kind::Opaque(Reason::Encrypted)
        );
        assert_eq!(one(DATA_INLINE | NOT_ALIGNED), Kind::Opaque(Reason::Inline));
        assert_eq!(one(NOT_ALIGNED), Kind::Opaque(Reason::NotAligned));
        for bit in [0x10, 0x20, 0x40, 0x4000, 0x8000_0000] {
            assert_eq!(one(bit), Kind::Opaque(Reason::UnknownFlag), "{bit:#x}");
        }
    }

    #[test]
    fn misaligned_overflowing_and_nowhere_places_are_opaque() {
        let kind = |logical, physical, length| {
            parse(
                &sys::FiemapRecord::new(logical, physical, length, 0),
                &(0..u64::MAX),
                4096,
            )
            .unwrap()
            .kind
        };
        assert_eq!(kind(0, 4096, 4096), Kind::Written);
        assert_eq!(kind(0, 1024, 4096), Kind::Opaque(Reason::NotAligned));
        assert_eq!(kind(512, 4096, 4096), Kind::Opaque(Reason::NotAligned));
        assert_eq!(kind(0, 4096, 512), Kind::Opaque(Reason::NotAligned));
        assert_eq!(
            kind(0, u64::MAX - 4095, 8192),
            Kind::Opaque(Reason::Invalid)
        );
        assert_eq!(kind(0, 1 << 56, 4096), Kind::Opaque(Reason::Invalid));
        assert_eq!(
            kind(0, 0, 4096),
            Kind::Opaque(Reason::Invalid),
            "the first block is no place for data"
        );
    }

    #[test]
    fn records_are_clamped_to_the_file() {
        let record = sys::FiemapRecord::new(4096, 1 << 20, 8192, 0);
        let extent = parse(&record, &(6000..9000), 512).unwrap();
        assert_eq!(
            (extent.start, extent.len, extent.disk),
            (6000, 3000, (1 << 20) + 6000 - 4096)
        );
        assert_eq!(parse(&record, &(0..4096), 512), None);
    }

    #[test]
    fn a_record_that_overlaps_the_one_before_is_opaque() {
        let record = |logical, length| sys::FiemapRecord::new(logical, 1 << 30, length, 0);
        let told = |first: Vec<sys::FiemapRecord>, second: Vec<sys::FiemapRecord>| {
            let (mut extents, mut calls) = (Vec::new(), [second, first].to_vec());
            let call = |_: &_, records: &mut Vec<_>| {
                *records = calls.pop().unwrap_or_default();
                Ok(())
            };
            hand_out(0..1 << 20, 512, 2, call, &mut |extent| {
                extents.push((extent.range(), extent.kind));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
            extents
        };
        let invalid = Kind::Opaque(Reason::Invalid);
        let unaligned = Kind::Opaque(Reason::NotAligned);
        let (plain, ragged) = (record(0, 4096), record(0, 700));
        let over = record(512, 8192);
        assert_eq!(
            told(vec![plain, over], vec![]),
            [(0..4096, Kind::Written), (4096..8704, invalid)]
        );
        assert_eq!(
            told(vec![ragged, record(0, 600)], vec![over]),
            [(0..700, unaligned), (700..8704, invalid)],
        );
        // As long as blocks are whole, the file may have been told otherwise by another call.
        assert_eq!(
            told(vec![plain, record(0, 600)], vec![over]),
            [(0..4096, Kind::Written), (4096..8704, Kind::Written)]
        );
    }

    proptest! {
        #[test]
        fn no_record_leads_out_of_its_range_or_off_the_disk(
            logical: u64, physical: u64, length: u64, flags: u32, start: u64, size: u64,
        ) {
            let range = start..start.saturating_add(size);
            if let Some(extent) = parse(&sys::FiemapRecord::new(logical, physical, length, flags), &range, 512) {
                prop_assert!(extent.start >= range.start && extent.end() <= range.end && extent.len > 0);
                prop_assert!(extent.disk.checked_add(extent.len).is_some());
                prop_assert!(extent.disk + extent.len <= DISK_LIMIT || !extent.kind.on_disk());
            }
        }
    }
}
