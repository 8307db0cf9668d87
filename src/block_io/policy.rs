//! Which errors of the host are told to the guest, and which are waited out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::options::config::OnError;

/// The longest time between two tries where there was no room: nobody tells
/// when there is some.
const UNTIL_ROOM: Duration = Duration::from_secs(1);
/// The same where the disk failed: a try may be work for it.
const UNTIL_IT_WORKS: Duration = Duration::from_secs(15);

/// What is done about errors. Set while requests are carried out.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    hold_no_room: AtomicBool,
    hold_io_errors: AtomicBool,
}

impl Policy {
    /// What becomes of requests for which there is no room.
    pub(crate) fn set_no_room(&self, what: OnError) {
        self.hold_no_room
            .store(what == OnError::Hold, Ordering::Relaxed);
    }

    /// What becomes of requests that the disk fails.
    pub(crate) fn set_io_errors(&self, what: OnError) {
        self.hold_io_errors
            .store(what == OnError::Hold, Ordering::Relaxed);
    }

    /// As they were set: for want of room, and for errors of the disk.
    pub(crate) fn now(&self) -> (OnError, OnError) {
        let word = |hold: &AtomicBool| {
            if hold.load(Ordering::Relaxed) {
                OnError::Hold
            } else {
                OnError::Report
            }
        };
        (word(&self.hold_no_room), word(&self.hold_io_errors))
    }

    /// A request that failed so is held; for how long at most until it is
    /// tried again.
    ///
    /// A limit on the length of files (`EFBIG`) is no want of room: nobody makes
    /// some by deleting. What is wrong with guest memory or with a request
    /// itself does not change by waiting.
    pub(super) fn holds(&self, errno: i32) -> Option<Duration> {
        let (hold, longest) = match errno {
            libc::ENOSPC | libc::EDQUOT => (&self.hold_no_room, UNTIL_ROOM),
            // What the block layer makes of a disk's errors, and of a disk
            // that does not answer or is gone.
            libc::EIO
            | libc::EREMOTEIO
            | libc::ENODATA
            | libc::ETIMEDOUT
            | libc::ENOLINK
            | libc::EBADE
            | libc::EILSEQ
            | libc::ENODEV
            | libc::ENXIO => (&self.hold_io_errors, UNTIL_IT_WORKS),
            _ => return None,
        };
        hold.load(Ordering::Relaxed).then_some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_is_held_or_reported_as_was_said() {
        let policy = Policy::default();
        for errno in 1..133 {
            assert_eq!(policy.holds(errno), None, "{errno}");
        }
        policy.set_no_room(OnError::Hold);
        assert_eq!(policy.holds(libc::ENOSPC), Some(UNTIL_ROOM));
        assert_eq!(policy.holds(libc::EDQUOT), Some(UNTIL_ROOM));
        assert_eq!(policy.holds(libc::EIO), None);
        policy.set_io_errors(OnError::Hold);
        policy.set_no_room(OnError::Report);
        assert_eq!(policy.holds(libc::ENOSPC), None);
        assert_eq!(policy.holds(libc::EIO), Some(UNTIL_IT_WORKS));
        assert_eq!(policy.now(), (OnError::Report, OnError::Hold));
        for errno in [libc::EFBIG, libc::EFAULT, libc::EINVAL, libc::EAGAIN] {
            assert_eq!(policy.holds(errno), None, "{errno}");
        }
    }
}
