//! A guest that counts on 16 lanes at once: each writes its next number to its
//! next place when the number before was acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use front_end::codes::status;
use front_end::{Buffer, Done, Error, Like, Op, Wanted, limit};
use rig::attached::{Attached, DATA};

/// Requests in flight.
pub const LANES: usize = 16;
/// Places of a lane, one for each of its last numbers.
pub const PLACES: u64 = 64;
/// Bytes of a place.
pub const BLOCK: u64 = 4096;
/// Bytes of the disk that are used.
pub const USED: u64 = LANES as u64 * PLACES * BLOCK;

/// How often it is looked whether the disk has gone.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// What a lane has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// All are larger; those of guests before it are not.
    pub base: u64,
    /// The last one that was acknowledged.
    pub acknowledged: u64,
    /// The last one that was sent.
    pub sent: u64,
}

struct Lane {
    acknowledged: AtomicU64,
    sent: AtomicU64,
}

/// The guest at work, until this is dropped.
pub struct Stamps {
    base: u64,
    lanes: Arc<[Lane; LANES]>,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The block of a number in a lane.
fn block(lane: usize, number: u64) -> Vec<u8> {
    let stamp = [lane as u64, number].map(u64::to_le_bytes).concat();
    stamp.repeat(usize::try_from(BLOCK).unwrap() / stamp.len())
}

fn place(lane: usize, number: u64) -> u64 {
    (lane as u64 * PLACES + number % PLACES) * BLOCK
}

impl Stamps {
    pub fn start(socket: &Path) -> Self {
        Self::start_at(socket, 0)
    }

    /// Counts from there on, so that nothing is taken for what an earlier guest has written.
    pub fn start_at(socket: &Path, base: u64) -> Self {
        let mut guest = Attached::new(socket, Like::Qemu, Wanted::default());
        let lanes: Arc<[Lane; LANES]> = Arc::new(std::array::from_fn(|_| Lane {
            acknowledged: AtomicU64::new(base),
            sent: AtomicU64::new(base),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let lost = Arc::new(AtomicBool::new(false));
        let (all, stopped) = (Arc::clone(&lanes), Arc::clone(&stop));
        let gone = Arc::clone(&lost);
        let thread = std::thread::spawn(move || {
            for lane in 0..LANES {
                send(&mut guest, &all, lane);
            }
            guest.driver.publish().unwrap();
            let mut flying = LANES;
            while flying > 0 {
                let Some(done) = next(&mut guest, &gone) else {
                    return;
                };
                assert_eq!(done.status, status::OK);
                let lane = usize::try_from(done.tag).unwrap();
                let sent = all[lane].sent.load(Ordering::SeqCst);
                all[lane].acknowledged.store(sent, Ordering::SeqCst);
                if stopped.load(Ordering::Relaxed) {
                    flying -= 1;
                    continue;
                }
                send(&mut guest, &all, lane);
                guest.driver.publish().unwrap();
            }
        });
        Self {
            base,
            lanes,
            stop,
            lost,
            thread: Some(thread),
        }
    }

    /// What each lane has done: acknowledged at least, sent at most.
    pub fn numbers(&self) -> Vec<Numbers> {
        let each = self.lanes.iter().map(|lane| Numbers {
            base: self.base,
            acknowledged: lane.acknowledged.load(Ordering::SeqCst),
            sent: lane.sent.load(Ordering::SeqCst),
        });
        each.collect()
    }

    /// Waits until every lane has come further by so much.
    pub fn go_on(&self, steps: u64) {
        let start = std::time::Instant::now();
        let before = self.numbers();
        let further = || {
            let now = self.numbers();
            let mut pairs = now.iter().zip(&before);
            pairs.all(|(now, before)| now.acknowledged >= before.acknowledged + steps)
        };
        while !further() {
            assert!(start.elapsed() < limit(), "the disk does not go on");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Ends it, as its disk has gone.
    pub fn lose(mut self) {
        self.lost.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }

    /// Ends it; what was acknowledged last.
    pub fn end(mut self) -> Vec<Numbers> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.numbers()
    }
}

impl Drop for Stamps {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// What ends next; `None` when the disk has gone.
fn next(guest: &mut Attached, gone: &AtomicBool) -> Option<Done> {
    let start = std::time::Instant::now();
    loop {
        match guest.driver.wait(LOOK) {
            Err(Error::Late(_)) if gone.load(Ordering::SeqCst) => return None,
            Err(Error::Late(_)) if start.elapsed() < limit() => {}
            done => return Some(done.unwrap()),
        }
    }
}

fn send(guest: &mut Attached, lanes: &[Lane; LANES], lane: usize) {
    let number = lanes[lane].sent.load(Ordering::SeqCst) + 1;
    let at = DATA + lane as u64 * BLOCK;
    guest.memory.write(at, &block(lane, number)).unwrap();
    // Before anybody may see it on the disk.
    lanes[lane].sent.store(number, Ordering::SeqCst);
    let data = [Buffer::readable(at, u32::try_from(BLOCK).unwrap())];
    let sector = place(lane, number) / 512;
    assert!(guest.driver.submit(Op::Write, sector, &data, lane as u64));
}

/// Fails unless the image [is of one moment](is_one_moment).
pub fn assert_one_moment(bytes: &[u8], before: &[Numbers], after: &[Numbers]) {
    if let Err(what) = look(bytes, before, after) {
        panic!("{what}");
    }
}

/// The image has, for each lane, what was acknowledged `before` it was taken
/// and nothing that was sent `after`: all numbers up to one, each in its place.
pub fn is_one_moment(bytes: &[u8], before: &[Numbers], after: &[Numbers]) -> bool {
    look(bytes, before, after).is_ok()
}

fn look(bytes: &[u8], before: &[Numbers], after: &[Numbers]) -> Result<(), String> {
    for (lane, (before, after)) in before.iter().zip(after).enumerate() {
        let there = |number: u64| {
            let start = usize::try_from(place(lane, number)).unwrap();
            bytes[start..start + usize::try_from(BLOCK).unwrap()] == block(lane, number)
        };
        // A number of later, in the place of any.
        let later = (after.sent + 1..=after.sent + PLACES).find(|&number| {
            let start = usize::try_from(place(lane, number)).unwrap();
            let stamp = [start, start + 8]
                .map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()));
            stamp[0] == lane as u64 && stamp[1] > after.sent
        });
        if let Some(later) = later {
            return Err(format!(
                "lane {lane} has {later} or one after it, of {after:?}"
            ));
        }
        let newest = (before.acknowledged..=after.sent)
            .rev()
            .find(|&number| number == before.base || there(number));
        let Some(newest) = newest else {
            return Err(format!(
                "lane {lane} has nothing of {before:?} to {after:?}"
            ));
        };
        let oldest = newest.saturating_sub(PLACES - 1).max(before.base + 1);
        for number in oldest..=newest {
            // The oldest may be the place that the next number was being written to.
            let may_be_next = number + PLACES == newest + 1 && number + PLACES <= after.sent;
            if !(there(number) || may_be_next) {
                return Err(format!("lane {lane} has {newest} and not {number}"));
            }
        }
    }
    Ok(())
}
