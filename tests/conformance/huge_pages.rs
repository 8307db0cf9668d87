//! Guest memory in huge pages, as QEMU's hugetlb back-ends give it.

use std::fs::File;
use std::os::fd::OwnedFd;

use front_end::{Driver, GuestMemory, Like, Place, Region, Session, Setup, Wanted};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::disk::{Disk, content};

/// Bytes of a huge page, and of a region that ends within its second one.
const HUGE: u64 = 2 << 20;
const REGION: u64 = HUGE + 0xa_0000;
/// Guests that come one after the other.
const GUESTS: usize = 20;
/// Of /proc/sys/vm: how many there are.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages of the host; given back when dropped.
struct Pool(u64);

impl Pool {
    fn add(pages: u64) -> Option<Pool> {
        let before = std::fs::read_to_string(POOL)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let pool = Pool(before);
        std::fs::write(POOL, (before + pages).to_string()).unwrap();
        if free() < pages {
            println!("SKIP: no memory for {pages} huge pages");
            return None;
        }
        Some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        std::fs::write(POOL, self.0.to_string()).unwrap();
    }
}

fn free() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("HugePages_Free"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn region() -> Region {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file: OwnedFd = memfd_create("huge", flags).unwrap();
    let file = File::from(file);
    file.set_len(2 * HUGE).unwrap();
    let place = Place {
        guest: 0,
        user: 0x7f00_0000_0000,
        size: REGION,
    };
    Region::in_file(place, file, 0).unwrap()
}

#[test]
fn vu_20_a_region_that_is_no_multiple_of_a_huge_page_is_served_and_given_back() {
    let Some(_pool) = Pool::add(4) else { return };
    let before = free();
    let disk = Disk::start(&[]);
    for _ in 0..GUESTS {
        // The back-end gives back what the guest before had when it finds out that it has gone.
        while free() < before {
            std::thread::yield_now();
        }
        let mut memory = GuestMemory::default();
        memory.add(region());
        let mut session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
        let setup = Setup {
            size: 128,
            features: session.features,
            indirect: 16,
        };
        let mut driver = Driver::new(&memory, 0, setup).unwrap();
        session.start(&memory, &[driver.ring()]).unwrap();
        // The last block of the region.
        let at = REGION - 4096;
        let done = driver.read(8, at, 4096).unwrap();
        assert_eq!((done.status, done.length), (0, 4097));
        assert_eq!(memory.read(at, 4096).unwrap(), content(8 * 512, 4096));
    }
    let daemon = disk.daemon.pid();
    let held = || {
        let maps = std::fs::read_to_string(format!("/proc/{daemon}/maps")).unwrap();
        maps.contains("huge") || free() < before
    };
    while held() {
        std::thread::yield_now();
    }
}
