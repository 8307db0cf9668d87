//! What was flushed is there after a crash.
//!
//! A crash is a copy of the disk at one instant, mounted: the file system
//! replays its journal there. The disk is a file in another XFS, and the copy
//! a clone of that file (FICLONE): for the clone that XFS waits for the writes
//! to the file that have begun, lets no other begin, and writes its page cache
//! of the file back, so the clone holds exactly what the disk had been given
//! up to one moment. (The disk goes through that page cache: with direct I/O
//! the clone's larger unit of writing would become its sector.) A real disk may lose besides
//! what it was given after the last flush that reached it; that each FLUSH
//! does reach it is tested for itself, by the disk's counters.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use front_end::Op;
use front_end::codes::feature;
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::files::reflink;
use rig::image::{Image, Kind, PIECE, SECTORS, kind, sectors};
use rig::model::{Model, SECTOR};
use rig::program::run;
use rig::random::Random;

use crate::client::Client;
use crate::disturb;
use crate::served::{Guest, Info, Served};

/// How often the disk is copied. Every third time the process is killed first.
const CRASHES: usize = 12;

/// A file that is mounted as a disk, once.
struct Copied {
    device: String,
    root: PathBuf,
}

impl Copied {
    fn mount(disk: &Path, ext4: bool) -> Copied {
        let mut losetup = Command::new("losetup");
        let device = run(losetup.args(["--find", "--show"]).arg(disk)).unwrap();
        let device = device.trim().to_owned();
        let root = disk.with_extension("mnt");
        std::fs::create_dir_all(&root).unwrap();
        let copied = Copied { device, root };
        // The original with the same UUID is mounted too.
        let options = if ext4 { "rw" } else { "nouuid" };
        let mut mount = Command::new("mount");
        mount.args(["-o", options, &copied.device]);
        run(mount.arg(&copied.root)).unwrap();
        copied
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.root));
        let _ = run(Command::new("losetup").args(["--detach", &self.device]));
    }
}

/// Copies the disk as it is now.
fn copy(host: &Mounted) -> PathBuf {
    let path = host.backing().with_file_name("copy");
    let (disk, copy) = (
        File::open(host.backing()).unwrap(),
        File::create(&path).unwrap(),
    );
    reflink(&disk, &copy).unwrap();
    path
}

/// The sectors of the image that a copy of the disk has lost.
fn lost(disk: &Path, ext4: bool, model: &Model) -> Vec<String> {
    let copied = Copied::mount(disk, ext4);
    let lost = model.lost(&disturb::cat(&copied.root.join("image")));
    run(Command::new("umount").arg(&copied.root)).unwrap();
    disturb::check(ext4, &copied.device).unwrap();
    lost
}

/// Crashes at random instants; what was lost, by crash. Ends with the first
/// loss.
fn crash(made: Made, variables: &[(&str, &str)]) -> Option<Vec<String>> {
    let outer = Mounted::new(Made {
        megabytes: 1024,
        ..XFS
    })?;
    let host = Mounted::new_in(made, &outer.root(), false)?;
    let image = Image::scattered(&host);
    let full = AtomicBool::new(false);
    let mut served = Served::start(&image.path, &[], variables);
    let mut guest = Guest::attach(&served);
    let mut random = Random(0x1234_5678_9abc);
    let mut client = Client::new(
        (0, guest.drivers.remove(0)),
        &guest.memory,
        Model::new(&image.values),
        SECTORS,
        &full,
    );
    let mut disk_operations = 0;
    for round in 0..CRASHES {
        served.wait_disk();
        client.requests(50 + random.below(300));
        client.flush();
        // What is not flushed may be there or not.
        client.requests(random.below(100));
        let killed = round % 3 == 2;
        if killed {
            disk_operations += served.info().disk_operations;
            served.daemon.signal(libc::SIGKILL).unwrap();
            served.daemon.wait().unwrap();
        }
        let disk = copy(&host);
        let lost = lost(&disk, host.is_ext4(), &client.model);
        if !lost.is_empty() {
            return Some(lost);
        }
        if killed {
            served = Served::start(&image.path, &[], variables);
            guest = Guest::attach(&served);
            client.move_to(guest.drivers.remove(0), &guest.memory);
        }
    }
    client.drain();
    assert!(client.wrong.is_empty(), "{:?}", client.wrong);
    disk_operations += served.info().disk_operations;
    assert!(
        disk_operations > 500,
        "{disk_operations} requests went by the disk"
    );
    drop(guest);
    assert!(served.daemon.terminate().unwrap().success());
    Some(Vec::new())
}

