//! The process is stopped for longer than the kernel waits for a lease. What
//! it was about to give to the kernel must not be given when it goes on, as
//! the blocks have become others'; and while the device under the image takes
//! no more requests, the kernel must not hold any for it: those would come
//! late whatever the process does.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use front_end::codes::status;
use front_end::{LIMIT, Op};
use rig::file_systems::{EXT4, Made, Mounted, XFS, sync};
use rig::image::FIRST;
use rig::model::{SECTOR, Value, content};
use rig::program::run;
use rig::random::Random;

use crate::break_time::{BreakTime, SHORT};
use crate::disturb::{Others, Stopper};
use crate::lane::{Lane, STEP, all};
use crate::served::{Guest, QUEUES, Served};

/// Bytes of an image, and its sectors.
const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// What the guests write.
const LATER: Value = 2;

/// A process that uses the disk path for an image of its own.
struct Busy {
    image: PathBuf,
    served: Served,
    guest: Guest,
}

impl Busy {
    fn start(host: &Mounted, number: usize, left_out: &str) -> Busy {
        let image = host.path(&format!("image-{number}"));
        std::fs::write(&image, content(FIRST, 0..SECTORS)).unwrap();
        sync(host);
        let served = Served::start_without(&image, &[], left_out);
        let mut guest = Guest::attach(&served);
        served.wait_disk();
        guest.load(&served, 0..SECTORS);
        Busy {
            image,
            served,
            guest,
        }
    }

    fn signal(&self, signal: i32) {
        self.served.daemon.signal(signal).unwrap();
    }
}

/// Processes that are stopped together: each is another chance to be stopped
/// between a look at the map and what follows from it.
const PROCESSES: usize = 6;
/// Requests of a queue that are made together.
const TOGETHER: usize = 16;
/// Sectors of each.
const SMALL: usize = 8;

/// Writes one batch after the other until `stop` is set.
fn write_batches(lane: &mut Lane<'_>, seed: u64, stop: &AtomicBool, count: &AtomicU64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        for slot in 0..TOGETHER {
            let part = slot * SECTORS / TOGETHER;
            let first = part + SMALL * random.below(SECTORS / TOGETHER / SMALL);
            lane.put(slot, Op::Write, first..first + SMALL, LATER);
        }
        lane.driver.publish().unwrap();
        for _ in 0..TOGETHER {
            // There may be no room for it.
            lane.driver.wait(LIMIT).unwrap();
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often a process is stopped until it is at work then.
const STOPS: usize = 2000;

/// Stops a process, if it can be while a worker is at work itself, not the
/// kernel for it: it may have looked at the map and be about to submit.
fn stop_at_work(served: &Served) {
    for _ in 0..STOPS {
        served.daemon.signal(libc::SIGSTOP).unwrap();
        if at_work(served.daemon.pid()) {
            return;
        }
        served.daemon.signal(libc::SIGCONT).unwrap();
        std::thread::yield_now();
    }
    served.daemon.signal(libc::SIGSTOP).unwrap();
}

/// Whether a worker of a process that is being stopped was not in a system
/// call.
fn at_work(pid: u32) -> bool {
    let outside = |task: PathBuf| {
        let read = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
        // It may take a moment to stop.
        let call = std::iter::repeat_with(|| read("syscall")).find(|call| call != "running\n");
        read("comm").starts_with("worker-") && call.is_some_and(|call| call.starts_with("-1 "))
    };
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .any(|task| outside(task.unwrap().path()))
}

/// Waits until the kernel lets us in, and takes the image's blocks away.
fn take_away(image: &Path) {
    let file = OpenOptions::new().write(true).open(image).unwrap();
    file.set_len(0).unwrap();
    file.set_len(BYTES as u64).unwrap();
}

/// Stops processes at any instant of their work, and has others take their
/// blocks; which of the others' files are spoilt when they go on.
fn stop_anywhere(made: Made, left_out: &str) -> Option<Vec<String>> {
    let host = Mounted::new(made)?;
    let short = BreakTime::seconds(SHORT)?;
    let mut busy: Vec<_> = (0..PROCESSES)
        .map(|number| Busy::start(&host, number, left_out))
        .collect();
    let mut others = Others::default();
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let mut processes = Vec::new();
        for (seed, busy) in (1..).step_by(QUEUES).zip(&mut busy) {
            for (seed, mut lane) in (seed..).zip(busy.guest.lanes()) {
                let (stop, count) = (&stop, &count);
                scope.spawn(move || write_batches(&mut lane, seed, stop, count));
            }
            processes.push((&busy.image, &busy.served));
        }
        let stopper = Stopper(&stop);
        let (_, first) = processes[0];
        first.wait("writes", |_| count.load(Ordering::Relaxed) > 1000);
        for (_, served) in &processes {
            stop_at_work(served);
        }
        std::thread::scope(|scope| {
            for &(image, _) in &processes {
                scope.spawn(move || take_away(image));
            }
        });
        others.occupy(&host, "new");
        for (_, served) in &processes {
            served.daemon.signal(libc::SIGCONT).unwrap();
        }
        let before = count.load(Ordering::Relaxed);
        let each = (PROCESSES * QUEUES) as u64;
        first.wait("writes afterwards", |_| {
            count.load(Ordering::Relaxed) > before + 2 * each
        });
        drop(stopper);
    });
    drop(short);
    for busy in &mut busy {
        for lane in busy.guest.lanes() {
            // Nothing is under way any more.
            lane.driver.flush().unwrap();
        }
    }
    Some(others.spoilt())
}

