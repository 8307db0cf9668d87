//! The disk path as whoever uses the library has it, on real file systems.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::mpsc;

use mapping::path::{Buffer, DiskPath, Obstacle, Options, Piece, Plan, Swap, Way, Worker};
use rig::file_systems::{EXT4, Mounted, XFS};
use rig::files::pattern;

/// Bytes of the file, all written.
const BYTES: u64 = 4 << 20;

fn open(fs: &Mounted) -> Arc<File> {
    let image = fs.create("image");
    image.write_all_at(&pattern(1, 0, 4 << 20), 0).unwrap();
    image.sync_all().unwrap();
    drop(image);
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_DIRECT);
    Arc::new(how.open(fs.path("image")).unwrap())
}

/// The disk path of a file, in use, and a worker of it.
fn in_use(file: &Arc<File>) -> (DiskPath, Worker) {
    let path = DiskPath::open(file, &Options::default()).unwrap();
    path.want();
    path.try_now().unwrap();
    let worker = path.worker().unwrap();
    (path, worker)
}

/// Whether somebody else who does not wait may have the file.
fn is_free(fs: &Mounted) -> bool {
    let mut how = OpenOptions::new();
    how.write(true).custom_flags(libc::O_NONBLOCK);
    how.open(fs.path("image")).is_ok()
}

/// The plan of a raw write, once the map is loaded there.
fn planned(worker: &mut Worker) -> Plan {
    let mut plan = Plan::default();
    loop {
        worker.turn();
        if worker.plan_write(0..4096, &mut plan) {
            return plan;
        }
        worker.idle();
        std::thread::yield_now();
    }
}

#[test]
fn the_path_is_not_left_before_what_was_planned_has_ended() {
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let (path, mut worker) = in_use(&open(&fs));
        let mut plan = planned(&mut worker);
        assert!(plan.pieces().len() == 1 && worker.may_submit().is_some());
        std::thread::scope(|scope| {
            let (left, is_left) = mpsc::channel();
            let path = &path;
            scope.spawn(move || {
                path.unwant();
                left.send(()).unwrap();
            });
            // The guard has begun to leave, and nothing new is planned.
            while path.map().enabled() {
                std::thread::yield_now();
            }
            worker.turn();
            assert!(!worker.plan_write(4096..8192, &mut Plan::default()));
            assert!(!is_free(&fs), "the file is given away under I/O in flight");
            assert!(is_left.try_recv().is_err());
            plan.release();
            worker.idle();
            is_left.recv().unwrap();
        });
        assert!(is_free(&fs));
    }
}

#[test]
fn a_worker_that_goes_before_its_io_leaves_the_lease_to_the_kernel() {
    let Some(fs) = Mounted::new(EXT4) else {
        return;
    };
    let file = open(&fs);
    let (path, mut worker) = in_use(&file);
    let plan = planned(&mut worker);
    drop(worker);
    path.unwant();
    assert!(!is_free(&fs), "the file is given away under I/O in flight");
    assert!(matches!(path.try_now(), Err(Obstacle::Abandoned)));
    drop(path);
    assert!(!is_free(&fs));
    drop(plan);
    // The last descriptor, as when a ring has ended.
    drop(file);
    while !is_free(&fs) {
        std::thread::yield_now();
    }
}

#[test]
fn what_the_device_does_not_take_at_once_goes_by_the_file() {
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        let (path, mut worker) = in_use(&open(&fs));
        let plan = planned(&mut worker);
        let [
            Piece {
                way: Way::Disk(disk),
                ..
            },
        ] = plan.pieces()
        else {
            panic!("{plan:?}");
        };
        let disk = *disk;
        drop(plan);
        // Pages of the device's own cache are in the way of what must not wait.
        let device = File::open(fs.device()).unwrap();
        let mut block = Buffer::new(4096);
        device.read_exact_at(&mut block, disk).unwrap();
        block.copy_from_slice(&pattern(2, 0, 4096));
        worker.write_at(&block, 0).unwrap();
        block.fill(0);
        worker.read_at(&mut block, 0).unwrap();
        assert_eq!(block[..], pattern(2, 0, 4096));
        path.sync().unwrap();
        let file = File::open(fs.path("image")).unwrap();
        let mut seen = vec![0; 4096];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, pattern(2, 0, 4096));
    }
}

#[test]
fn what_cannot_be_right_is_refused_with_its_reason() {
    let Some(fs) = Mounted::new(EXT4) else {
        return;
    };
    let file = open(&fs);
    let buffered = Arc::new(File::open(fs.path("image")).unwrap());
    let refused = |file, options| DiskPath::open(file, &options).unwrap_err();
    assert!(matches!(
        refused(&buffered, Options::default()),
        Obstacle::Buffered
    ));
    drop(buffered);

    // Nobody has asked for the path: the file is free, and requests go by it.
    let path = DiskPath::open(&file, &Options::default()).unwrap();
    assert!(!path.situation().on_disk);
    let mut worker = path.worker().unwrap();
    let mut block = Buffer::new(4096);
    worker.read_at(&mut block, 4096).unwrap();
    assert_eq!(block[..], pattern(1, 4096, 4096));
    assert!(worker.read_at(&mut block, BYTES).is_err());
    assert!(worker.write_at(&block, BYTES - 512).is_err());
    path.forbid();
    path.want();
    assert_eq!(path.situation().reason, "the disk path was forbidden");
    drop((worker, path));

    // Read-only, nothing is written by the disk either.
    let mut how = OpenOptions::new();
    drop(file);
    let file = Arc::new(
        how.read(true)
            .custom_flags(libc::O_DIRECT)
            .open(fs.path("image"))
            .unwrap(),
    );
    let path = DiskPath::open(&file, &Options::default().read_only(true)).unwrap();
    path.want();
    path.try_now().unwrap();
    let mut worker = path.worker().unwrap();
    let written = worker.write_at(&block, 0).unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EBADF));
    drop((worker, path, file));

    fs.create("sparse").set_len(BYTES).unwrap();
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_DIRECT);
    let sparse = Arc::new(how.open(fs.path("sparse")).unwrap());
    let path = DiskPath::open(&sparse, &Options::default().swap(Some(Swap::Demanded))).unwrap();
    assert!(matches!(path.try_now(), Err(Obstacle::Unfit(survey)) if survey.holes == BYTES));
}
