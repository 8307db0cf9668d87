//! Images that are only read. XFS lets whoever may read a file share its
//! extents with another's that hold the same (FIDEDUPERANGE), and frees its
//! own: that the image is not written does not keep its blocks where they are.

use std::fs::File;
use std::os::fd::AsRawFd;

use rig::file_systems::{EXT4, Made, Mounted, XFS, sync};
use rig::image::{FIRST, Image};
use rig::model::{SECTOR, content};

use crate::disturb::Others;
use crate::lane::{Seen, all};
use crate::served::{Guest, Served};

/// Bytes of the image, and its sectors.
const BYTES: usize = 32 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// Most that one call shares.
const SHARED: u64 = 4 << 20;

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
struct DedupeRange {
    source_offset: u64,
    source_length: u64,
    count: u16,
    reserved: [u16; 3],
    target: i64,
    target_offset: u64,
    bytes_shared: u64,
    status: i32,
    reserved_too: u32,
}

/// Has `target` share the extents of `source`, which holds the same; both are
/// open for reading only. How many bytes are shared now.
#[allow(unsafe_code)]
fn dedupe(source: &File, target: &File) -> u64 {
    const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;
    let mut shared = 0;
    for offset in (0..BYTES as u64).step_by(usize::try_from(SHARED).unwrap()) {
        let mut range = DedupeRange {
            source_offset: offset,
            source_length: SHARED,
            count: 1,
            reserved: [0; 3],
            target: target.as_raw_fd().into(),
            target_offset: offset,
            bytes_shared: 0,
            status: 0,
            reserved_too: 0,
        };
        let pointer = std::ptr::from_mut(&mut range);
        // SAFETY: the call reads and writes one structure of this layout with
        // the one target that its count tells.
        let result = unsafe { libc::ioctl(source.as_raw_fd(), FIDEDUPERANGE as _, pointer) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        assert_eq!(range.status, 0);
        shared += range.bytes_shared;
    }
    shared
}

/// What the guest reads when the image's blocks have become others'.
fn read_after_dedupe(left_out: &str) -> Option<Seen> {
    let host = Mounted::new(XFS)?;
    let twin = host.path("twin");
    std::fs::write(&twin, content(FIRST, 0..SECTORS)).unwrap();
    let image = Image::written(&host, BYTES);
    let served = Served::start_without(&image.path, &["--read-only"], left_out);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);

    let tool = File::open(&image.path).unwrap();
    assert_eq!(dedupe(&File::open(&twin).unwrap(), &tool), BYTES as u64);
    drop(tool);
    sync(&host);
    Others::default().occupy(&host, "new");
    let seen = guest.lane(0).see(0..SECTORS);
    // By the file it is as it was.
    assert_eq!(
        std::fs::read(&image.path).unwrap(),
        content(FIRST, 0..SECTORS)
    );
    Some(seen)
}

#[test]
fn a_guest_that_only_reads_never_reads_what_others_wrote() {
    if let Some(seen) = read_after_dedupe("") {
        assert_eq!(seen, all(FIRST, SECTORS));
    }
}

#[test]
fn under_a_read_lease_a_guest_reads_what_others_wrote() {
    if let Some(seen) = read_after_dedupe("writelease") {
        assert!(seen.contains_key("foreign"), "{seen:?}");
    }
}

/// Two processes serve one image for reading, and both ways of serving it are
/// right.
fn an_image_is_shared(made: Made, on_disk: bool) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    let served = [(); 2].map(|()| Served::start(&image.path, &["--read-only"], &[]));
    let mut guests = [0, 1].map(|number| Guest::attach(&served[number]));
    for (served, guest) in served.iter().zip(&mut guests) {
        if on_disk {
            served.wait_disk();
            guest.load(served, 0..SECTORS);
        } else {
            served.wait("the image to be somebody else's too", |now| {
                !now.on_disk && now.reason.contains("open")
            });
        }
        assert_eq!(guest.lane(1).see(0..SECTORS), all(FIRST, SECTORS));
    }
    let both = served.iter().all(|served| served.info().on_disk);
    assert_eq!(both, on_disk);
}

#[test]
fn two_processes_read_one_image_by_the_disk_on_ext4() {
    an_image_is_shared(EXT4, true);
}

#[test]
fn two_processes_read_one_image_by_the_file_on_xfs() {
    an_image_is_shared(XFS, false);
}
