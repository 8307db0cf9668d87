//! A way for threads that may not wait to tell one that listens: what it has
//! no room for is lost, and counted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

use super::sys;

/// The end that tells; each thread may have its own.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    sender: SyncSender<T>,
    shared: Arc<Shared>,
}

/// The end that listens. Without it, what is told is forgotten.
#[derive(Debug)]
pub(crate) struct Listener<T> {
    receiver: Receiver<T>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What there was no room for.
    lost: AtomicU64,
    /// Readable while there may be something.
    event: OwnedFd,
}

/// A feed with room for so much.
///
/// # Errors
/// The host refuses a descriptor.
pub(crate) fn feed<T>(room: usize) -> io::Result<(Feed<T>, Listener<T>)> {
    let shared = Arc::new(Shared {
        lost: AtomicU64::new(0),
        event: sys::event()?,
    });
    let (sender, receiver) = mpsc::sync_channel(room);
    let feed = Feed {
        sender,
        shared: Arc::clone(&shared),
    };
    Ok((feed, Listener { receiver, shared }))
}

impl<T> Clone for Feed<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Feed<T> {
    /// Tells it; takes no lock and waits for nobody.
    pub(crate) fn tell(&self, what: T) {
        match self.sender.try_send(what) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => return,
        }
        sys::event_set(&self.shared.event);
    }
}

impl<T> Listener<T> {
    /// Readable while there may be something to take.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// The next that was told; `None` if there is nothing for now.
    pub(crate) fn next(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    /// Makes the event silent. What is told from here on makes it readable.
    pub(crate) fn silence(&self) {
        sys::event_take(&self.shared.event);
    }

    /// How much was lost since it was last asked.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted_and_nobody_waits() {
        let (feed, listener) = feed(2).unwrap();
        for number in 0..5 {
            feed.clone().tell(number);
        }
        assert!(sys::event_take(&listener.shared.event));
        assert_eq!([listener.next(), listener.next()], [Some(0), Some(1)]);
        assert_eq!((listener.next(), listener.lost()), (None, 3));
        feed.tell(5);
        assert_eq!((listener.next(), listener.lost()), (Some(5), 0));
        drop(listener);
        feed.tell(6);
    }
}
