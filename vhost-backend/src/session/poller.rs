//! An epoll instance that is closed when it is dropped.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use epoll::{ControlOptions, Event, Events};

/// Waits for any of several descriptors.
#[derive(Debug)]
pub(crate) struct Poller(RawFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        epoll::create(true).map(Self)
    }

    /// Reports `token` whenever `events` come up on a descriptor. It is
    /// forgotten when its last duplicate is closed.
    pub(crate) fn add(&self, fd: &impl AsRawFd, token: u64, events: Events) -> io::Result<()> {
        let event = Event::new(events, token);
        epoll::ctl(self.0, ControlOptions::EPOLL_CTL_ADD, fd.as_raw_fd(), event)
    }

    pub(crate) fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let event = Event::new(Events::empty(), 0);
        epoll::ctl(self.0, ControlOptions::EPOLL_CTL_DEL, fd.as_raw_fd(), event)
    }

    /// Sleeps until an event or the deadline; returns whether `token` was
    /// among the events.
    pub(crate) fn wait(&self, deadline: Option<Instant>, token: u64) -> io::Result<bool> {
        let mut events = [Event::new(Events::empty(), 0); 8];
        let count = match epoll::wait(self.0, timeout(deadline), &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        Ok(events.iter().take(count).any(|event| event.data == token))
    }
}

/// Milliseconds, rounded up so that the deadline has passed afterwards.
fn timeout(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now());
    let left = left + Duration::from_micros(999);
    i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
}

impl Drop for Poller {
    fn drop(&mut self) {
        // The only error possible is a descriptor that is not open.
        let _ = epoll::close(self.0);
    }
}
