//! What may wait on something of a front-end's, for as long as that likes: done
//! on a thread of its own, which is given up if it does not come back.
//!
//! Even letting go of a descriptor may wait: a file of a file system in user
//! space is flushed first, a TCP socket may linger, a pipe is locked, and a
//! socket is closed with all that was sent to it and never received.
#![allow(unsafe_code)]

use std::any::Any;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use pulse::Doing;

/// Most threads of each kind at a time, in the whole process.
const MOST: usize = 16;
/// How long to wait for what need not be waited for.
const MOMENT: Duration = Duration::from_millis(50);
/// Bytes of the stack of one.
const STACK: usize = 128 << 10;

/// Threads that do one kind of thing.
struct Pool {
    threads: AtomicUsize,
    /// What is let go of when one of the threads comes back.
    waiting: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Pool {
    const fn new() -> Self {
        Self {
            threads: AtomicUsize::new(0),
            waiting: Mutex::new(Vec::new()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Box<dyn Any + Send>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go(&'static self, what: impl Send + 'static) {
        self.waiting().push(Box::new(what));
        let Some(place) = Place::of(self) else { return };
        let run = move || {
            loop {
                let next = self.waiting().pop();
                let Some(next) = next else { break };
                drop(next);
            }
        };
        // Mostly it has ended at once, and who counts descriptors finds none.
        if run_within(place, MOMENT, run).is_none() {
            log::debug!("descriptors of a front-end stay open for now");
        }
    }
}

/// What is asked for.
static ACTS: Pool = Pool::new();
/// Descriptors that nobody knows: they may wait for ever.
static UNKNOWN: Pool = Pool::new();
/// Our own end of sockets and pipes, which have to go however many unknown
/// descriptors do not.
static ENDS: Pool = Pool::new();

/// One of the threads that may be there.
struct Place(&'static Pool);

impl Place {
    fn of(pool: &'static Pool) -> Option<Self> {
        let more = |count: usize| (count < MOST).then_some(count + 1);
        let (order, or) = (Ordering::AcqRel, Ordering::Relaxed);
        let taken = pool.threads.fetch_update(order, or, more);
        taken.ok().map(|_| Self(pool))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the thread brings, if it starts and ends within `limit`.
fn run_within<T: Send + 'static>(
    place: Place,
    limit: Duration,
    act: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = mpsc::sync_channel(1);
    let run = move || {
        let result = act();
        drop(place);
        // Nobody may be left to hear it.
        let _ = tell.send(result);
    };
    let builder = Builder::new().name("aside".to_owned()).stack_size(STACK);
    let thread = builder.spawn(run).ok()?;
    let result = pulse::during(Doing::Disk, || told.recv_timeout(limit)).ok()?;
    // It does nothing any more.
    let _ = thread.join();
    Some(result)
}

/// Does something elsewhere; `None` if that has not ended within `limit`, or
/// cannot begin.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    act: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    run_within(Place::of(&ACTS)?, limit, act)
}

/// Drops unknown descriptors elsewhere, now or when there is a thread for it.
pub(crate) fn let_go(what: impl Send + 'static) {
    UNKNOWN.let_go(what);
}

/// A socket or pipe, whose end may wait: it is dropped elsewhere.
#[derive(Debug)]
pub(crate) struct Aside<T: Send + 'static>(ManuallyDrop<T>);

impl<T: Send + 'static> Aside<T> {
    pub(crate) fn new(what: T) -> Self {
        Self(ManuallyDrop::new(what))
    }

    /// For whoever sees to its end.
    pub(crate) fn into_inner(this: Self) -> T {
        let mut this = ManuallyDrop::new(this);
        // SAFETY: it is taken once, as this one is not dropped.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl<T: Send + 'static> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        // SAFETY: it is taken once, as nothing uses it after this.
        ENDS.let_go(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Its end waits for a word.
    struct Slow(Receiver<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    #[test]
    fn who_does_not_come_back_is_given_up_and_the_next_one_has_a_thread() {
        let (release, held) = channel::<()>();
        let lost = within(Duration::from_millis(20), move || drop(Slow(held)));
        assert_eq!(lost, None);
        assert_eq!(within(Duration::from_secs(20), || 7), Some(7));
        drop(release);
    }

    #[test]
    fn what_is_let_go_of_keeps_nobody_waiting() {
        let (release, held) = channel::<()>();
        drop(Aside::new(Slow(held)));
        let (sent, received) = channel::<()>();
        drop(Aside::new(sent));
        // It is dropped by another thread than the one that is held.
        assert!(received.recv().is_err());
        drop(release);
    }
}
