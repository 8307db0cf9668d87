//! The disk shrinks while changes wait that reach beyond its new end. Each
//! comes before the shrinking or not at all: none may leave a map behind that
//! is not true, make the image longer again, or touch what others have got.

use std::fs::OpenOptions;
use std::ops::Range;
use std::time::{Duration, Instant};

use front_end::codes::status;
use front_end::{LIMIT, Op};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::files::read_direct;
use rig::image::Image;
use rig::model::{SECTOR, Value};
use rig::random::Random;

use crate::disturb::Others;
use crate::lane::{STEP, look};
use crate::served::{Guest, Served};

/// Bytes of the disk, and of the smaller one.
const BIG: usize = 32 << 20;
const SMALL: usize = 16 << 20;
/// The first sector beyond the smaller one.
const END: usize = SMALL / SECTOR;
/// Sectors on either side of it that are looked at.
const SIDE: usize = (1 << 20) / SECTOR;
/// Changes beyond the new end that the one across it waits behind.
const QUEUED: usize = 100;
/// Most microseconds that either of them waits for the other.
const LATEST: usize = 400;
/// How often it shrinks, and most times where that is to go wrong.
const ROUNDS: usize = 12;
const CHANCES: usize = 100;

struct Shrinking {
    host: Mounted,
    image: Image,
    served: Served,
    guest: Guest,
    random: Random,
}

/// A change that reaches so far to either side of the new end.
fn across(sectors: usize) -> Range<usize> {
    END - sectors..END + sectors
}

/// Passes some microseconds without sleeping.
fn spin(microseconds: usize) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(microseconds as u64) {
        std::hint::spin_loop();
    }
}

impl Shrinking {
    fn start(made: Made, left_out: &str) -> Option<Shrinking> {
        let host = Mounted::new(made)?;
        let image = Image::written(&host, BIG);
        let variables = [
            ("EXTENTD_TEST_WITHOUT", left_out),
            ("EXTENTD_TEST_LEASE_DELAY", "20"),
        ];
        let served = Served::start(&image.path, &[], &variables);
        let guest = Guest::attach(&served);
        served.wait_disk();
        Some(Shrinking {
            host,
            image,
            served,
            guest,
            random: Random(0x2545_f491_4f6c_dd1d),
        })
    }

    /// Shrinks the disk under one change after the other, the last of which
    /// lies across the new end, and makes it as long as before. An error is
    /// what went wrong.
    fn round(&mut self, number: usize) -> Result<(), String> {
        let value = 2 + Value::try_from(number).unwrap();
        let near = across(SIDE);
        self.guest.lane(0).fill(near.clone(), value);
        self.guest.lane(0).flush();
        self.guest.load(&self.served, near.clone());

        let op = [Op::Discard, Op::WriteZeroes, Op::Write][number % 3];
        // A request has room for so much data.
        let reach = if op == Op::Write { STEP / 2 } else { SIDE };
        let mut lane = self.guest.lane(0);
        for slot in 1..QUEUED {
            lane.put(slot, op, END..END + reach, value);
        }
        lane.put(0, op, across(reach), value);
        std::thread::scope(|scope| {
            let served = &self.served;
            // Which of the two comes first is left to chance.
            let (before, after) = (self.random.below(LATEST), self.random.below(LATEST));
            scope.spawn(move || {
                spin(before);
                served.resize(SMALL);
            });
            spin(after);
            lane.driver.publish().unwrap();
        });
        for _ in 0..QUEUED {
            let done = lane.driver.wait(LIMIT).unwrap();
            if !matches!(done.status, status::OK | status::IOERR) {
                return Err(format!("{op:?} has status {}", done.status));
            }
        }
        let result = self.compare(op, reach, value);
        self.served.resize(BIG);
        self.served.wait_disk();
        result.map_err(|wrong| format!("round {number}, {op:?}: {wrong}"))
    }

