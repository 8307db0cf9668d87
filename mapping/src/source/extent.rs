//! Extents: what is known about a range of a file.

use std::fmt;
use std::ops::Range;

/// Why a range of the file must not be touched on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// The range is held, or was held and has not been read again since: it is being changed.
    Changing = 0,
    /// The file system has not chosen a place yet (delayed allocation), or does not know it.
    NotAllocated = 1,
    /// The data are compressed or otherwise encoded on the disk.
    Encoded = 2,
    /// The data are encrypted by the file system.
    Encrypted = 3,
    /// The data lie inside the file system's metadata (inline data or a packed tail).
    Inline = 4,
    /// The extent does not begin or end on a block of the disk.
    NotAligned = 5,
    /// The kernel set a flag this program does not know.
    UnknownFlag = 6,
    /// The numbers of the record overflow or contradict others.
    Invalid = 7,
    /// The range lies beyond the end of the file.
    BeyondEnd = 8,
}

impl Reason {
    const ALL: [Reason; 9] = [
        Reason::Changing,
        Reason::NotAllocated,
        Reason::Encoded,
        Reason::Encrypted,
        Reason::Inline,
        Reason::NotAligned,
        Reason::UnknownFlag,
        Reason::Invalid,
        Reason::BeyondEnd,
    ];
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Changing => "being changed",
            Reason::NotAllocated => "not allocated yet",
            Reason::Encoded => "compressed or encoded",
            Reason::Encrypted => "encrypted",
            Reason::Inline => "inside metadata",
            Reason::NotAligned => "not aligned to blocks",
            Reason::UnknownFlag => "unknown flag",
            Reason::Invalid => "contradictory record",
            Reason::BeyondEnd => "beyond the end",
        })
    }
}

/// The name of a kind of extent, without the reason of an opaque one: as it is counted and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KindName {
    /// Of [`Kind::Written`].
    Written,
    /// Of [`Kind::Unwritten`].
    Unwritten,
    /// Of [`Kind::Hole`].
    Hole,
    /// Of [`Kind::Shared`].
    Shared,
    /// Of [`Kind::Opaque`], whatever the reason.
    Opaque,
}

impl KindName {
    /// All of them, in the order of [`Kind::index`].
    pub const ALL: [KindName; Kind::COUNT] = [
        KindName::Written,
        KindName::Unwritten,
        KindName::Hole,
        KindName::Shared,
        KindName::Opaque,
    ];

    /// One word in small letters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            KindName::Written => "written",
            KindName::Unwritten => "unwritten",
            KindName::Hole => "hole",
            KindName::Shared => "shared",
            KindName::Opaque => "opaque",
        }
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a range of the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Data at a place on the disk that belongs to this file alone.
    Written,
    /// A place is reserved; the file reads zeros there, whatever the disk holds.
    Unwritten,
    /// No place at all; the file reads zeros.
    Hole,
    /// Data at a place that other files use too: may be read from the disk, never written.
    Shared,
    /// Not for the disk path, for the reason given.
    Opaque(Reason),
}

impl Kind {
    /// The number of kinds that statistics tell apart (all reasons of [`Kind::Opaque`] together).
    pub const COUNT: usize = 5;

    /// A number below [`Kind::COUNT`], in the order of the variants.
    #[must_use]
    pub fn index(self) -> usize {
        self.name() as usize
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> KindName {
        match self {
            Kind::Written => KindName::Written,
            Kind::Unwritten => KindName::Unwritten,
            Kind::Hole => KindName::Hole,
            Kind::Shared => KindName::Shared,
            Kind::Opaque(_) => KindName::Opaque,
        }
    }

    /// Whether reading the disk at the extent's place gives the file's bytes.
    #[must_use]
    pub fn on_disk(self) -> bool {
        matches!(self, Kind::Written | Kind::Shared)
    }

    fn code(self) -> u8 {
        match self {
            Kind::Written => 0,
            Kind::Unwritten => 1,
            Kind::Hole => 2,
            Kind::Shared => 3,
            Kind::Opaque(reason) => 16 + reason as u8,
        }
    }

    fn from_code(code: u8) -> Kind {
        match code {
            0 => Kind::Written,
            1 => Kind::Unwritten,
            2 => Kind::Hole,
            3 => Kind::Shared,
            other => Kind::Opaque(
                other
                    .checked_sub(16)
                    .and_then(|at| Reason::ALL.get(usize::from(at)).copied())
                    .unwrap_or(Reason::Invalid),
            ),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Opaque(reason) => write!(f, "{} ({reason})", self.name()),
            kind => write!(f, "{}", kind.name()),
        }
    }
}

/// A range of the file and what is known about it. All numbers are bytes.
///
/// This is the form in which extents are handed out; the map keeps each in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte in the file.
    pub start: u64,
    /// Length, never 0.
    pub len: u64,
    /// Offset of the first byte on the disk; 0 for holes and opaque ranges.
    pub disk: u64,
    /// What the range is.
    pub kind: Kind,
}

