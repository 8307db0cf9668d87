//! The process is killed with raw writes in flight, on a disk that is slowed
//! down. The lease must outlive it until the last of them has ended: whoever
//! opens the image before could give its blocks away.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::{Duration, Instant};

use front_end::codes::status;
use front_end::{Buffer, Op};
use rig::devices::{Slow, sectors_written};
use rig::file_systems::{EXT4, Made, Mounted, XFS, sync};
use rig::image::Image;
use rig::model::{SECTOR, Value, content, holds};

use crate::disturb::Others;
use crate::served::{Guest, QUEUE_DATA, QUEUE_MEMORY, QUEUES, Served};

/// Bytes of the image.
const BYTES: usize = 32 << 20;
/// Writes in flight, and the bytes of each.
const WRITES: usize = 32;
const LENGTH: usize = 128 << 10;
/// Bytes that the slow disk writes in a second.
const SPEED: u64 = 2 << 20;
/// What the guest writes, and what the next one does.
const SECOND: Value = 2;
const THIRD: Value = 3;

/// The sectors of the guest's write `number`: they lie apart.
fn target(number: usize) -> std::ops::Range<usize> {
    let first = number * (BYTES / SECTOR / WRITES);
    first..first + LENGTH / SECTOR
}

/// A process with writes in flight that take long.
struct Busy {
    host: Mounted,
    image: Image,
    served: Served,
    guest: Guest,
    slow: Slow,
    /// Sectors written to the disk before.
    before: u64,
}

impl Busy {
    fn start(made: Made, variables: &[(&str, &str)]) -> Option<Busy> {
        let host = Mounted::new(made)?;
        let slow = Slow::new(host.device().as_ref())?;
        let image = Image::written(&host, BYTES);
        let served = Served::start(&image.path, &[], variables);
        slow.add(served.daemon.pid());
        let mut guest = Guest::attach(&served);
        served.wait_disk();
        let data = |number: usize| {
            let queue = (number % QUEUES) as u64;
            (queue * QUEUE_MEMORY + QUEUE_DATA) + (number / QUEUES * LENGTH) as u64
        };
        let length = u32::try_from(LENGTH).unwrap();
        // The map knows all of it when it was all read by the disk.
        served.wait("the map to be loaded", |_| {
            let before = served.info().disk_operations;
            for number in 0..WRITES {
                let driver = &mut guest.drivers[number % QUEUES];
                let sector = target(number).start as u64;
                driver.read(sector, data(number), length).unwrap();
            }
            served.info().disk_operations == before + WRITES as u64
        });
        slow.limit(SPEED);
        let written = sectors_written(host.device().as_ref());
        let before = served.info().disk_operations;
        for number in 0..WRITES {
            let bytes = content(SECOND, target(number));
            guest.memory.write(data(number), &bytes).unwrap();
            let buffer = Buffer::readable(data(number), length);
            let driver = &mut guest.drivers[number % QUEUES];
            let sector = target(number).start as u64;
            assert!(driver.submit(Op::Write, sector, &[buffer], 0));
        }
        for driver in &mut guest.drivers {
            driver.publish().unwrap();
        }
        served.wait("all writes to be in flight", |now| {
            now.disk_operations >= before + WRITES as u64
        });
        Some(Busy {
            host,
            image,
            served,
            guest,
            slow,
            before: written,
        })
    }

    /// How many of the writes have ended.
    fn ended(&mut self) -> usize {
        let mut ended = 0;
        for driver in &mut self.guest.drivers {
            while driver.pop().unwrap().is_some() {
                ended += 1;
            }
        }
        ended
    }
}

/// For each ring of a process: whether the image is one of its files.
fn rings(pid: u32, image: &Path) -> Vec<bool> {
    let image = image.to_str().unwrap();
    let mut rings = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read_link(&path).is_ok_and(|to| to == Path::new("anon_inode:[io_uring]")) {
            let info = path.to_str().unwrap().replace("/fd/", "/fdinfo/");
            let text = std::fs::read_to_string(info).unwrap();
            rings.push(text.lines().any(|line| line.ends_with(image)));
        }
    }
    rings
}

