//! Wishes: windows that readers want loaded, on their way to the filler.

use std::collections::VecDeque;
use std::time::Duration;

use crate::map::table::{Table, WANTED};
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, Ordering, lock};

/// A window somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) window: usize,
    /// The window is loaded: it carries the mark of a stream that goes on behind it.
    pub(crate) ahead: bool,
}

/// A bounded queue that readers never wait for: whoever finds it locked or full drops the wish, and
/// makes it again with the next miss.
pub(crate) struct Wishes {
    queue: Mutex<Queue>,
    ready: Condvar,
    capacity: usize,
    /// A filler is there.
    listening: AtomicBool,
    dropped: AtomicU64,
}

struct Queue {
    wishes: VecDeque<Wish>,
    poked: bool,
}

impl Wishes {
    pub(crate) fn new(capacity: usize) -> Wishes {
        Wishes {
            queue: Mutex::new(Queue {
                wishes: VecDeque::with_capacity(capacity),
                poked: false,
            }),
            ready: Condvar::new(),
            capacity,
            listening: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        }
    }

    pub(crate) fn listen(&self, on: bool) {
        self.listening.store(on, Ordering::Release);
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Asks for a window unless that has been done already. Neither blocks nor allocates.
    #[cold]
    pub(crate) fn ask(&self, table: &Table, wish: Wish) {
        if !self.listening.load(Ordering::Acquire) {
            return;
        }
        let state = table.state(wish.window);
        if state.load(Ordering::Relaxed) & WANTED != 0
            || state.fetch_or(WANTED, Ordering::AcqRel) & WANTED != 0
        {
            return;
        }
        if let Ok(mut queue) = self.queue.try_lock()
            && queue.wishes.len() < self.capacity
        {
            queue.wishes.push_back(wish);
            drop(queue);
            self.ready.notify_one();
            return;
        }
        state.fetch_and(!WANTED, Ordering::AcqRel);
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the filler look up from its wait.
    pub(crate) fn poke(&self) {
        lock(&self.queue).poked = true;
        self.ready.notify_all();
    }

    /// Moves all wishes to `out`, waiting for one, for a poke, or at most `timeout` (for ever if `None`).
    pub(crate) fn take(&self, out: &mut Vec<Wish>, timeout: Option<Duration>) {
        let mut queue = lock(&self.queue);
        if queue.wishes.is_empty() && !queue.poked {
            queue = match timeout {
                None => self
                    .ready
                    .wait(queue)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(timeout) => match self.ready.wait_timeout(queue, timeout) {
                    Ok((guard, _)) => guard,
                    Err(poisoned) => poisoned.into_inner().0,
                },
            };
        }
        queue.poked = false;
        out.extend(queue.wishes.drain(..));
    }
}