impl Extent {
    /// The offset behind the last byte in the file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// The range of the file.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.end()
    }

    /// Where the byte at `offset` of the file lies on the disk.
    ///
    /// `None` outside the extent, and for kinds whose bytes are not to be read from the disk:
    /// an unwritten extent has a place, but what lies there is not the file's.
    #[must_use]
    pub fn disk_at(&self, offset: u64) -> Option<u64> {
        if !self.kind.on_disk() || !self.range().contains(&offset) {
            return None;
        }
        Some(self.disk + (offset - self.start))
    }

    /// The part of the extent inside `range`, with the disk offset moved along; `None` if empty.
    #[must_use]
    pub fn clip(&self, range: &Range<u64>) -> Option<Extent> {
        let start = self.start.max(range.start);
        let end = self.end().min(range.end);
        if start >= end {
            return None;
        }
        let disk = match self.kind {
            Kind::Hole | Kind::Opaque(_) => 0,
            _ => self.disk + (start - self.start),
        };
        Some(Extent {
            start,
            len: end - start,
            disk,
            kind: self.kind,
        })
    }

    /// The same, but nothing to act on if it lies where no disk reaches.
    pub(crate) fn within_limit(self) -> Extent {
        if self
            .disk
            .checked_add(self.len)
            .is_some_and(|end| end <= DISK_LIMIT)
        {
            return self;
        }
        Extent {
            disk: 0,
            kind: Kind::Opaque(Reason::Invalid),
            ..self
        }
    }
}

/// An extent as the map keeps it: 16 bytes, relative to its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Packed {
    start: u32,
    len: u32,
    /// Disk offset in the low 56 bits, kind in the high 8.
    place: u64,
}

const PLACE_BITS: u32 = 56;
/// Disk offsets from here on do not fit (64 PiB).
pub(crate) const DISK_LIMIT: u64 = 1 << PLACE_BITS;

impl Packed {
    pub(crate) fn new(start: u32, len: u32, disk: u64, kind: Kind) -> Packed {
        debug_assert!(disk < DISK_LIMIT);
        Packed {
            start,
            len,
            place: disk & (DISK_LIMIT - 1) | u64::from(kind.code()) << PLACE_BITS,
        }
    }

    pub(crate) fn changing(range: Range<u32>) -> Packed {
        Packed::new(
            range.start,
            range.end - range.start,
            0,
            Kind::Opaque(Reason::Changing),
        )
    }

    #[inline]
    pub(crate) fn start(&self) -> u32 {
        self.start
    }

    #[inline]
    pub(crate) fn end(&self) -> u32 {
        self.start + self.len
    }

    #[inline]
    pub(crate) fn contains(&self, at: u32) -> bool {
        at.wrapping_sub(self.start) < self.len
    }

    #[inline]
    pub(crate) fn disk(&self) -> u64 {
        self.place & (DISK_LIMIT - 1)
    }

    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        Kind::from_code(self.place.to_be_bytes()[0])
    }

    /// The part inside `range` of the window; `None` if empty.
    pub(crate) fn clip(&self, range: Range<u32>) -> Option<Packed> {
        let start = self.start.max(range.start);
        let end = self.end().min(range.end);
        if start >= end {
            return None;
        }
        let kind = self.kind();
        let disk = match kind {
            Kind::Hole | Kind::Opaque(_) => 0,
            _ => self.disk() + u64::from(start - self.start),
        };
        Some(Packed::new(start, end - start, disk, kind))
    }

    /// The public form; `base` is the file offset of the window.
    #[inline]
    pub(crate) fn unpack(&self, base: u64) -> Extent {
        Extent {
            start: base + u64::from(self.start),
            len: u64::from(self.len),
            disk: self.disk(),
            kind: self.kind(),
        }
    }
}