/// Requests without a copy, by the disk and by the file, that each change of
/// an extent takes.
fn operations(kind: Kind, op: Op, unmap: bool, shares: bool) -> (u64, u64) {
    let shared = kind == Kind::Shared && shares;
    match (kind, op) {
        (Kind::Written | Kind::Shared, Op::Write) if !shared => (1, 0),
        (Kind::Written | Kind::Shared, Op::WriteZeroes) if !shared && !unmap => (1, 0),
        (_, Op::Write) => (0, 1),
        _ => (0, 0),
    }
}

/// Each kind of extent with each kind of change, flushed, and then a crash. A
/// guest that cannot flush relies on each change as soon as it has ended.
fn each_row(made: Made, flushes: bool) {
    let outer = Mounted::new(Made {
        megabytes: 1024,
        ..XFS
    });
    let Some(outer) = outer else { return };
    let Some(host) = Mounted::new_in(made, &outer.root(), false) else {
        return;
    };
    let image = Image::scattered(&host);
    let full = AtomicBool::new(false);
    let served = Served::start(&image.path, &[], &[]);
    let cannot = if flushes {
        0
    } else {
        feature::FLUSH | feature::CONFIG_WCE
    };
    let mut guest = Guest::attach_with(&served, feature::ALL & !cannot);
    let queue = (0, guest.drivers.remove(0));
    let model = Model::new(&image.values);
    let mut client = Client::new(queue, &guest.memory, model, SECTORS, &full);
    served.wait_disk();
    let changes = [
        (Op::Write, false),
        (Op::Discard, false),
        (Op::WriteZeroes, false),
        (Op::WriteZeroes, true),
    ];
    for wanted in [Kind::Written, Kind::Unwritten, Kind::Hole, Kind::Shared] {
        for (number, (op, unmap)) in changes.into_iter().enumerate() {
            let pieces = (0..SECTORS * SECTOR / PIECE).filter(|&piece| kind(piece) == wanted);
            for piece in pieces.skip(number * 6).take(6) {
                let first = sectors(piece).start;
                let before = load(&served, &mut client, sectors(piece));
                client.ask(op, first + 8..first + 48, unmap);
                let after = served.info();
                let by_disk = after.disk_operations - before.disk_operations;
                let by_file = after.file_operations - before.file_operations;
                let takes = operations(wanted, op, unmap, image.twin.is_some());
                assert_eq!((by_disk, by_file), takes, "{wanted:?}, {op:?}");
                // Ragged, and over what has just been changed.
                client.ask(op, first + 61..first + 99, unmap);
                client.ask(op, first + 40..first + 56, unmap);
            }
            if flushes {
                client.flush();
            } else if op == Op::Discard {
                // Nobody has been promised anything of what was there.
                continue;
            } else {
                client.settle();
            }
            let lost = lost(&copy(&host), host.is_ext4(), &client.model);
            assert!(lost.is_empty(), "{wanted:?}, {op:?}: {lost:?}");
        }
    }
    assert!(client.wrong.is_empty(), "{:?}", client.wrong);
}

/// Reads a piece until the map knows it.
fn load(served: &Served, client: &mut Client<'_>, piece: Range<usize>) -> Info {
    let mut before = served.info().file_operations;
    served.wait("the map to be loaded", |now| {
        let known = now.file_operations == before;
        before = now.file_operations;
        client.ask(Op::Read, piece.clone(), false);
        known && served.info().file_operations == before
    });
    served.info()
}