fn nothing_comes_late(made: Made) {
    if let Some(spoilt) = stop_anywhere(made, "") {
        assert_eq!(spoilt, Vec::<String>::new());
    }
}

#[test]
fn after_a_long_stop_at_any_instant_nothing_comes_late_on_ext4() {
    nothing_comes_late(EXT4);
}

#[test]
fn after_a_long_stop_at_any_instant_nothing_comes_late_on_xfs() {
    nothing_comes_late(XFS);
}

/// How often the control is run before it counts as having seen nothing.
const CHANCES: usize = 3;

#[test]
fn without_a_look_at_the_clock_before_raw_io_a_long_stop_corrupts() {
    for _ in 0..CHANCES {
        match stop_anywhere(EXT4, "clock") {
            Some(spoilt) if spoilt.is_empty() => {}
            _ => return,
        }
    }
    panic!("nothing was spoilt in {CHANCES} runs");
}

/// Writes of a queue while the device takes no more requests.
const WRITES: usize = 32;
/// Requests that the device takes.
const DEPTH: usize = 4;

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

/// A device that takes few requests at a time, until this is dropped: who has
/// it next would find it so.
struct Shallow {
    file: String,
    before: String,
}

impl Shallow {
    fn new(host: &Mounted) -> Shallow {
        let file = block(host, "queue/nr_requests");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, DEPTH.to_string()).unwrap();
        Shallow { file, before }
    }
}

impl Drop for Shallow {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.file, &self.before);
    }
}

/// Reads and writes that a device has not done yet.
fn in_flight(host: &Mounted) -> usize {
    let text = std::fs::read_to_string(block(host, "inflight")).unwrap();
    text.split_whitespace()
        .map(|word| word.parse::<usize>().unwrap())
        .sum()
}

/// How many of the kernel's threads of a process wait with raw I/O in their
/// hands.
fn raw_holders(pid: u32) -> usize {
    let holds = |task: &PathBuf| {
        let read = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
        read("comm").starts_with("iou-wrk-") && read("stack").contains("blkdev_")
    };
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| task.unwrap().path())
        .filter(holds)
        .count()
}

/// Fills the device's queue, and more; how many threads of the kernel hold raw
/// I/O then, and how many still do when others have got the image, although
/// the process was stopped.
fn fill_queue(made: Made, left_out: &str) -> Option<(usize, usize)> {
    let below = Mounted::new(BELOW)?;
    let host = Mounted::new_in(made, &below.root(), true)?;
    let mut busy = Busy::start(&host, 0, left_out);
    let short = BreakTime::seconds(SHORT)?;
    let _shallow = Shallow::new(&host);
    let frozen = Frozen::new(&below);
    let target = |queue, slot| {
        let first = (slot * QUEUES + queue) * STEP;
        first..first + STEP
    };
    for (queue, lane) in busy.guest.lanes().iter_mut().enumerate() {
        for slot in 0..WRITES {
            lane.put(slot, Op::Write, target(queue, slot), LATER);
        }
        lane.driver.publish().unwrap();
    }
    busy.served
        .wait("the device to take no more", |_| in_flight(&host) >= DEPTH);
    // What was tried in vain besides leaves no other trace.
    std::thread::sleep(Duration::from_millis(300));
    let pid = busy.served.daemon.pid();
    let before = raw_holders(pid);
    busy.signal(libc::SIGSTOP);
    let foreign = OpenOptions::new().write(true).open(&busy.image).unwrap();
    let after = raw_holders(pid);
    drop((foreign, frozen, short));
    busy.signal(libc::SIGCONT);
    for lane in busy.guest.lanes() {
        for _ in 0..WRITES {
            assert_eq!(lane.driver.wait(LIMIT).unwrap().status, status::OK);
        }
    }
    let end = WRITES * QUEUES * STEP;
    assert_eq!(busy.guest.lane(0).see(0..end), all(LATER, end));
    Some((before, after))
}

fn the_kernel_holds_nothing(made: Made) {
    assert!(matches!(fill_queue(made, ""), None | Some((0, 0))));
}

#[test]
fn the_kernel_holds_no_raw_io_for_a_full_device_on_ext4() {
    the_kernel_holds_nothing(EXT4);
}

#[test]
fn the_kernel_holds_no_raw_io_for_a_full_device_on_xfs() {
    the_kernel_holds_nothing(XFS);
}

#[test]
fn where_raw_io_may_wait_the_kernel_holds_it_longer_than_the_lease_lasts() {
    if let Some((before, after)) = fill_queue(EXT4, "nowait") {
        eprintln!("{before} threads held raw I/O, {after} when the lease had gone");
        assert!(before > 0 && after > 0);
    }
}
