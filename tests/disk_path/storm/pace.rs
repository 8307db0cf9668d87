//! When the next disturbance is due: once the disk path has been in use again
//! for longer than the one before kept it away.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use extentd::operator::control::{self, Answer, Request};
use front_end::LIMIT;

use crate::served::Info;

/// Raw requests between two disturbances beyond those that make good for what
/// went by the file, times five.
const RAW: u64 = 250;

/// What the processes have done, all together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    pub raw: u64,
    pub by_file: u64,
    pub entries: u64,
}

impl Work {
    fn of(info: &Info) -> Work {
        Work {
            raw: info.disk_operations,
            by_file: info.file_operations + info.bounced_operations,
            entries: info.entries,
        }
    }

    fn plus(self, other: Work) -> Work {
        Work {
            raw: self.raw + other.raw,
            by_file: self.by_file + other.by_file,
            entries: self.entries + other.entries,
        }
    }

    /// Of 100 reads and writes, how many were raw.
    pub fn share(self) -> u64 {
        100 * self.raw / (self.raw + self.by_file).max(1)
    }
}

struct State {
    /// By processes that have ended.
    past: Work,
    /// How many those are.
    lives: usize,
    /// As the last disturbance began.
    mark: Work,
}

/// The pace of a storm, for all its threads.
pub struct Pace {
    control: PathBuf,
    state: Mutex<State>,
    /// Requests of the guest that have ended.
    ended: Mutex<u64>,
    more: Condvar,
    until: Instant,
    over: AtomicBool,
}

impl Pace {
    pub fn new(control: &Path, length: Duration) -> Pace {
        Pace {
            control: control.to_owned(),
            state: Mutex::new(State {
                past: Work::default(),
                lives: 0,
                mark: Work::default(),
            }),
            ended: Mutex::new(0),
            more: Condvar::new(),
            until: Instant::now() + length,
            over: AtomicBool::new(false),
        }
    }

    /// Nobody is to begin anything any more.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || Instant::now() >= self.until
    }

    /// Ends it before its time: something has been found.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// So many requests of the guest have ended.
    pub fn ended(&self, requests: u64) {
        *self.ended.lock().unwrap() += requests;
        self.more.notify_all();
    }

    /// Waits until so many more have; false if it is over first.
    pub fn await_requests(&self, count: u64) -> bool {
        let start = Instant::now();
        let mut ended = self.ended.lock().unwrap();
        let wanted = *ended + count;
        while *ended < wanted && !self.is_over() {
            assert!(start.elapsed() < LIMIT, "no requests end");
            let turn = Duration::from_millis(100);
            ended = self.more.wait_timeout(ended, turn).unwrap().0;
        }
        !self.is_over()
    }

    /// What the process that runs says of itself, with what those before it
    /// did; `None` while there is none.
    pub fn look(&self) -> Option<(bool, Work)> {
        let lives = self.state.lock().unwrap().lives;
        let answer = control::ask(&self.control, &Request::Info {}, LIMIT);
        let Ok(Answer::Result(info)) = answer else {
            return None;
        };
        let info = Info::of(&info["disk"]);
        let state = self.state.lock().unwrap();
        let same = state.lives == lives;
        same.then(|| (info.on_disk, state.past.plus(Work::of(&info))))
    }

    /// The process is about to end, and says this before. Nobody looks at it
    /// until what is returned is dropped, when the next one serves.
    pub fn bury(&self, last: impl FnOnce() -> Info) -> impl Drop + '_ {
        let mut state = self.state.lock().unwrap();
        state.past = state.past.plus(Work::of(&last()));
        state.lives += 1;
        state
    }

    /// Waits until the disk path is in use and has been used enough since the
    /// last disturbance, and begins the next; false if it is over first.
    pub fn begin(&self) -> bool {
        self.await_raw(|| self.is_over())
    }

    /// As [`begin`](Self::begin), also when the time is over: for what has to
    /// be done, and after the last disturbance, as what that took away from the
    /// disk path counts as well. False if something has been found.
    pub fn rest(&self) -> bool {
        self.await_raw(|| self.over.load(Ordering::SeqCst))
    }

    fn await_raw(&self, is_over: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !is_over() {
            if let Some((true, now)) = self.look() {
                let mut state = self.state.lock().unwrap();
                let raw = now.raw.saturating_sub(state.mark.raw);
                let by_file = now.by_file.saturating_sub(state.mark.by_file);
                if 5 * raw >= 6 * by_file + RAW {
                    state.mark = now;
                    return true;
                }
            }
            assert!(start.elapsed() < LIMIT, "the disk path is not used");
            // There is no event for it.
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Waits until the disk path is in use; false if it is over first.
    pub fn await_disk(&self) -> bool {
        let start = Instant::now();
        while !self.is_over() {
            if self.look().is_some_and(|(on_disk, _)| on_disk) {
                return true;
            }
            assert!(start.elapsed() < LIMIT, "the disk path is not used");
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}