    /// What the guest sees below the end is what the file holds, and nothing
    /// beyond it is there.
    fn compare(&mut self, op: Op, reach: usize, value: Value) -> Result<(), String> {
        let mut lane = self.guest.lane(0);
        for sectors in [across(reach), END..END + reach] {
            lane.put(0, op, sectors.clone(), value);
            lane.driver.publish().unwrap();
            let done = lane.driver.wait(LIMIT).unwrap();
            if done.status != status::IOERR {
                return Err(format!("{sectors:?} has status {}", done.status));
            }
        }
        let seen = lane.read(END - SIDE..END);
        // Whoever opens the file makes the map forget what it knows.
        let file = read_direct(&self.image.path);
        if file.len() != SMALL {
            return Err(format!("the image has {} bytes", file.len()));
        }
        let file = &file[(END - SIDE) * SECTOR..];
        if seen != file {
            let first = END - SIDE;
            let (seen, file) = (look(first, &seen), look(first, file));
            return Err(format!("the guest sees {seen:?}, the file holds {file:?}"));
        }
        Ok(())
    }

    /// Others get what has become free, and the guest writes on. Only what is
    /// the image's may change.
    fn spoils(&mut self) -> Vec<String> {
        self.served.resize(SMALL);
        let mut others = Others::default();
        others.occupy(&self.host, "new");
        let mut lane = self.guest.lane(0);
        for at in (END - SIDE..END + SIDE).step_by(STEP) {
            lane.write(at..at + STEP, 1);
        }
        lane.flush();
        others.spoilt()
    }
}

fn a_change_across_the_end_comes_before_or_not_at_all(made: Made) {
    let Some(mut shrinking) = Shrinking::start(made, "") else {
        return;
    };
    for number in 0..ROUNDS {
        assert_eq!(shrinking.round(number), Ok(()));
    }
    assert_eq!(shrinking.spoils(), Vec::<String>::new());
    let length = shrinking.image.path.metadata().unwrap().len();
    assert_eq!(length, SMALL as u64);
}

#[test]
fn changes_across_the_end_of_a_shrinking_disk_leave_a_true_map_on_ext4() {
    a_change_across_the_end_comes_before_or_not_at_all(EXT4);
}

#[test]
fn changes_across_the_end_of_a_shrinking_disk_leave_a_true_map_on_xfs() {
    a_change_across_the_end_comes_before_or_not_at_all(XFS);
}

#[test]
fn changes_across_the_end_that_hold_nothing_leave_a_stale_map() {
    // Where the end is held, each comes before or sees that it is too late.
    let Some(mut shrinking) = Shrinking::start(EXT4, "straddle,resizehold") else {
        return;
    };
    let wrong = (0..CHANCES).find_map(|number| shrinking.round(number).err());
    eprintln!("{wrong:?}");
    assert!(wrong.is_some(), "nothing went wrong");
}

/// Somebody else cuts the image off, and the process is told to look.
fn an_image_is_cut_off(made: Made) {
    let Some(Shrinking {
        host: _host,
        image,
        served,
        mut guest,
        ..
    }) = Shrinking::start(made, "")
    else {
        return;
    };
    guest.load(&served, across(SIDE));
    let mut lane = guest.lane(0);
    for value in 2..5 {
        let foreign = OpenOptions::new().write(true).open(&image.path).unwrap();
        foreign.set_len(SMALL as u64).unwrap();
        drop(foreign);
        served.daemon.signal(libc::SIGHUP).unwrap();
        served.wait_size(SMALL);
        // By the file, and by the disk again.
        for on_disk in [false, true] {
            if on_disk {
                served.wait_disk();
            }
            for op in [Op::Write, Op::WriteZeroes, Op::Discard] {
                for sectors in [across(STEP / 2), END..END + STEP] {
                    lane.put(0, op, sectors, value);
                    lane.driver.publish().unwrap();
                    assert_eq!(lane.driver.wait(LIMIT).unwrap().status, status::IOERR);
                }
            }
            lane.fill(END - SIDE..END, value);
        }
        let seen = lane.read(END - SIDE..END);
        let file = read_direct(&image.path);
        assert_eq!(file.len(), SMALL);
        assert!(seen == file[(END - SIDE) * SECTOR..], "the guest sees else");
        served.resize(BIG);
    }
}

#[test]
fn an_ext4_image_that_was_cut_off_stays_as_short() {
    an_image_is_cut_off(EXT4);
}

#[test]
fn an_xfs_image_that_was_cut_off_stays_as_short() {
    an_image_is_cut_off(XFS);
}
