//! XFS empties the COW fork of a file only while none of its pages is dirty,
//! and takes a file for dirty until its inode was written back, which no sync
//! of the file does: giving back what was set aside for copies on write then
//! ends well and does nothing.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;

use front_end::codes::status;
use rig::file_systems::{Mounted, XFS, sync};
use rig::files::{reflink, write_direct};
use rig::image::{BYTES, FIRST, Image, SECTORS};
use rig::model::{SECTOR, content};
use rig::program::run;

use crate::lane::all;
use crate::served::{Guest, Served};

/// Sectors of a block of the file system.
const BLOCK: usize = 8;

#[test]
fn a_file_whose_pages_were_dirty_moves_nothing_of_a_swap_disk() {
    let Some(host) = Mounted::new(XFS) else {
        return;
    };
    // The image is in so many pieces that what is set aside could be the tree
    // of its extents as well.
    let image = Image::scattered(&host);
    std::fs::remove_file(image.twin.unwrap()).unwrap();
    let hint = ["-c", "cowextsize 64k"];
    run(Command::new("xfs_io").args(hint).arg(&image.path)).unwrap();
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&image.path)
            .unwrap()
    };
    let direct = open(libc::O_DIRECT);
    write_direct(&direct, &content(FIRST, 0..SECTORS), 0);
    reflink(&direct, &host.create("copy")).unwrap();
    let first = BYTES / 2;
    write_direct(
        &direct,
        &content(FIRST, first / SECTOR..first / SECTOR + BLOCK),
        first,
    );
    std::fs::remove_file(host.path("copy")).unwrap();
    sync(&host);
    // Others write, and sync what they have written.
    let buffered = open(0);
    buffered.write_all_at(&content(FIRST, 0..BLOCK), 0).unwrap();
    buffered.sync_all().unwrap();
    drop((direct, buffered));

    let served = Served::start(&image.path, &["--swap=best-effort"], &[]);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..BYTES / SECTOR);
    let next = first / SECTOR + BLOCK..first / SECTOR + 2 * BLOCK;
    assert_eq!(guest.lane(0).see(next.clone()), all(FIRST, BLOCK));
    assert_eq!(guest.lane(0).write_ragged(next.clone(), 2), status::OK);
    assert_eq!(guest.lane(0).see(next), all(2, BLOCK));
}
