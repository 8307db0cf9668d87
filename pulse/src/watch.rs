//! Who stands still, and for how long.
//!
//! Time is counted as the watch itself sees it pass. Where the whole process
//! was stopped, or the host slept, the watch was late as well, and no thread is
//! blamed for that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::strike::strike;
use crate::{Doing, Owner, Pulse, entries};

/// How often to look where nobody is in a foreign call.
pub const PERIOD: Duration = Duration::from_millis(250);
/// How often to look where somebody is.
const CLOSELY: Duration = Duration::from_millis(20);
/// A foreign call that takes longer is ended.
const FOREIGN: Duration = Duration::from_millis(40);
/// Who rests for so long is woken, to see that it can be.
const RESTED: Duration = Duration::from_secs(5);
/// Who has not come round for so long stands still.
const STANDS: Duration = Duration::from_secs(5);
/// The same of who waits for the disk, which may take its time.
const STANDS_FOR_DISK: Duration = Duration::from_secs(30);

/// A thread that does not come round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The thread.
    pub thread: String,
    /// For how long.
    pub time: Duration,
    /// What it has been doing since.
    pub doing: Doing,
}

/// What a look has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It stands still by now.
    Stands(Standing),
    /// It has gone on, or has ended.
    GoesOn(Standing),
}

static STANDING: Mutex<Vec<Standing>> = Mutex::new(Vec::new());
static TIMES: AtomicU64 = AtomicU64::new(0);

/// The threads that stand still, as the last look has found them.
#[must_use]
pub fn standing() -> Vec<Standing> {
    let standing = STANDING.lock();
    standing.unwrap_or_else(PoisonError::into_inner).clone()
}

/// How often a thread was found to stand still so far.
#[must_use]
pub fn times_stood() -> u64 {
    TIMES.load(Ordering::Relaxed)
}

#[derive(Debug)]
struct Seen {
    beats: u64,
    still: Duration,
    /// It was woken since.
    woken: bool,
    told: bool,
    name: String,
}

/// What is known of all threads since the last look.
#[derive(Debug, Default)]
pub struct Watch {
    seen: HashMap<u64, Seen>,
}

impl Watch {
    /// Looks at all threads, `elapsed` after the last look, which was to be no
    /// more than `due` ago; who has begun to stand still, and who goes on.
    pub fn look(&mut self, elapsed: Duration, due: Duration) -> Vec<Change> {
        let passed = elapsed.min(due * 2);
        let mut changes = Vec::new();
        let mut standing = Vec::new();
        let mut left = std::mem::take(&mut self.seen);
        // Nobody ends meanwhile, so that the right thread is interrupted.
        let entries = entries();
        for entry in entries.iter() {
            let Some(owner) = &entry.owner else { continue };
            let before = left.remove(&owner.serial);
            let seen = look_at(entry.pulse, owner, before, passed, &mut changes);
            if seen.told {
                standing.push(seen.standing());
            }
            self.seen.insert(owner.serial, seen);
        }
        drop(entries);
        let ended = left.into_values().filter(|seen| seen.told);
        changes.extend(ended.map(|seen| Change::GoesOn(seen.standing())));
        *STANDING.lock().unwrap_or_else(PoisonError::into_inner) = standing;
        changes
    }

    /// When to look again.
    #[must_use]
    pub fn next(&self) -> Duration {
        let caught = |seen: &Seen| Doing::of(seen.beats) == Doing::Foreign;
        if self.seen.values().any(caught) {
            CLOSELY
        } else {
            PERIOD
        }
    }
}

fn look_at(
    pulse: &Pulse,
    owner: &Owner,
    before: Option<Seen>,
    passed: Duration,
    changes: &mut Vec<Change>,
) -> Seen {
    let beats = pulse.beats.load(Ordering::Relaxed);
    let mut seen = match before {
        Some(seen) if seen.beats == beats => Seen {
            still: seen.still + passed,
            ..seen
        },
        before => {
            if let Some(seen) = before.filter(|seen| seen.told) {
                changes.push(Change::GoesOn(seen.standing()));
            }
            Seen {
                beats,
                still: Duration::ZERO,
                woken: false,
                told: false,
                name: owner.name.clone(),
            }
        }
    };
    let stands = match (Doing::of(beats), &owner.wake) {
        (Doing::Resting, None) => return seen,
        (Doing::Resting, Some(wake)) => {
            if seen.still >= RESTED && !seen.woken {
                wake();
                seen.woken = true;
            }
            RESTED + STANDS
        }
        (Doing::Disk, _) => STANDS_FOR_DISK,
        (Doing::Turning | Doing::Foreign, _) => STANDS,
    };
    if Doing::of(beats) == Doing::Foreign && seen.still >= FOREIGN {
        pulse.struck.store(beats, Ordering::Relaxed);
        strike(owner.thread);
    }
    if !seen.told && seen.still >= stands {
        seen.told = true;
        TIMES.fetch_add(1, Ordering::Relaxed);
        changes.push(Change::Stands(seen.standing()));
    }
    seen
}

impl Seen {
    fn standing(&self) -> Standing {
        Standing {
            thread: self.name.clone(),
            time: self.still,
            doing: Doing::of(self.beats),
        }
    }
}
