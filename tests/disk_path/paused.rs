//! The process is stopped for longer than the kernel waits for a lease while
//! the device under the image takes no more requests. What the kernel holds of
//! its requests then must not be given to the device when it goes on, as the
//! blocks have become others'.
//!
//! The device is a file on a file system that is frozen, so that its queue,
//! made short, stays full for as long as the test likes.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use front_end::{LIMIT, Op};

use crate::break_time::{BreakTime, SHORT};
use crate::common::{EXT4, Made, Mounted, XFS, run};
use crate::disturb::Others;
use crate::image::{FIRST, sync};
use crate::lane::STEP;
use crate::model::{SECTOR, Value, content};
use crate::random::Random;
use crate::rig::{Guest, QUEUES, Served};

/// Processes that are stopped together, each with an image of its own.
const PROCESSES: usize = 6;
/// Bytes of an image, and its sectors.
const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// Writes of a queue.
const WRITES: usize = 32;
/// Requests that the device takes.
const DEPTH: usize = 4;
/// Most microseconds from a process's requests to its stop.
const LATEST: usize = 3000;
/// What the guests write.
const LATER: Value = 2;

/// The file system with the file that is the device.
const BELOW: Made = Made {
    megabytes: 512,
    ..EXT4
};

/// A device that does nothing until this is dropped.
struct Frozen<'a>(&'a Mounted);

impl<'a> Frozen<'a> {
    fn new(below: &'a Mounted) -> Frozen<'a> {
        run(Command::new("fsfreeze").arg("-f").arg(below.root())).unwrap();
        Frozen(below)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(self.0.root())).unwrap();
    }
}

fn block(host: &Mounted, name: &str) -> String {
    let device = host.device().rsplit('/').next().unwrap();
    format!("/sys/block/{device}/{name}")
}

/// Reads and writes that a device has not done yet.
fn in_flight(host: &Mounted) -> usize {
    let text = std::fs::read_to_string(block(host, "inflight")).unwrap();
    text.split_whitespace()
        .map(|word| word.parse::<usize>().unwrap())
        .sum()
}

/// The kernel's threads of a process that wait with raw I/O in their hands.
fn raw_holders(pid: u32) -> Vec<String> {
    let mut holders = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let read = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
        if read("comm").starts_with("iou-wrk-") && read("stack").contains("blkdev_") {
            holders.push(read("comm").trim().to_owned());
        }
    }
    holders
}

struct Stopped {
    image: PathBuf,
    served: Served,
    guest: Guest,
}

impl Stopped {
    fn start(host: &Mounted, number: usize, left_out: &str) -> Stopped {
        let path = host.path(&format!("image-{number}"));
        std::fs::write(&path, content(FIRST, 0..SECTORS)).unwrap();
        sync(host);
        let served = Served::start_without(&path, &[], left_out);
        let mut guest = Guest::attach(&served);
        served.wait_disk();
        guest.load(&served, 0..SECTORS);
        Stopped {
            image: path,
            served,
            guest,
        }
    }

    /// Many writes at once, apart from each other.
    fn submit(&mut self) {
        for (queue, lane) in self.guest.lanes().iter_mut().enumerate() {
            for slot in 0..WRITES {
                let first = (slot * QUEUES + queue) * (SECTORS / WRITES / QUEUES);
                lane.put(slot, Op::Write, first..first + STEP, LATER);
            }
            lane.driver.publish().unwrap();
        }
    }
}

/// Waits until the kernel lets us in, and takes the image's blocks away.
fn take_away(image: &Path) -> File {
    let file = OpenOptions::new().write(true).open(image).unwrap();
    file.set_len(0).unwrap();
    file.set_len(BYTES as u64).unwrap();
    file
}

/// What came of it.
struct Outcome {
    /// Threads that held raw I/O while the device took no more.
    holders: usize,
    /// Other files that were spoilt.
    spoilt: Vec<String>,
}

fn pause(made: Made, left_out: &str) -> Option<Outcome> {
    let below = Mounted::new(BELOW)?;
    let host = Mounted::new_in(made, &below.root(), true)?;
    std::fs::write(block(&host, "queue/nr_requests"), DEPTH.to_string()).unwrap();
    let mut all: Vec<_> = (0..PROCESSES)
        .map(|number| Stopped::start(&host, number, left_out))
        .collect();
    let frozen = Frozen::new(&below);
    let (first, later) = all.split_first_mut().unwrap();
    first.submit();
    first
        .served
        .wait("the device to take no more", |_| in_flight(&host) >= DEPTH);
    // What it has tried in vain leaves no other trace.
    std::thread::sleep(Duration::from_millis(300));
    let holders = raw_holders(first.served.daemon.pid()).len();
    first.served.daemon.signal(libc::SIGSTOP).unwrap();
    // The others are stopped before the kernel has seen to all of it.
    let mut random = Random(0x6c07_8965_2b1f_54a7);
    for stopped in later {
        stopped.submit();
        std::thread::sleep(Duration::from_micros(random.below(LATEST) as u64));
        stopped.served.daemon.signal(libc::SIGSTOP).unwrap();
    }
    drop(frozen);

    let short = BreakTime::seconds(SHORT)?;
    let foreign: Vec<_> = std::thread::scope(|scope| {
        let opens: Vec<_> = all
            .iter()
            .map(|stopped| &stopped.image)
            .map(|image| scope.spawn(|| take_away(image)))
            .collect();
        opens.into_iter().map(|open| open.join().unwrap()).collect()
    });
    drop(short);
    let mut others = Others::default();
    others.occupy(&host, "new");
    for stopped in &mut all {
        stopped.served.daemon.signal(libc::SIGCONT).unwrap();
    }
    for stopped in &mut all {
        for lane in stopped.guest.lanes() {
            for _ in 0..WRITES {
                // There may be no room for it.
                lane.driver.wait(LIMIT).unwrap();
            }
            // Nothing is under way any more.
            lane.driver.flush().unwrap();
        }
    }
    drop(foreign);
    Some(Outcome {
        holders,
        spoilt: others.spoilt(),
    })
}

fn nothing_comes_late(made: Made) {
    if let Some(outcome) = pause(made, "") {
        assert_eq!(outcome.holders, 0, "threads of the kernel hold raw I/O");
        assert_eq!(outcome.spoilt, Vec::<String>::new());
    }
}

#[test]
fn after_a_long_stop_nothing_comes_late_from_a_full_queue_on_ext4() {
    nothing_comes_late(EXT4);
}

#[test]
fn after_a_long_stop_nothing_comes_late_from_a_full_queue_on_xfs() {
    nothing_comes_late(XFS);
}

#[test]
fn where_the_kernel_holds_raw_writes_a_long_stop_corrupts() {
    if let Some(outcome) = pause(EXT4, "nowait,clock") {
        assert!(outcome.holders > 0, "no thread held raw I/O");
        assert!(!outcome.spoilt.is_empty(), "nothing was spoilt");
    }
}
