//! Tables of guest memory: what fits, what does not, and what becomes of it.

use std::fs::File;
use std::os::fd::FromRawFd;

use super::*;

/// A file in memory.
pub(crate) fn memfd(size: u64, flags: libc::c_uint) -> File {
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
fn vu_20_memory_that_is_truncated_is_lost_as_a_whole_and_leaves_the_table() {
    let file = memfd(0x4000, 0);
    let memory = table();
    let place = spec(0x20_0000, 0x4000, 0x1000, 0);
    let memory = memory.with(place, file.try_clone().unwrap()).unwrap();
    assert!(!memory.has_losses() && memory.without_losses().is_none());
    file.set_len(0x1000).unwrap();
    let gone = memory.host(0x20_2008, 8).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: the bytes are mapped; that they are gone is the test.
    unsafe {
        assert_eq!(gone.read_volatile(), 0);
        gone.write_volatile(7);
        assert_eq!(gone.read_volatile(), 7);
    }
    let rest = memory.without_losses().unwrap();
    assert_eq!((memory.regions(), rest.regions()), (4, 3));
    assert!(memory.has_losses() && !rest.has_losses());
    assert!(rest.host(0x20_0000, 1).is_none());
    assert_eq!(rest.host(0, 1), memory.host(0, 1));
}

/// QEMU seals its memory against shrinking; that says nothing about room.
#[test]
fn vu_20_huge_pages_that_are_not_there_are_survived_whatever_the_seals() {
    let flags = libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING;
    let file = memfd(2 << 20, flags);
    #[allow(unsafe_code)]
    // SAFETY: sealing touches no memory.
    let sealed = unsafe {
        libc::fcntl(
            std::os::fd::AsRawFd::as_raw_fd(&file),
            libc::F_ADD_SEALS,
            libc::F_SEAL_SHRINK,
        )
    };
    assert_eq!(sealed, 0);
    let memory = Memory::default()
        .with(spec(0, 2 << 20, USER, 0), file)
        .unwrap();
    let at = memory.host(0x1234, 1).unwrap();
    let before = std::fs::read_to_string("/proc/meminfo").unwrap();
    #[allow(unsafe_code)]
    // SAFETY: the byte is mapped.
    unsafe {
        at.write_volatile(1);
    }
    if before.contains("HugePages_Free:        0") && before.contains("HugePages_Total:       0") {
        assert!(memory.has_losses());
    }
}

#[test]
fn host_addresses_lead_back_to_the_guest_in_any_region() {
    let memory = table();
    for guest in [0, 0xffff, 0x1_0000, 0x1_1fff, 0x10_0000, 0x10_3fff] {
        let host = memory.host(guest, 1).unwrap();
        assert_eq!(memory.guest(host), Some(guest));
    }
    assert_eq!(memory.guest(std::ptr::null()), None);
    let last = memory.host(0x10_3fff, 1).unwrap();
    let behind = memory.guest(last.wrapping_add(1 << 12));
    assert!(behind.is_none_or(|guest| guest < 0x10_0000));
}
