//! Ends the sharing of the image's blocks while a guest uses it: a thread of its
//! own, one at a time, at a rate, and with rests for the guest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use vhost_backend::Limits;

use crate::disk::Disk;
use crate::disk::unsharing::{Step, UnshareError, Walk, time_for};
use crate::host::feed::Feed;
use crate::host::hardening::SMALL_STACK;
use crate::options::size;
use crate::protocol::done::{UnshareCancelled, Unsharing};
use crate::protocol::events::Event;

/// How often it is looked whether what is waited for is over.
const LOOK: Duration = Duration::from_millis(100);
/// How long after a piece in which requests were in flight.
const SOON: Duration = Duration::from_millis(2);

/// The longest rest, whatever the rate.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whose blocks become its own, and who is told.
#[derive(Clone)]
pub(super) struct Whose {
    pub disk: Arc<Disk>,
    pub limits: Arc<Limits>,
    pub feed: Feed<Event>,
    /// Held while the length of the image changes, at the moment of a snapshot,
    /// and for each piece.
    pub resizing: Arc<Mutex<()>>,
}

/// The one that goes on, or the last one.
#[derive(Debug, Default)]
pub(super) struct Unshare {
    /// One is begun at a time.
    beginning: Mutex<()>,
    job: Mutex<Option<Arc<Job>>>,
}

