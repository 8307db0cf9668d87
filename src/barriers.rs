//! Whether a sync of the image's file reaches the disk. An ext4 that is
//! mounted with `nobarrier` leaves everything in the disk's cache, and can be
//! remounted so at any time: then a FLUSH syncs the device as well.
//!
//! The kernel tells of a remount (mountinfo becomes ready), and the thread
//! that looks at it comes a moment later. So a worker asks itself, right
//! before it syncs the file, whether anything was told, and until somebody has
//! looked it does both.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};

/// What is known of the mount.
#[derive(Debug, Default)]
pub struct Barriers {
    /// Counts what workers were told of.
    changes: AtomicU64,
    /// How many of them somebody has looked at, and one more: 0 is none.
    seen: AtomicU64,
    /// A sync of the file reached the disk then.
    reach: AtomicBool,
}

impl Barriers {
    /// Something has changed.
    pub fn change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Somebody looks at the mount now; to be given to [`seen`](Self::seen).
    pub fn look(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// A look that has begun after so many changes has found this.
    pub fn seen(&self, changes: u64, reach: bool) {
        self.reach.store(reach, Ordering::SeqCst);
        self.seen.store(changes + 1, Ordering::SeqCst);
    }

    /// A sync of the file is known to reach the disk.
    pub fn reach(&self) -> bool {
        self.seen.load(Ordering::SeqCst) > self.changes.load(Ordering::SeqCst)
            && self.reach.load(Ordering::SeqCst)
    }
}

/// Tells when something is mounted, unmounted or remounted in this mount
/// namespace.
#[derive(Debug)]
pub struct MountEvents(File);

impl MountEvents {
    /// Tells what happens from now on.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn new() -> io::Result<MountEvents> {
        let events = MountEvents(File::open("/proc/self/mountinfo")?);
        events.take();
        Ok(events)
    }

    /// Something has happened since the last call. Never waits.
    pub fn take(&self) -> bool {
        let mut polls = [PollFd::new(&self.0, PollFlags::PRI)];
        let now = Timespec::default();
        // An interrupted look has seen nothing, and is taken for the worst.
        rustix::event::poll(&mut polls, Some(&now)).map_or(true, |ready| ready > 0)
    }
}

impl AsFd for MountEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_began_before_a_change_does_not_count() {
        let barriers = Barriers::default();
        assert!(!barriers.reach(), "nobody has looked");
        let look = barriers.look();
        barriers.seen(look, true);
        assert!(barriers.reach());
        let look = barriers.look();
        barriers.change();
        barriers.seen(look, true);
        assert!(!barriers.reach());
        barriers.seen(barriers.look(), false);
        assert!(!barriers.reach());
        barriers.seen(barriers.look(), true);
        assert!(barriers.reach());
    }

    #[test]
    fn nothing_is_told_while_nothing_is_mounted() {
        assert!(!MountEvents::new().unwrap().take());
    }
}
