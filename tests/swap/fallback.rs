//! While somebody else has the image, requests go by the file, in place, and
//! afterwards by the disk again.

use rig::file_systems::{EXT4, XFS};
use rig::files::reflink;

use crate::served::{Guest, IMAGE, Served, mounted};

#[test]
fn a_broken_lease_costs_no_allocation_and_no_data_and_the_map_comes_back() {
    for made in [EXT4, XFS] {
        let Some(fs) = mounted(made) else { return };
        fs.create("disk").set_len(IMAGE).unwrap();
        let path = fs.path("disk");
        let served = Served::start(&path, &[]);
        let mut guest = Guest::attach(&served);
        served.wait_path("disk");
        guest.load(1000);
        let block = vec![0x5a; 8192];
        guest.write(800, &block);
        let before = served.swap()["worker_allocations"].clone();
        for _ in 0..3 {
            let reader = std::fs::File::open(&path).unwrap();
            served.wait_path("file");
            assert!(!served.holds("lease_held") && !served.holds("map_pinned"));
            assert_eq!(guest.read(800, 8192), block);
            guest.load(5000);
            guest.write(800, &block);
            assert!(served.holds("extents_written"));
            drop(reader);
            // Requests go on while the path is entered again.
            while !served.holds("map_pinned") {
                guest.load(500);
            }
            served.wait_path("disk");
            assert_eq!(guest.read(800, 8192), block);
            assert!(served.holds("lease_held"));
        }
        // On XFS a write by the file holds its range while the path is entered,
        // as nothing tells what is in the copy-on-write fork.
        if fs.is_ext4() {
            assert_eq!(served.swap()["worker_allocations"], before);
        }
    }
}

#[test]
fn what_a_backup_came_to_share_is_unshared_again() {
    let Some(fs) = mounted(XFS) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let path = fs.path("disk");
    let served = Served::start(&path, &[]);
    let mut guest = Guest::attach(&served);
    guest.write(64, &[1; 65536]);
    let copy = fs.create("copy");
    {
        let image = std::fs::File::open(&path).unwrap();
        served.wait_path("file");
        reflink(&image, &copy).unwrap();
        assert!(!served.holds("extents_written"));
        // By the file: the copy keeps what it was made of.
        guest.write(64, &[2; 65536]);
    }
    served.wait_path("disk");
    assert!(served.holds("extents_written") && served.holds("map_pinned"));
    guest.load(10_000);
    guest.write(64, &[3; 65536]);
    assert_eq!(guest.read(64, 65536), [3; 65536]);
    let mut bytes = vec![0; 65536];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut bytes, 64 * 512).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 1), "the copy was changed");
}