#[test]
fn each_change_of_each_extent_is_there_after_a_crash_of_ext4() {
    each_row(EXT4, true);
}

#[test]
fn each_change_without_a_flush_is_stable_when_it_ends_on_ext4() {
    each_row(EXT4, false);
}

#[test]
fn each_change_of_each_extent_is_there_after_a_crash_of_xfs() {
    each_row(XFS, true);
}

#[test]
fn each_change_without_a_flush_is_stable_when_it_ends_on_xfs() {
    each_row(XFS, false);
}

/// The blocks are moved, the guest writes to where they are now and flushes,
/// and then a crash: the move must be as stable as what was written.
///
/// Not on XFS: that of Linux 6.18 cannot replay its own journal after xfs_fsr
/// on such an image, also where no other program has ever opened it.
fn moved_blocks(made: Made) {
    let outer = Mounted::new(Made {
        megabytes: 1024,
        ..XFS
    });
    let Some(outer) = outer else { return };
    let Some(host) = Mounted::new_in(made, &outer.root(), false) else {
        return;
    };
    let image = Image::scattered(&host);
    let full = AtomicBool::new(false);
    // e4defrag leaves a locked file alone.
    let served = Served::start(&image.path, &["--lock", "off"], &[]);
    let mut guest = Guest::attach(&served);
    let queue = (0, guest.drivers.remove(0));
    let model = Model::new(&image.values);
    let mut client = Client::new(queue, &guest.memory, model, SECTORS, &full);
    let before = served.wait_disk();
    // So that the next one has nothing of the file to sync.
    client.flush();
    disturb::defragment(&host, &image.path);
    served.wait("the disk path again", |now| {
        now.on_disk && now.entries > before.entries
    });
    let pieces = (0..SECTORS * SECTOR / PIECE).filter(|&piece| kind(piece) == Kind::Written);
    let mut by_disk = 0;
    // What the file system's journal had there before may still be in the
    // device's cache: such a piece goes by the file.
    for piece in pieces {
        let before = load(&served, &mut client, sectors(piece));
        client.ask(Op::Write, sectors(piece), false);
        by_disk += served.info().disk_operations - before.disk_operations;
        if by_disk == 20 {
            break;
        }
    }
    assert_eq!(by_disk, 20);
    client.flush();
    let mut lost = lost(&copy(&host), host.is_ext4(), &client.model);
    let count = lost.len();
    lost.truncate(5);
    assert_eq!(count, 0, "{lost:#?}");
}

#[test]
fn what_was_flushed_to_moved_blocks_is_there_after_a_crash_of_ext4() {
    moved_blocks(EXT4);
}

fn nothing_is_lost(made: Made) {
    if let Some(mut lost) = crash(made, &[]) {
        let count = lost.len();
        lost.truncate(5);
        assert_eq!(count, 0, "{lost:#?}");
    }
}

/// A FLUSH that only flushes the disk loses what the file system's records say.
fn it_would_be_lost(made: Made) {
    if let Some(lost) = crash(made, &[("EXTENTD_TEST_NO_FILE_SYNC", "1")]) {
        eprintln!("{}: {} sectors lost", made.name, lost.len());
        assert!(!lost.is_empty());
    }
}

#[test]
fn what_was_flushed_is_there_after_a_crash_of_ext4() {
    nothing_is_lost(EXT4);
}

#[test]
fn what_was_flushed_is_there_after_a_crash_of_xfs() {
    nothing_is_lost(XFS);
}

#[test]
fn without_syncing_the_file_flushed_data_is_lost_on_ext4() {
    it_would_be_lost(EXT4);
}

#[test]
fn without_syncing_the_file_flushed_data_is_lost_on_xfs() {
    it_would_be_lost(XFS);
}
