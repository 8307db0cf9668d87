//! Guest memory that is a file: whoever has to bring its pages may take longer
//! than the lease lasts. Where any of it is, requests go by the file while the
//! disk path stays in use otherwise.

use std::path::Path;

use front_end::codes::feature;
use front_end::{GuestMemory, Place, Region};
use rig::file_systems::{EXT4, Mounted};
use rig::files::create;
use rig::image::{FIRST, Image};
use rig::model::{SECTOR, Value};

use crate::lane::all;
use crate::served::{Guest, MEMORY, Served};

/// Bytes of the image, and its sectors.
const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// What the guest writes with different memory.
const FROM_FILE: Value = 2;
const FROM_MEMORY: Value = 3;

/// Memory from `guest` on in a new file.
fn region(path: &Path, guest: u64) -> Region {
    let file = create(path, MEMORY);
    let place = Place {
        guest,
        user: 0x7e00_0000_0000 + guest,
        size: MEMORY,
    };
    Region::in_file(place, file, 0).unwrap()
}

fn in_file(path: &Path) -> GuestMemory {
    let mut memory = GuestMemory::default();
    memory.add(region(path, 0));
    memory
}

fn start() -> Option<(Mounted, Served)> {
    let host = Mounted::new(EXT4)?;
    let image = Image::written(&host, BYTES);
    let served = Served::start(&image.path, &[], &[]);
    Some((host, served))
}

/// Goes through all of the disk, and none of it past the file system, though
/// that would be possible.
fn goes_by_the_file(served: &Served, guest: &mut Guest, before: Value, value: Value) {
    served.wait_disk();
    let first = served.info();
    // More than once: the map is loaded by what goes by the file.
    for _ in 0..3 {
        let mut lane = guest.lane(0);
        assert_eq!(lane.see(0..SECTORS / 2), all(before, SECTORS / 2));
        assert_eq!(lane.see(SECTORS / 2..SECTORS), all(FIRST, SECTORS / 2));
    }
    for queue in 0..2 {
        let mut lane = guest.lane(queue);
        lane.fill(0..SECTORS / 2, value);
        lane.flush();
        assert_eq!(lane.see(0..SECTORS / 2), all(value, SECTORS / 2));
    }
    let now = served.info();
    assert!(now.on_disk && now.entries == first.entries, "{now:?}");
    assert_eq!(now.disk_operations, first.disk_operations, "{now:?}");
    assert!(now.file_operations > first.file_operations, "{now:?}");
}

fn goes_by_the_disk(served: &Served, guest: &mut Guest, before: Value, value: Value) {
    served.wait_disk();
    guest.load(served, 0..SECTORS);
    let first = served.info();
    let mut lane = guest.lane(0);
    assert_eq!(lane.see(0..SECTORS / 2), all(before, SECTORS / 2));
    lane.fill(0..SECTORS / 2, value);
    assert_eq!(lane.see(0..SECTORS / 2), all(value, SECTORS / 2));
    let now = served.info();
    assert_eq!(now.file_operations, first.file_operations, "{now:?}");
}

#[test]
fn with_guest_memory_in_a_file_requests_go_by_the_file() {
    let Some((host, served)) = start() else {
        return;
    };
    let memory = in_file(&host.path("memory"));
    let mut guest = Guest::attach_in(&served, feature::ALL, memory);
    goes_by_the_file(&served, &mut guest, FIRST, FROM_FILE);
    assert_eq!(served.info().disk_operations, 0);
    drop(guest);
    let mut guest = Guest::attach(&served);
    goes_by_the_disk(&served, &mut guest, FROM_FILE, FROM_MEMORY);
}

#[test]
fn a_region_in_a_file_that_comes_and_goes_keeps_requests_on_the_file() {
    let Some((host, served)) = start() else {
        return;
    };
    let mut guest = Guest::attach(&served);
    goes_by_the_disk(&served, &mut guest, FIRST, FROM_MEMORY);
    let mut memory = guest.memory.clone();
    let place = memory.add(region(&host.path("memory"), 1 << 32)).place();
    guest.session.share(&memory).unwrap();
    goes_by_the_file(&served, &mut guest, FROM_MEMORY, FROM_FILE);
    memory.remove(place.guest).unwrap();
    guest.session.share(&memory).unwrap();
    goes_by_the_disk(&served, &mut guest, FROM_FILE, FROM_MEMORY);
}

#[test]
fn guest_memory_in_a_file_of_tmpfs_is_memory() {
    let parent = Path::new("/dev/shm");
    if !parent.is_dir() {
        eprintln!("SKIP: no tmpfs in /dev/shm");
        return;
    }
    let Some((_host, served)) = start() else {
        return;
    };
    let folder = tempfile::tempdir_in(parent).unwrap();
    let memory = in_file(&folder.path().join("memory"));
    let mut guest = Guest::attach_in(&served, feature::ALL, memory);
    goes_by_the_disk(&served, &mut guest, FIRST, FROM_MEMORY);
}