/// Takes the image's blocks away as soon as it can be opened, with the process
/// killed before or not, and gives them to others; whether raw writes were
/// still to come then, and the files that have changed afterwards.
fn give_away(mut busy: Busy, kill: bool) -> (bool, Vec<String>) {
    if kill {
        busy.served.daemon.signal(libc::SIGKILL).unwrap();
    }
    let ended = busy.ended();
    assert!(ended < WRITES / 2, "{ended} writes have ended already");
    let start = Instant::now();
    let opened = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&busy.image.path)
        .unwrap();
    let all = (WRITES * LENGTH / SECTOR) as u64;
    let early = sectors_written(busy.host.device().as_ref()) - busy.before < all;
    eprintln!(
        "open(O_TRUNC) returned after {:?}, {ended} writes had ended",
        start.elapsed()
    );

    sync(&busy.host);
    let mut others = Others::default();
    let mut count = 0;
    while others
        .write(busy.host.path(&format!("new-{count}")), 4 << 20)
        .is_some()
    {
        count += 1;
    }
    assert!(count >= 20, "only {count} files found room");
    busy.slow.limit(0);
    if kill {
        busy.served.daemon.wait().unwrap();
    }
    // Longer than what was in flight could take if it still were.
    std::thread::sleep(Duration::from_secs((WRITES * LENGTH) as u64 / SPEED));
    drop(opened);
    (early, others.spoilt())
}

fn blocks_are_given_away_late(made: Made) {
    let Some(busy) = Busy::start(made, &[]) else {
        return;
    };
    let rings = rings(busy.served.daemon.pid(), &busy.image.path);
    assert!(
        rings.len() >= QUEUES && rings.iter().all(|&has| has),
        "{rings:?}"
    );
    assert_eq!(give_away(busy, true), (false, Vec::new()));
}

/// Where the rings do not hold the image, the lease ends with the process.
fn blocks_would_be_given_away_early(made: Made) {
    let variables = [("EXTENTD_TEST_UNREGISTERED", "1")];
    let Some(busy) = Busy::start(made, &variables) else {
        return;
    };
    let rings = rings(busy.served.daemon.pid(), &busy.image.path);
    assert!(rings.iter().all(|&has| !has), "{rings:?}");
    let (early, spoilt) = give_away(busy, true);
    assert!(early && !spoilt.is_empty(), "{early}, {spoilt:?}");
}

fn the_next_process_waits(made: Made) {
    let Some(mut busy) = Busy::start(made, &[]) else {
        return;
    };
    busy.served.daemon.signal(libc::SIGKILL).unwrap();
    let next = Served::start(&busy.image.path, &[], &[]);
    next.daemon
        .wait_stderr(|line| line.contains("waiting for another process's I/O"))
        .unwrap();
    busy.served.daemon.wait().unwrap();
    let mut guest = Guest::attach(&next);
    next.wait_disk();
    let length = u32::try_from(LENGTH).unwrap();
    for number in 0..WRITES {
        let sector = target(number).start as u64;
        let driver = &mut guest.drivers[0];
        // All that was in flight has arrived.
        driver.read(sector, QUEUE_DATA, length).unwrap();
        let bytes = guest.memory.read(QUEUE_DATA, LENGTH).unwrap();
        for (sector, bytes) in target(number).zip(bytes.chunks_exact(SECTOR)) {
            assert!(holds(SECOND, sector, bytes), "sector {sector}");
        }
        let bytes = content(THIRD, target(number));
        guest.memory.write(QUEUE_DATA, &bytes).unwrap();
        let done = guest.drivers[0].write(sector, QUEUE_DATA, length).unwrap();
        assert_eq!(done.status, status::OK);
    }
    assert_eq!(guest.drivers[0].flush().unwrap().status, status::OK);
    drop(guest);
    assert!(next.daemon.terminate().unwrap().success());
    let bytes = rig::files::read_direct(&busy.image.path);
    for number in 0..WRITES {
        for sector in target(number) {
            assert!(holds(THIRD, sector, &bytes[sector * SECTOR..][..SECTOR]));
        }
    }
}

#[test]
fn after_a_kill_blocks_are_given_away_only_when_raw_writes_have_ended_on_ext4() {
    blocks_are_given_away_late(EXT4);
}

#[test]
fn after_a_kill_blocks_are_given_away_only_when_raw_writes_have_ended_on_xfs() {
    blocks_are_given_away_late(XFS);
}

fn a_running_process_drains_first(made: Made) {
    if let Some(busy) = Busy::start(made, &[]) {
        assert_eq!(give_away(busy, false), (false, Vec::new()));
    }
}

#[test]
fn blocks_are_given_away_only_when_raw_writes_have_ended_on_ext4() {
    a_running_process_drains_first(EXT4);
}

#[test]
fn blocks_are_given_away_only_when_raw_writes_have_ended_on_xfs() {
    a_running_process_drains_first(XFS);
}

#[test]
fn without_the_image_in_the_rings_a_kill_corrupts_others_on_ext4() {
    blocks_would_be_given_away_early(EXT4);
}

#[test]
fn without_the_image_in_the_rings_a_kill_corrupts_others_on_xfs() {
    blocks_would_be_given_away_early(XFS);
}

#[test]
fn after_a_kill_the_next_process_waits_for_raw_writes_on_ext4() {
    the_next_process_waits(EXT4);
}

#[test]
fn after_a_kill_the_next_process_waits_for_raw_writes_on_xfs() {
    the_next_process_waits(XFS);
}
