//! XFS keeps blocks for writes to extents that were shared once (the COW
//! fork), also after the other file has gone. A file write goes there though
//! FIEMAP says that the extent is the image's own, and moves it: a map that
//! believes FIEMAP goes on with the old blocks.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use extentd::operator::control::Request;
use front_end::codes::status;
use rig::file_systems::{Mounted, XFS, sync};
use rig::files::{reflink, write_direct};
use rig::image::{FIRST, Image};
use rig::model::{SECTOR, Value, content};
use rig::program::run;

use crate::disturb::Others;
use crate::lane::{Seen, all};
use crate::served::{Guest, Served};

/// Bytes of the image.
const BYTES: usize = 32 << 20;
/// Sectors of a block of the file system.
const BLOCK: usize = 8;
/// Blocks from one to the next that is written while the image is shared: each
/// leaves so many in the COW fork around it.
const APART: usize = 32;
/// What is written while it is shared, afterwards by the file, and in the end.
const SHARED: Value = 2;
const MOVED: Value = 3;
const LAST: Value = 4;

/// When somebody copies the image by reference, and removes the copy again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    /// Before the process starts.
    Before,
    /// While it serves, as a backup does.
    Meanwhile,
}

/// The sectors of one in so many blocks, the `number`-th of each.
fn blocks(number: usize) -> impl Iterator<Item = Range<usize>> {
    (number * BLOCK..BYTES / SECTOR)
        .step_by(APART * BLOCK)
        .map(|first| first..first + BLOCK)
}

/// How many sectors these are.
fn sectors() -> usize {
    blocks(0).count() * BLOCK
}

/// What some blocks hold.
fn see(guest: &mut Guest, number: usize) -> Seen {
    let mut seen = Seen::new();
    for block in blocks(number) {
        for (name, count) in guest.lane(0).see(block) {
            *seen.entry(name).or_default() += count;
        }
    }
    seen
}

/// A copy of an image that shares all of its blocks.
fn copy(host: &Mounted, image: &File) -> PathBuf {
    let path = host.path("copy");
    reflink(image, &File::create(&path).unwrap()).unwrap();
    path
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// What the guest reads of what it has written by the file, at once and
    /// when others have taken every free block.
    at_once: Seen,
    later: Seen,
    /// Other files that were spoilt.
    spoilt: Vec<String>,
}

impl Outcome {
    fn check(&self) {
        assert_eq!(self.at_once, all(MOVED, sectors()), "{self:#?}");
        assert_eq!(self.later, all(MOVED, sectors()), "{self:#?}");
        assert_eq!(self.spoilt, Vec::<String>::new());
    }
}

fn leave_a_fork(copied: Copied, arguments: &[&str], left_out: &str) -> Option<Outcome> {
    let host = Mounted::new(XFS)?;
    let image = Image::written(&host, BYTES);
    if copied == Copied::Before {
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&image.path)
            .unwrap();
        let copy = copy(&host, &direct);
        for block in blocks(0) {
            let at = block.start * SECTOR;
            write_direct(&direct, &content(SHARED, block), at);
        }
        direct.sync_all().unwrap();
        std::fs::remove_file(copy).unwrap();
        sync(&host);
    }
    let served = Served::start_without(&image.path, arguments, left_out);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    if copied == Copied::Meanwhile {
        let backup = File::open(&image.path).unwrap();
        let copy = copy(&host, &backup);
        for block in blocks(0) {
            assert_eq!(guest.lane(0).write(block, SHARED), status::OK);
        }
        std::fs::remove_file(copy).unwrap();
        sync(&host);
        drop(backup);
        served.wait_disk();
    }
    guest.load(&served, 0..BYTES / SECTOR);
    assert_eq!(see(&mut guest, 0), all(SHARED, sectors()));
    assert_eq!(see(&mut guest, 1), all(FIRST, sectors()));

    for block in blocks(1) {
        let before = block.start - BLOCK..block.start;
        assert_eq!(guest.lane(0).see(before), all(SHARED, BLOCK));
        assert_eq!(guest.lane(0).write_ragged(block, MOVED), status::OK);
    }
    let at_once = see(&mut guest, 1);
    // Ordinary files get the last blocks too.
    let root = host.root();
    let _ = run(Command::new("xfs_io")
        .args(["-x", "-c", "resblks 1"])
        .arg(&root));
    let mut others = Others::default();
    others.occupy(&host, "new");
    let later = see(&mut guest, 1);
    if left_out.is_empty() && !arguments.is_empty() {
        let properties = served.ask(&Request::Selftest {})["properties"].take();
        for name in ["map_true", "cow_fork_empty"] {
            assert_eq!(properties[name]["held"], true, "{properties:#}");
        }
    }
    for block in blocks(1) {
        guest.lane(0).write(block, LAST);
    }
    guest.lane(0).flush();
    Some(Outcome {
        at_once,
        later,
        spoilt: others.spoilt(),
    })
}

const SWAP: &[&str] = &["--swap=best-effort"];

fn nothing_goes_wrong(copied: Copied, arguments: &[&str]) {
    if let Some(outcome) = leave_a_fork(copied, arguments, "") {
        outcome.check();
    }
}

#[test]
fn a_copy_that_came_and_went_before_the_start_moves_nothing_of_a_swap_disk() {
    nothing_goes_wrong(Copied::Before, SWAP);
}

#[test]
fn a_backup_that_copies_by_reference_moves_nothing_of_a_swap_disk() {
    nothing_goes_wrong(Copied::Meanwhile, SWAP);
}

#[test]
fn a_copy_that_came_and_went_before_the_start_leaves_no_stale_map() {
    nothing_goes_wrong(Copied::Before, &[]);
}

#[test]
fn a_backup_that_copies_by_reference_leaves_no_stale_map() {
    nothing_goes_wrong(Copied::Meanwhile, &[]);
}

fn old_blocks_are_used(copied: Copied) {
    if let Some(outcome) = leave_a_fork(copied, SWAP, "cow") {
        eprintln!("{outcome:#?}");
        assert!(outcome.at_once.contains_key("1"), "nothing was stale");
        assert!(outcome.later.contains_key("foreign"), "nothing was foreign");
        assert!(!outcome.spoilt.is_empty(), "nothing was spoilt");
    }
}

#[test]
fn where_the_cow_fork_is_not_looked_for_a_copy_before_the_start_corrupts() {
    old_blocks_are_used(Copied::Before);
}

#[test]
fn where_the_cow_fork_is_not_looked_for_a_backup_corrupts() {
    old_blocks_are_used(Copied::Meanwhile);
}