/// One way through the image.
#[derive(Debug)]
struct Job {
    rate: Option<u64>,
    shared: u64,
    unshared: AtomicU64,
    longest: AtomicU64,
    begun: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Why it is to end.
    stop: Option<&'static str>,
    waits: Option<&'static str>,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Ended {
    took: Duration,
    left: Option<u64>,
    error: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unshare {
    /// Begins it.
    ///
    /// # Errors
    /// It goes on already, or cannot be done here.
    pub(super) fn begin(&self, whose: Whose, rate: Option<u64>) -> Result<Unsharing, String> {
        let under_way =
            || "unshare: it is under way: wait for it, or cancel it (extentctl unshare --cancel)";
        // It guards no data, so a panic elsewhere has left nothing half done.
        let _one = match self.beginning.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(under_way().to_owned()),
        };
        if self.current().is_some_and(|job| job.is_running()) {
            return Err(under_way().to_owned());
        }
        if rate == Some(0) {
            return Err(
                "unshare: at a rate of 0 nothing would be copied: give more, or leave it out"
                    .to_owned(),
            );
        }
        let (walk, shared) = Walk::begin(&whose.disk).map_err(|error| error.to_string())?;
        let job = Arc::new(Job {
            rate,
            shared,
            unshared: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            begun: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mine = Arc::clone(&job);
        let feed = whose.feed.clone();
        // It has the rights of the thread that answers, and can have no fewer.
        let work = move || {
            let result = mine.walk(walk, whose);
            mine.end(result, &feed);
        };
        thread::Builder::new()
            .name("unshare".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(work)
            .map_err(|error| format!("unshare: there is no thread for it: {error}"))?;
        let now = job.describe();
        *lock(&self.job) = Some(job);
        Ok(now)
    }

    fn current(&self) -> Option<Arc<Job>> {
        lock(&self.job).clone()
    }

    /// How it goes, or has gone; `None` if it was never begun.
    pub(super) fn now(&self) -> Option<Unsharing> {
        self.current().map(|job| job.describe())
    }

    /// Ends it after the piece that is under way, for this reason.
    ///
    /// # Errors
    /// It does not go on.
    pub(super) fn cancel(&self, reason: &'static str) -> Result<UnshareCancelled, String> {
        match self.current().filter(|job| job.is_running()) {
            Some(job) => {
                lock(&job.state).stop.get_or_insert(reason);
                job.changed.notify_all();
                Ok(UnshareCancelled {
                    unshared_bytes: job.unshared.load(Ordering::Relaxed),
                })
            }
            None => Err("unshare-cancel: it is not under way".to_owned()),
        }
    }

    /// Waits until it has ended, but no longer than this.
    pub(super) fn wait_for_end(&self, patience: Duration) {
        if let Some(job) = self.current() {
            let state = lock(&job.state);
            let goes_on = |state: &mut State| state.ended.is_none();
            // Whoever waits goes on however that ends.
            drop(job.changed.wait_timeout_while(state, patience, goes_on));
        }
    }
}

impl Job {
    fn is_running(&self) -> bool {
        lock(&self.state).ended.is_none()
    }

    fn describe(&self) -> Unsharing {
        let state = lock(&self.state);
        let ended = state.ended.as_ref();
        let time = ended.map_or_else(|| self.begun.elapsed(), |ended| ended.took);
        Unsharing {
            running: ended.is_none(),
            shared_bytes: self.shared,
            unshared_bytes: self.unshared.load(Ordering::Relaxed),
            left_bytes: ended.and_then(|ended| ended.left),
            rate: self.rate,
            waits: state.waits.map(str::to_owned),
            longest_piece_us: self.longest.load(Ordering::Relaxed),
            since_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            error: ended.and_then(|ended| ended.error.clone()),
        }
    }

    /// Goes the whole way; how many bytes are shared at its end.
    fn walk(&self, mut walk: Walk, whose: Whose) -> Result<u64, String> {
        let failed = |source| UnshareError::Host { source }.to_string();
        let disk = &whose.disk;
        // Before that the rate allows nothing.
        let mut due = Instant::now();
        loop {
            self.rest(due.saturating_duration_since(Instant::now()));
            self.wait_for(&whose);
            if let Some(reason) = self.stop() {
                return Err(format!("unshare: given up: {reason}"));
            }
            let next = walk.next(&mut || self.stop().is_none()).map_err(failed)?;
            let Some(piece) = next else {
                match self.stop() {
                    Some(_) => continue,
                    None => break,
                }
            };
            let begun = Instant::now();
            let step = {
                let _length = lock(&whose.resizing);
                if obstacle(&whose).is_some() {
                    continue;
                }
                walk.unshare(disk, &piece).map_err(failed)?
            };
            let took = begun.elapsed();
            due = match step {
                Step::Busy => after(Instant::now(), SOON),
                Step::Unshared(bytes) => {
                    self.unshared.fetch_add(bytes, Ordering::Relaxed);
                    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                    self.longest.fetch_max(us, Ordering::Relaxed);
                    // What was late is not made up for.
                    let allowed = after(due.max(begun), time_for(bytes, self.rate));
                    allowed.max(after(Instant::now(), took))
                }
            };
        }
        walk.left(disk).map_err(failed)
    }

    /// Waits while something else has to be done first.
    fn wait_for(&self, whose: &Whose) {
        while let Some(why) = obstacle(whose)
            && self.stop().is_none()
        {
            lock(&self.state).waits = Some(why);
            self.rest(LOOK);
        }
        lock(&self.state).waits = None;
    }

    fn stop(&self) -> Option<&'static str> {
        lock(&self.state).stop
    }

    /// Waits for so long, or until it is to end.
    fn rest(&self, time: Duration) {
        let state = lock(&self.state);
        let goes_on = |state: &mut State| state.stop.is_none();
        drop(self.changed.wait_timeout_while(state, time, goes_on));
    }

    fn end(&self, result: Result<u64, String>, feed: &Feed<Event>) {
        let unshared_bytes = self.unshared.load(Ordering::Relaxed);
        let (left, error) = match result {
            Ok(left) => (Some(left), None),
            Err(error) => (None, Some(error)),
        };
        match &error {
            Some(error) => log::warn!(
                "{error} (after {} were copied)",
                size::display(unshared_bytes)
            ),
            None => log::info!(
                "unshare: {} were copied, and {} are shared",
                size::display(unshared_bytes),
                size::display(left.unwrap_or(0))
            ),
        }
        feed.tell(Event::UnshareEnded {
            unshared_bytes,
            reason: error.clone(),
        });
        let mut state = lock(&self.state);
        state.waits = None;
        state.ended = Some(Ended {
            took: self.begun.elapsed(),
            left,
            error,
        });
        drop(state);
        self.changed.notify_all();
    }
}

/// What has to be over before a piece may be moved.
fn obstacle(whose: &Whose) -> Option<&'static str> {
    if !whose.disk.is_ours() {
        return Some("no guest uses the disk");
    }
    if whose.disk.clones().current().is_some() {
        return Some("a snapshot is being made");
    }
    if whose.limits.held().is_some() {
        return Some("the disk is held still");
    }
    None
}

/// So long after `start`, but not for ever.
fn after(start: Instant, time: Duration) -> Instant {
    start.checked_add(time.min(LONGEST)).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_end_does_not_rest() {
        let job = Job {
            rate: None,
            shared: 0,
            unshared: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            begun: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let unshare = Unshare::default();
        assert!(unshare.cancel("why").is_err());
        *lock(&unshare.job) = Some(Arc::new(job));
        assert!(unshare.cancel("why").is_ok());
        let job = unshare.current().unwrap();
        job.rest(Duration::from_secs(3600));
        assert_eq!(job.stop(), Some("why"));
    }
}
