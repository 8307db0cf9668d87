//! A sign of life for each thread of a process.
//!
//! A thread that [joins](join) has a place where it notes what it does, with
//! plain stores that only it makes: no lock, no system call, and nothing that
//! another thread writes. A [`Watch`] looks at all of them now and then. It
//! finds who stands still that should turn, and gets whoever is caught in a
//! call on a descriptor of somebody else out of it.
#![warn(unreachable_pub)]

mod strike;
mod watch;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use strike::catch_strikes;
pub use watch::{Change, PERIOD, Standing, Watch, standing, times_stood};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// It goes from one thing to the next, and comes round soon.
    Turning = 0,
    /// It waits for something that may never come. If it can be woken, it is
    /// now and then, and is to go on then.
    Resting = 1,
    /// It is in a call on the image or its device, or waits for what is in
    /// flight there, for as long as that takes.
    Disk = 2,
    /// It is in a call on what somebody else has as well, who may keep it
    /// there: that is ended.
    Foreign = 3,
}

impl Doing {
    #[inline(always)]
    fn of(beats: u64) -> Self {
        match beats & DOING {
            1 => Self::Resting,
            2 => Self::Disk,
            3 => Self::Foreign,
            _ => Self::Turning,
        }
    }

    /// For the end of a sentence about a thread that stands still.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Turning => "amid its own work",
            Self::Resting => "asleep, though it was woken",
            Self::Disk => "waiting for the image or its device",
            Self::Foreign => "in a call on a descriptor of a front-end",
        }
    }

    /// It is to come round by itself, whatever the disk does.
    #[must_use]
    pub fn must_turn(self) -> bool {
        self != Self::Disk
    }
}

/// The bits of [`Pulse::beats`] that say what is done; the others count.
const DOING: u64 = 3;
const BEAT: u64 = DOING + 1;

/// Where one thread notes what it does: on a cache line of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Pulse {
    /// Written by the thread only.
    beats: AtomicU64,
    /// The beat in which it was interrupted. Written by the watch only.
    struck: AtomicU64,
}

impl Pulse {
    /// From now on it does this; what it did before.
    #[inline(always)]
    fn set(&self, doing: Doing) -> Doing {
        let before = self.beats.load(Ordering::Relaxed);
        let count = (before & !DOING).wrapping_add(BEAT);
        self.beats.store(count | doing as u64, Ordering::Relaxed);
        Doing::of(before)
    }
}

/// A place, and who has it now.
struct Entry {
    pulse: &'static Pulse,
    owner: Option<Owner>,
}

struct Owner {
    name: String,
    thread: libc::pid_t,
    /// Tells it from others that had the place before.
    serial: u64,
    wake: Option<Wake>,
}

/// Has a thread that rests come round once. It never waits.
type Wake = Box<dyn Fn() + Send>;

/// Every place there is. They stay, and are given to other threads later.
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

static SERIAL: AtomicU64 = AtomicU64::new(0);

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static MINE: Cell<Option<&'static Pulse>> = const { Cell::new(None) };
}

/// The calling thread is watched as long as this lives. It stays with it.
#[derive(Debug)]
pub struct Member {
    pulse: &'static Pulse,
    not_send: PhantomData<*const ()>,
}

/// Has the calling thread watched, under this name. It does `doing` unless it
/// says otherwise. A thread joins once at a time.
pub fn join(name: &str, doing: Doing) -> Member {
    enter(name, doing, None)
}

/// As [`join`], for a thread that `wake` has come round once where it rests.
/// That is called by another thread, and does not wait.
pub fn join_with(name: &str, doing: Doing, wake: impl Fn() + Send + 'static) -> Member {
    enter(name, doing, Some(Box::new(wake)))
}

fn enter(name: &str, doing: Doing, wake: Option<Wake>) -> Member {
    let owner = Owner {
        name: name.to_owned(),
        thread: strike::this_thread(),
        serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        wake,
    };
    let mut entries = entries();
    let pulse = match entries.iter_mut().find(|entry| entry.owner.is_none()) {
        Some(entry) => {
            entry.owner = Some(owner);
            entry.pulse
        }
        None => {
            let pulse: &'static Pulse = Box::leak(Box::new(Pulse {
                beats: AtomicU64::new(0),
                struck: AtomicU64::new(u64::MAX),
            }));
            entries.push(Entry {
                pulse,
                owner: Some(owner),
            });
            pulse
        }
    };
    pulse.set(doing);
    MINE.set(Some(pulse));
    Member {
        pulse,
        not_send: PhantomData,
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        MINE.set(None);
        for entry in entries().iter_mut() {
            if std::ptr::eq(entry.pulse, self.pulse) {
                entry.owner = None;
            }
        }
    }
}

/// The calling thread comes round once more.
#[inline(always)]
pub fn turn() {
    if let Some(mine) = MINE.get() {
        mine.set(Doing::Turning);
    }
}

/// Does something as `doing`.
#[inline(always)]
pub fn during<T>(doing: Doing, act: impl FnOnce() -> T) -> T {
    let Some(mine) = MINE.get() else { return act() };
    let before = mine.set(doing);
    let result = act();
    mine.set(before);
    result
}

/// Makes a call on what somebody else has as well. If they keep it waiting, the
/// watch ends it with a signal. It is made again if another one has ended it.
///
/// # Errors
/// What the call says; `Interrupted` only if it was kept waiting.
#[inline]
pub fn foreign<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    during(Doing::Foreign, || {
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && !is_struck() => {}
                result => return result,
            }
        }
    })
}

/// The calling thread was interrupted in what it does now.
#[cold]
fn is_struck() -> bool {
    MINE.get().is_some_and(|mine| {
        let beats = mine.beats.load(Ordering::Relaxed);
        mine.struck.load(Ordering::Relaxed) == beats
    })
}

#[cfg(test)]
mod tests;
