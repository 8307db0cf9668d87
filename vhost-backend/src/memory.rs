//! The guest's memory as the front-end shares it: one immutable table at a
//! time, replaced as a whole.

pub(crate) mod dirty;
pub(crate) mod inflight;
pub(crate) mod shared;
pub(crate) mod sigbus;

use std::fs::File;
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::shared::{Shared, SharedError};
use crate::device::HostRegion;
use crate::sys;

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
        let meet = |a: u64, b: u64| a < b + other.size && b < a + self.size;
        meet(self.guest, other.guest) || meet(self.user, other.user)
    }
}

/// A file mapped into this process; unmapped when the last table that uses it
/// is gone.
#[derive(Debug)]
struct Mapping {
    /// No other mapping of this process has or had it.
    id: u64,
    in_memory: bool,
    _shared: Shared,
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
        let in_memory = sys::is_memory(&file);
        let shared = Shared::map(file, spec.offset, spec.size)?;
        shared.leave_to_host();
        Ok(Self {
            spec,
            host: shared.at(0).addr(),
            mapping: Arc::new(Mapping {
                id: MAPPINGS.fetch_add(1, Ordering::Relaxed),
                in_memory,
                _shared: shared,
            }),
        })
    }

    /// Offset and bytes left, if the address lies in this region.
    fn at(&self, guest: u64) -> Option<(u64, u64)> {
        let offset = guest.checked_sub(self.spec.guest)?;
        (offset < self.spec.size).then(|| (offset, self.spec.size - offset))
    }

    fn host(&self, offset: u64) -> Option<*mut u8> {
        Some(with_exposed_provenance_mut(
            self.host + usize::try_from(offset).ok()?,
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
        Self { regions, largest }
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
            in_memory: r.mapping.in_memory,
        };
        self.regions.iter().map(region).collect()
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
            (offset < r.spec.size).then(|| r.spec.guest + offset)
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
        let largest = self.regions.get(self.largest);
        largest.into_iter().chain(&self.regions).find_map(|r| {
            let offset = host.addr().checked_sub(r.host)?;
            let offset = u64::try_from(offset).ok()?;
            (offset < r.spec.size).then(|| r.spec.guest + offset)
        })
    }

    /// Appends the host pieces of `len` bytes, split where regions meet
    /// (RING-11); `None` (and nothing appended) if any byte is not mapped.
    pub(crate) fn pieces(&self, guest: u64, len: u64, into: &mut Vec<libc::iovec>) -> Option<()> {
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
            len -= bytes;
            guest += bytes;
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
pub(crate) mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, FromRawFd};

    fn memfd(size: u64, flags: libc::c_uint) -> File {
        #[allow(unsafe_code)]
        // SAFETY: the name is a C string; a fresh descriptor is owned here.
        let file = unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC | flags);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        };
        file.set_len(size).unwrap();
        file
    }

    fn spec(guest: u64, size: u64, user: u64, offset: u64) -> RegionSpec {
        RegionSpec {
            guest,
            size,
            user,
            offset,
        }
    }

    const USER: u64 = 0x7f00_0000_0000;

    /// Two regions that meet at 0x10000, one apart at 0x100000.
    pub(crate) fn table() -> Memory {
        let specs = [
            spec(0x10_0000, 0x4000, USER, 0),
            spec(0, 0x1_0000, USER + 0x10_0000, 0),
            spec(0x1_0000, 0x2000, USER + 0x20_0000, 0x1000),
        ];
        Memory::new(
            &specs,
            vec![memfd(0x4000, 0), memfd(0x1_0000, 0), memfd(0x3000, 0)],
        )
        .unwrap()
    }

    #[test]
    fn ring_11_pieces_are_split_where_regions_meet() {
        let memory = table();
        let mut pieces = Vec::new();
        memory.pieces(0xf000, 0x1800, &mut pieces).unwrap();
        assert_eq!(
            pieces.iter().map(|p| p.iov_len).collect::<Vec<_>>(),
            [0x1000, 0x800]
        );
        assert_eq!(pieces[1].iov_base.cast(), memory.host(0x1_0000, 1).unwrap());
        assert!(memory.host(0xf000, 0x1000).is_some());
        assert!(memory.host(0xf000, 0x1001).is_none());
    }

    #[test]
    fn ring_11_a_partly_mapped_range_gives_no_pieces() {
        let memory = table();
        let mut pieces = Vec::new();
        memory.pieces(0, 16, &mut pieces).unwrap();
        for (guest, len) in [
            (0x1_1000, 0x1001),
            (0x2_0000, 1),
            (0x10_3fff, 2),
            (u64::MAX, 2),
            (u64::MAX - 1, u64::MAX),
        ] {
            assert!(
                memory.pieces(guest, len, &mut pieces).is_none(),
                "{guest:#x} {len:#x}"
            );
            assert_eq!(pieces.len(), 1);
        }
    }

    #[test]
    fn vu_17_user_addresses_are_translated() {
        let memory = table();
        assert_eq!(memory.user_to_guest(USER + 0x20_1fff), Some(0x1_1fff));
        assert_eq!(memory.user_to_guest(USER + 0x20_2000), None);
        assert_eq!(memory.user_to_guest(0), None);
    }

    #[test]
    fn vu_20_insane_regions_are_refused() {
        let file = || memfd(0x4000, 0);
        let refused = |s: RegionSpec| Memory::default().with(s, file()).unwrap_err();
        assert!(matches!(refused(spec(0, 0, USER, 0)), MemoryError::Range));
        assert!(matches!(
            refused(spec(u64::MAX - 0xfff, 0x2000, USER, 0)),
            MemoryError::Range
        ));
        assert!(matches!(
            refused(spec(0, 0x2000, u64::MAX - 0xfff, 0)),
            MemoryError::Range
        ));
        assert!(matches!(
            refused(spec(0, 0x2000, USER, u64::MAX - 0xfff)),
            MemoryError::Range
        ));
        assert!(matches!(
            refused(spec(0, 0x4001, USER, 0)),
            MemoryError::Shared(SharedError::BeyondFile)
        ));
        assert!(matches!(
            refused(spec(0, 0x1000, USER, 0x4000)),
            MemoryError::Shared(SharedError::BeyondFile)
        ));
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/zero")
            .unwrap();
        assert!(matches!(
            Memory::default().with(spec(0, 0x1000, USER, 0), null),
            Err(MemoryError::Shared(SharedError::NotAFile))
        ));
        assert!(matches!(
            table().with(spec(0x10_3000, 0x1000, 0x1000, 0), file()),
            Err(MemoryError::Overlap)
        ));
        assert!(matches!(
            table().with(spec(0x20_0000, 0x1000, USER + 0x3000, 0), file()),
            Err(MemoryError::Overlap)
        ));
        assert!(matches!(
            Memory::new(&[spec(0, 0x1000, USER, 0)], vec![]),
            Err(MemoryError::Files)
        ));
    }

    #[test]
    fn vu_19_an_offset_need_not_be_a_multiple_of_a_page() {
        use std::os::unix::fs::FileExt;
        let file = memfd(0x4000, 0);
        file.write_all_at(b"here", 0x1234).unwrap();
        let memory = Memory::default()
            .with(spec(0x1000, 0x1000, USER, 0x1234), file)
            .unwrap();
        #[allow(unsafe_code)]
        // SAFETY: host() vouches for the bytes, and nobody writes them.
        let bytes = unsafe { std::slice::from_raw_parts(memory.host(0x1000, 4).unwrap(), 4) };
        assert_eq!(bytes, b"here");
    }

    #[test]
    fn vu_21_a_new_table_shares_the_mappings_of_the_old() {
        let old = table();
        let host = old.host(0x10_0000, 1).unwrap();
        let new = old
            .without(spec(0, 0x1_0000, USER + 0x10_0000, 0x7777))
            .unwrap();
        drop(old);
        assert_eq!(new.host(0x10_0000, 1), Some(host));
        assert!(new.host(0, 1).is_none());
        assert!(matches!(
            new.without(spec(0, 0x1_0000, USER + 0x10_0000, 0)),
            Err(MemoryError::Unknown)
        ));
    }

    #[test]
    fn vu_20_truncation_after_mapping_is_survived() {
        let file = memfd(0x4000, 0);
        let memory = Memory::default()
            .with(spec(0, 0x4000, USER, 0), file.try_clone().unwrap())
            .unwrap();
        file.set_len(0x1000).unwrap();
        let gone = memory.host(0x2008, 8).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: the bytes are mapped; that they are gone is the test.
        unsafe {
            assert_eq!(gone.read_volatile(), 0);
            gone.write_volatile(7);
            assert_eq!(gone.read_volatile(), 7);
        }
    }

    #[test]
    fn a_sealed_file_needs_no_guard() {
        let file = memfd(0x1000, libc::MFD_ALLOW_SEALING);
        assert!(!sys::cannot_shrink(&file));
        #[allow(unsafe_code)]
        // SAFETY: sealing touches no memory.
        let sealed =
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        assert_eq!(sealed, 0);
        assert!(sys::cannot_shrink(&file));
    }
}
