//! The guest's memory as the front-end shares it: one immutable table at a
//! time, replaced as a whole.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub(crate) mod backing;
pub(crate) mod copy;
pub(crate) mod dirty;
pub(crate) mod inflight;
pub(crate) mod shared;
pub(crate) mod sigbus;

use std::fs::File;
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::backing::SharedError;
use self::shared::Shared;
use crate::device::HostRegion;

/// Regions a table may hold (GET_MAX_MEM_SLOTS).
pub(crate) const MAX_REGIONS: usize = 509;

/// How many mappings were made.
static MAPPINGS: AtomicU64 = AtomicU64::new(1);

/// Why a region or a table is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("a memory region is empty or wraps around")]
    Range,
    #[error("memory regions overlap")]
    Overlap,
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    #[error("the number of memory regions and of files differs")]
    Files,
    #[error("there is no such memory region")]
    Unknown,
    #[error("a memory region {0}")]
    Shared(#[from] SharedError),
}

/// A region as the front-end describes it; all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    /// Guest physical address.
    pub guest: u64,
    pub size: u64,
    /// Where the front-end has it mapped.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

impl RegionSpec {
    fn check(&self) -> Result<(), MemoryError> {
        let ends = [self.guest, self.user, self.offset].map(|start| start.checked_add(self.size));
        if self.size == 0 || ends.contains(&None) {
            return Err(MemoryError::Range);
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet =
            |a: u64, b: u64| a < b.saturating_add(other.size) && b < a.saturating_add(self.size);
        meet(self.guest, other.guest) || meet(self.user, other.user)
    }
}

/// A file mapped into this process; unmapped when the last table that uses it
/// is gone.
#[derive(Debug)]
struct Mapping {
    /// No other mapping of this process has or had it.
    id: u64,
    shared: Shared,
    /// Whoever first saw that it is lost has said so.
    told: AtomicBool,
}

#[derive(Debug, Clone)]
struct Region {
    spec: RegionSpec,
    /// The address of its first byte here, with exposed provenance.
    host: usize,
    mapping: Arc<Mapping>,
}

impl Region {
    fn map(spec: RegionSpec, file: File) -> Result<Self, MemoryError> {
        spec.check()?;
        let shared = Shared::map(file, spec.offset, spec.size)?;
        shared.leave_to_host();
        Ok(Self {
            spec,
            host: shared.at(0).addr(),
            mapping: Arc::new(Mapping {
                id: MAPPINGS.fetch_add(1, Ordering::Relaxed),
                shared,
                told: AtomicBool::new(false),
            }),
        })
    }

    /// Offset and bytes left, if the address lies in this region.
    fn at(&self, guest: u64) -> Option<(u64, u64)> {
        let offset = guest.checked_sub(self.spec.guest)?;
        let left = self.spec.size.checked_sub(offset)?;
        (left > 0).then_some((offset, left))
    }

    /// All of these bytes, at least one, if they lie in this region.
    #[inline]
    fn piece(&self, guest: u64, len: u64) -> Option<libc::iovec> {
        let offset = guest.checked_sub(self.spec.guest)?;
        let left = self.spec.size.checked_sub(offset)?;
        if len == 0 || len > left {
            return None;
        }
        Some(libc::iovec {
            iov_base: self.host(offset)?.cast(),
            iov_len: usize::try_from(len).ok()?,
        })
    }

    /// There are zeros in its place.
    fn is_lost(&self) -> bool {
        self.mapping.shared.is_lost()
    }

    fn host(&self, offset: u64) -> Option<*mut u8> {
        Some(with_exposed_provenance_mut(
            self.host.checked_add(usize::try_from(offset).ok()?)?,
        ))
    }
}

/// An immutable table of guest memory regions, mapped into this process for
/// as long as anybody holds it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Sorted by guest address.
    regions: Vec<Region>,
    /// The largest region: nearly all of a guest's buffers are there.
    largest: usize,
    /// Indices of regions, sorted by their addresses here.
    by_host: Vec<usize>,
}

