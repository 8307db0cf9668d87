//! What requests need is there from the start: when a front-end connects, the
//! host may be out of memory already.

use front_end::{Like, Session, Wanted};
use rig::attached::Attached;
use rig::file_systems::EXT4;

use crate::served::{IMAGE, Served, mounted};

/// Kibibytes that a front-end may cost: tables of a ring, and what a worker
/// touches for the first time.
const MOST: u64 = 512;

/// Kibibytes of its own that a process has in memory.
fn own_memory(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.daemon.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

#[test]
fn the_first_large_ring_takes_no_memory_for_its_requests() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let before = own_memory(&served);
    let session = Session::open(served.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
    let mut attached = Attached::with_ring(session, 1024);
    attached.read(0, 4096);
    let grown = own_memory(&served).saturating_sub(before);
    assert!(grown <= MOST, "{grown} KiB for a front-end");
}