/// Replaces `hole` (relative to the window) of the sorted `entries` by one "changing" entry, exactly.
/// Neighbours are trimmed, adjacent changing entries become one.
pub(crate) fn carve(entries: &[Packed], hole: Range<u32>, out: &mut Vec<Packed>) {
    out.clear();
    let mut hole = hole;
    let changing = Kind::Opaque(Reason::Changing);
    for entry in entries {
        if entry.kind() == changing && entry.start() <= hole.end && entry.end() >= hole.start {
            hole = hole.start.min(entry.start())..hole.end.max(entry.end());
        }
    }
    let before = entries.iter().filter_map(|entry| entry.clip(0..hole.start));
    let behind = entries
        .iter()
        .filter_map(|entry| entry.clip(hole.end..u32::MAX));
    out.extend(before);
    out.push(Packed::changing(hole.clone()));
    out.extend(behind);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_extent_takes_16_bytes() {
        assert_eq!(size_of::<Packed>(), 16);
    }

    #[test]
    fn every_kind_survives_packing() {
        let reasons = Reason::ALL.map(Kind::Opaque);
        for kind in [Kind::Written, Kind::Unwritten, Kind::Hole, Kind::Shared]
            .into_iter()
            .chain(reasons)
        {
            let packed = Packed::new(4096, 8192, DISK_LIMIT - 512, kind);
            assert_eq!(packed.kind(), kind);
            assert_eq!(packed.disk(), DISK_LIMIT - 512);
            assert_eq!(packed.unpack(1 << 40).start, (1 << 40) + 4096);
        }
    }

    #[test]
    fn names_stand_in_the_order_of_the_kinds() {
        let kinds = [Kind::Written, Kind::Unwritten, Kind::Hole, Kind::Shared];
        let opaque = Kind::Opaque(Reason::Inline);
        for (kind, name) in kinds.into_iter().chain([opaque]).zip(KindName::ALL) {
            assert_eq!(KindName::ALL[kind.index()], name);
            assert_eq!(kind.to_string().split(' ').next(), Some(name.as_str()));
        }
    }

    #[test]
    fn unwritten_and_opaque_places_are_never_handed_out_for_reading() {
        for kind in [Kind::Unwritten, Kind::Hole, Kind::Opaque(Reason::Encoded)] {
            assert_eq!(
                Extent {
                    start: 0,
                    len: 10,
                    disk: 100,
                    kind
                }
                .disk_at(5),
                None
            );
        }
        let shared = Extent {
            start: 10,
            len: 10,
            disk: 100,
            kind: Kind::Shared,
        };
        assert_eq!(shared.disk_at(12), Some(102));
        assert_eq!(shared.disk_at(20), None);
    }

    fn window() -> impl Strategy<Value = Vec<Packed>> {
        prop::collection::vec((0u32..3, 1u32..5, 0u64..1000, 0u8..3), 0..20).prop_map(|parts| {
            let mut at = 0;
            parts
                .into_iter()
                .map(|(gap, len, disk, kind)| {
                    let start = at + gap;
                    at = start + len;
                    let kind = match kind {
                        0 => Kind::Written,
                        1 => Kind::Unwritten,
                        _ => Kind::Opaque(Reason::Changing),
                    };
                    Packed::new(start, len, disk, kind)
                })
                .collect()
        })
    }

    fn byte(entries: &[Packed], at: u32) -> Option<(Kind, u64)> {
        let entry = entries.iter().find(|entry| entry.contains(at))?;
        let opaque = matches!(entry.kind(), Kind::Opaque(_));
        Some((
            entry.kind(),
            if opaque {
                0
            } else {
                entry.disk() + u64::from(at - entry.start())
            },
        ))
    }

    proptest! {
        #[test]
        fn carving_changes_the_range_and_nothing_else(entries in window(), start in 0u32..100, len in 1u32..30) {
            let mut out = Vec::new();
            carve(&entries, start..start + len, &mut out);
            for at in 0..200 {
                let want = if (start..start + len).contains(&at) {
                    Some((Kind::Opaque(Reason::Changing), 0))
                } else {
                    byte(&entries, at)
                };
                prop_assert_eq!(byte(&out, at), want, "at {}", at);
            }
            for pair in out.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start());
            }
        }
    }
}