impl Memory {
    /// A table of these regions, each with its file (VU-19, VU-20).
    pub(crate) fn new(specs: &[RegionSpec], files: Vec<File>) -> Result<Self, MemoryError> {
        if specs.len() != files.len() {
            return Err(MemoryError::Files);
        }
        let mut regions = Vec::with_capacity(specs.len().min(MAX_REGIONS));
        for (spec, file) in specs.iter().zip(files) {
            Self::check_fits(&regions, spec)?;
            regions.push(Region::map(*spec, file)?);
        }
        Ok(Self::sorted(regions))
    }

    /// This table and one more region.
    pub(crate) fn with(&self, spec: RegionSpec, file: File) -> Result<Self, MemoryError> {
        Self::check_fits(&self.regions, &spec)?;
        let mut regions = self.regions.clone();
        regions.push(Region::map(spec, file)?);
        Ok(Self::sorted(regions))
    }

    /// This table without one region, whose offset does not matter (VU-23).
    pub(crate) fn without(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let same = |r: &Region| {
            (r.spec.guest, r.spec.user, r.spec.size) == (spec.guest, spec.user, spec.size)
        };
        let index = self
            .regions
            .iter()
            .position(same)
            .ok_or(MemoryError::Unknown)?;
        let mut regions = self.regions.clone();
        regions.remove(index);
        Ok(Self::sorted(regions))
    }

    fn check_fits(regions: &[Region], spec: &RegionSpec) -> Result<(), MemoryError> {
        spec.check()?;
        if regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        if regions.iter().any(|r| r.spec.overlaps(spec)) {
            return Err(MemoryError::Overlap);
        }
        Ok(())
    }

    fn sorted(mut regions: Vec<Region>) -> Self {
        regions.sort_unstable_by_key(|r| r.spec.guest);
        let largest = regions
            .iter()
            .enumerate()
            .max_by_key(|(_, r)| r.spec.size)
            .map_or(0, |(i, _)| i);
        let mut by_host: Vec<usize> = (0..regions.len()).collect();
        by_host.sort_unstable_by_key(|index| regions.get(*index).map(|r| r.host));
        Self {
            regions,
            largest,
            by_host,
        }
    }

    /// There are zeros in place of some region.
    pub(crate) fn has_losses(&self) -> bool {
        self.regions.iter().any(Region::is_lost)
    }

    /// There are zeros in place of the region of this address.
    pub(crate) fn is_lost_at(&self, guest: u64) -> bool {
        self.find(guest)
            .is_some_and(|(region, ..)| region.is_lost())
    }

    /// This table without the regions that are lost, if there are any. Says
    /// so, once for each.
    pub(crate) fn without_losses(&self) -> Option<Self> {
        let (lost, rest): (Vec<_>, Vec<_>) = self.regions.iter().partition(|r| r.is_lost());
        let first = lost.first()?;
        let told = |r: &&&Region| !r.mapping.told.swap(true, Ordering::Relaxed);
        let news = lost.iter().filter(told).count();
        if news > 0 {
            log::error!(
                "guest memory (regions: {news}, one at {:#x} of {} bytes) {}; requests and queues there fail until the front-end shares it anew",
                first.spec.guest,
                first.spec.size,
                SharedError::Lost,
            );
        }
        Some(Self::sorted(rest.into_iter().cloned().collect()))
    }

    /// The front-end has shared no memory (yet).
    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// How many regions there are.
    pub(crate) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// The regions as they are mapped here.
    pub(crate) fn host_regions(&self) -> Vec<HostRegion> {
        let region = |r: &Region| HostRegion {
            base: r.host,
            len: usize::try_from(r.spec.size).unwrap_or(0),
            id: r.mapping.id,
            in_memory: r.mapping.shared.in_memory(),
        };
        self.regions.iter().map(region).collect()
    }

