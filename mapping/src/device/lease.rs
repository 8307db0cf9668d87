//! Leases: noticing that somebody else wants the file, before they get it.
//!
//! An exclusive lease (`F_WRLCK`) is granted only while nobody else has the file open or mapped, so holding it
//! proves exclusivity. Whoever opens or truncates the file, defragments it or clones it waits until the lease
//! is given back, at most `/proc/sys/fs/lease-break-time` seconds (45), and the holder is signalled. Renaming and
//! unlinking do not break it and need not. Costs nothing per I/O, needs no privilege but to own the file
//! (or `CAP_LEASE`).
//!
//! The rules, learnt by experiment:
//! - The file must be opened once, and duplicated where more descriptors are needed: a second open by ourselves
//!   breaks the lease.
//! - Giving a lease back resets the signal to `SIGIO`, which kills: the signal is set before every take, and is
//!   directed to a thread of this module which has both blocked. No other thread needs to block anything.
//! - After a foreign non-blocking open, a take may be reported as a success with the break still pending.
//!   So every take begins by giving back, and only what `F_GETLEASE` says counts.
//! - A thread that has not run for a long time (stopped, frozen, suspended) asks [`Lease::is_held`] before it
//!   trusts the lease again: the break time may have passed.
//! - The kernel drops the lease when the last descriptor is closed, also by `kill -9`, and does not wait
//!   for raw I/O of an io_uring in which the *file* is not registered.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};
use crate::sys;
use crate::threads::{self, Thread};

/// How long the kernel makes others wait for a lease to be given back (`/proc/sys/fs/lease-break-time`), as it is
/// set now; `None`: for as long as it takes.
///
/// # Errors
/// There is no /proc, or it says something else than a number.
pub fn break_time() -> io::Result<Option<Duration>> {
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time")?;
    let seconds: i64 = text
        .trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // Nothing below 1 is a time for the kernel.
    Ok(u64::try_from(seconds)
        .ok()
        .filter(|&seconds| seconds > 0)
        .map(Duration::from_secs))
}

/// The signal that tells of a broken lease, `SIGRTMIN` + 3: sent to a thread of the [`Lease`], which alone blocks it.
/// A program that uses it otherwise takes no notice of its own then.
#[must_use]
pub fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

/// What a lease proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nobody else has the file open (`F_WRLCK`).
    Exclusive,
    /// Nobody has the file open for writing (`F_RDLCK`): for files opened for reading only.
    ReadOnly,
}

impl Mode {
    fn code(self) -> libc::c_int {
        match self {
            Mode::Exclusive => libc::F_WRLCK,
            Mode::ReadOnly => libc::F_RDLCK,
        }
    }
}

/// Why a lease was not granted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Somebody else has the file open or mapped.
    #[error("somebody else has the image open")]
    InUse,
    /// The file belongs to somebody else.
    #[error("the image belongs to another user: a lease needs its owner or CAP_LEASE")]
    NotOwner,
    /// The file system knows no leases, or the file is open in the wrong mode for this one.
    #[error("no lease is possible on this image")]
    Unsupported,
    /// Anything else.
    #[error("cannot take a lease: {0}")]
    Io(#[from] io::Error),
}

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// A lease on an open file: taken, noticed when broken, given back, taken again.
///
/// A thread of its own receives the signals; dropping the lease gives it back and ends the thread. All
/// functions may be called from any thread and block for microseconds only.
#[derive(Debug)]
pub struct Lease {
    file: Arc<File>,
    mode: Mode,
    signal: libc::c_int,
    thread: libc::pid_t,
    event: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    receiver: Option<JoinHandle<()>>,
    backoff: Mutex<Backoff>,
    /// Not given back any more.
    kept: AtomicBool,
}

#[derive(Debug)]
struct Backoff {
    delay: Duration,
    /// The same delay always, if there is one.
    fixed: Option<Duration>,
    taken: Option<Instant>,
    retry: Option<Instant>,
}

impl Backoff {
    fn taken(&mut self, now: Instant) {
        self.taken = Some(now);
        self.retry = None;
    }

    /// The lease was refused or given back: the next try has to wait, longer each time unless the lease
    /// lasted for a while.
    fn lost(&mut self, now: Instant) {
        let lasted = self
            .taken
            .take()
            .is_some_and(|at| now.duration_since(at) >= LONGEST_DELAY);
        self.delay = if lasted { FIRST_DELAY } else { self.delay };
        self.retry = Some(now + self.fixed.unwrap_or(self.delay));
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
    }
}

impl Lease {
    /// Prepares leases on `file`, without taking one. Starts the thread that receives their signals.
    ///
    /// # Errors
    /// If the thread or its descriptors cannot be made.
    pub fn new(file: Arc<File>, mode: Mode) -> io::Result<Lease> {
        let event = Arc::new(sys::eventfd()?);
        let stop = Arc::new(sys::eventfd()?);
        let signal = signal();
        let (report, started) = mpsc::channel();
        let (to_set, to_read) = (Arc::clone(&event), Arc::clone(&stop));
        let receiver = std::thread::Builder::new()
            .name("map-lease".into())
            .spawn(move || {
                threads::begun(Thread::Lease);
                receive(signal, &report, &to_set, &to_read);
            })?;
        let thread = started.recv().map_err(io::Error::other)??;
        let backoff = Backoff {
            delay: FIRST_DELAY,
            fixed: None,
            taken: None,
            retry: None,
        };
        let backoff = Mutex::new(backoff);
        Ok(Lease {
            file,
            mode,
            signal,
            thread,
            event,
            stop,
            receiver: Some(receiver),
            backoff,
            kept: AtomicBool::new(false),
        })
    }

