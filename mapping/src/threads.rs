//! The threads that this library starts, for a process that wants to do something first in each: to give up what it
//! does not need, for example.

use std::sync::OnceLock;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Thread {
    /// Takes and gives back the lease, enters and leaves the disk path: asks the file system, opens files below
    /// /proc and /sys, reads and writes the file and its device.
    Guard,
    /// Looks at mounts, attributes and lengths: opens files below /proc and /sys.
    Lookout,
    /// Receives the lease's signals.
    Lease,
    /// Asks the file system for extents, and the page cache for pages.
    Filler,
}

static FIRST: OnceLock<fn(Thread)> = OnceLock::new();

/// From now on each thread of this library calls `first` before anything else. To be called once, before there is any.
pub fn on_start(first: fn(Thread)) {
    if FIRST.set(first).is_err() {
        log::warn!("threads have something to do first already");
    }
}

/// A thread has begun.
pub(crate) fn begun(thread: Thread) {
    if let Some(first) = FIRST.get() {
        first(thread);
    }
}