    /// What the front-end has said of the regions, and the files of them.
    pub(crate) fn origins(&self) -> impl Iterator<Item = (RegionSpec, &File)> {
        let regions = self.regions.iter();
        regions.filter_map(|r| Some((r.spec, r.mapping.shared.file()?)))
    }

    /// Bytes of all regions.
    pub(crate) fn bytes(&self) -> u64 {
        self.regions
            .iter()
            .fold(0, |sum, r| sum.saturating_add(r.spec.size))
    }

    /// The guest physical address of a front-end's user address (VU-17).
    pub(crate) fn user_to_guest(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let offset = user.checked_sub(r.spec.user)?;
            let inside = offset < r.spec.size;
            inside.then(|| r.spec.guest.wrapping_add(offset))
        })
    }

    /// The host address of `len` bytes that lie wholly in one region (RING-2).
    pub(crate) fn host(&self, guest: u64, len: u64) -> Option<*mut u8> {
        let (region, offset, left) = self.find(guest)?;
        if len > left {
            return None;
        }
        region.host(offset)
    }

    /// The guest physical address of a host address of this table.
    pub(crate) fn guest(&self, host: *const u8) -> Option<u64> {
        let in_region = |region: &Region| {
            let offset = u64::try_from(host.addr().checked_sub(region.host)?).ok()?;
            let inside = offset < region.spec.size;
            inside.then(|| region.spec.guest.wrapping_add(offset))
        };
        let at = |index: &usize| self.regions.get(*index);
        if let Some(guest) = self.regions.get(self.largest).and_then(in_region) {
            return Some(guest);
        }
        let begins_before = |index: &usize| at(index).is_some_and(|r| r.host <= host.addr());
        let after = self.by_host.partition_point(begins_before);
        let before = self.by_host.get(after.checked_sub(1)?)?;
        at(before).and_then(in_region)
    }

    /// Appends the host pieces of `len` bytes, split where regions meet
    /// (RING-11), at most one for each region; `None` (and nothing appended)
    /// if any byte is not mapped.
    #[inline]
    pub(crate) fn pieces(&self, guest: u64, len: u64, into: &mut Vec<libc::iovec>) -> Option<()> {
        // Nearly all buffers are there, each as one piece.
        if let Some(region) = self.regions.get(self.largest)
            && let Some(piece) = region.piece(guest, len)
        {
            into.push(piece);
            return Some(());
        }
        self.pieces_anywhere(guest, len, into)
    }

    #[cold]
    fn pieces_anywhere(&self, guest: u64, len: u64, into: &mut Vec<libc::iovec>) -> Option<()> {
        let before = into.len();
        let all = self.push_pieces(guest, len, into);
        if all.is_none() {
            into.truncate(before);
        }
        all
    }

    fn push_pieces(&self, mut guest: u64, mut len: u64, into: &mut Vec<libc::iovec>) -> Option<()> {
        while len > 0 {
            let (region, offset, left) = self.find(guest)?;
            let bytes = len.min(left);
            into.push(libc::iovec {
                iov_base: region.host(offset)?.cast(),
                iov_len: usize::try_from(bytes).ok()?,
            });
            len = len.saturating_sub(bytes);
            // Not beyond the last region, which ends below the last address.
            guest = guest.wrapping_add(bytes);
        }
        Some(())
    }

    /// The region of an address, the offset in it and the bytes left.
    fn find(&self, guest: u64) -> Option<(&Region, u64, u64)> {
        let in_region =
            |region| Region::at(region, guest).map(|(offset, left)| (region, offset, left));
        if let Some(found) = self.regions.get(self.largest).and_then(in_region) {
            return Some(found);
        }
        let after = self.regions.partition_point(|r| r.spec.guest <= guest);
        self.regions.get(after.checked_sub(1)?).and_then(in_region)
    }
}

#[cfg(test)]
pub(crate) mod tests;