    /// From now on a lease that was lost or refused is worth asking for again after `delay`, however often
    /// that happens. For tests in which the lease is broken all the time.
    pub fn retry_after(&self, delay: Duration) {
        lock(&self.backoff).fixed = Some(delay);
    }

    /// Takes the lease, again after a break too. Whatever lease was held or being broken is given back first,
    /// so the caller must have stopped relying on it.
    ///
    /// # Errors
    /// [`LeaseError::InUse`] and others; [`Lease::retry_at`] then says when to try again.
    pub fn take(&self) -> Result<(), LeaseError> {
        let mut backoff = lock(&self.backoff);
        let _none_held = sys::set_lease(&self.file, libc::F_UNLCK);
        sys::eventfd_take(self.event.as_raw_fd());
        let result = self.take_once();
        match &result {
            Ok(()) => backoff.taken(Instant::now()),
            Err(_) => backoff.lost(Instant::now()),
        }
        result
    }

    fn take_once(&self) -> Result<(), LeaseError> {
        sys::direct_signal(&self.file, self.signal, self.thread)?;
        sys::set_lease(&self.file, self.mode.code()).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EBUSY) => LeaseError::InUse,
                Some(libc::EACCES | libc::EPERM) => LeaseError::NotOwner,
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOLCK) => LeaseError::Unsupported,
                _ => LeaseError::Io(error),
            }
        })?;
        if self.is_held() {
            return Ok(());
        }
        let _pending = sys::set_lease(&self.file, libc::F_UNLCK);
        Err(LeaseError::InUse)
    }

    /// Whether the lease is held and nobody is waiting for it. Asks the kernel.
    #[must_use]
    pub fn is_held(&self) -> bool {
        sys::get_lease(&self.file).is_ok_and(|kind| kind == self.mode.code())
    }

    /// Becomes readable (an eventfd, non-blocking) when somebody wants the file. May do so once without a reason
    /// after a lease was given back: ask [`Lease::is_held`].
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Resets [`Lease::event`]; whether the lease is being broken or lost, as the kernel says.
    #[must_use]
    pub fn broken(&self) -> bool {
        sys::eventfd_take(self.event.as_raw_fd());
        !self.is_held()
    }

    /// Gives the lease back, whereupon whoever waits for it goes on. To be called when raw I/O is drained
    /// and the map [disabled](crate::Map::disable).
    pub fn release(&self) {
        if self.kept.load(Ordering::SeqCst) {
            return;
        }
        let mut backoff = lock(&self.backoff);
        let _none_held = sys::set_lease(&self.file, libc::F_UNLCK);
        backoff.lost(Instant::now());
    }

    /// From now on the lease is not given back, not when this is dropped either: raw I/O is in flight whose end nobody
    /// learns. The kernel gives it back once the last descriptor of the file has gone, that of rings included.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::SeqCst);
    }

    /// When to try [`Lease::take`] again; `None` while the lease is held or was never asked for.
    /// The time grows from 100 ms to 5 s with each failure, and starts anew once a lease has lasted 5 s.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        lock(&self.backoff).retry
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
        sys::eventfd_signal(self.stop.as_raw_fd());
        if let Some(receiver) = self.receiver.take() {
            let _ = receiver.join();
        }
    }
}

/// The thread: turns signals into the event. `SIGIO` too, which the kernel sends if it cannot queue.
fn receive(
    signal: libc::c_int,
    report: &mpsc::Sender<io::Result<libc::pid_t>>,
    event: &OwnedFd,
    stop: &OwnedFd,
) {
    let signals = match sys::own_signals(&[signal, libc::SIGIO]) {
        Ok((signals, thread)) => {
            let _ = report.send(Ok(thread));
            signals
        }
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    loop {
        match sys::wait_readable(&signals, stop) {
            Ok((_, true)) => return,
            Ok((true, _)) => {
                if sys::drain_signals(&signals) > 0 {
                    sys::eventfd_signal(event.as_raw_fd());
                }
            }
            Ok(_) => {}
            Err(error) => {
                log::error!("lease: {error}");
                sys::eventfd_signal(event.as_raw_fd());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_to_its_limit_and_starts_anew_after_a_lease_that_lasted() {
        let mut backoff = Backoff {
            delay: FIRST_DELAY,
            fixed: None,
            taken: None,
            retry: None,
        };
        let start = Instant::now();
        backoff.lost(start);
        assert_eq!(backoff.retry, Some(start + FIRST_DELAY));
        for _ in 0..20 {
            backoff.lost(start);
        }
        assert_eq!(backoff.retry, Some(start + LONGEST_DELAY));
        backoff.taken(start);
        assert_eq!(backoff.retry, None);
        backoff.lost(start + Duration::from_secs(1));
        assert_eq!(
            backoff.retry,
            Some(start + Duration::from_secs(1) + LONGEST_DELAY)
        );
        backoff.taken(start);
        backoff.lost(start + LONGEST_DELAY);
        assert_eq!(backoff.retry, Some(start + LONGEST_DELAY + FIRST_DELAY));
    }
}
