//! Where front-ends come from.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use epoll::Events;

use crate::session::poller::Poller;

/// Where front-ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket: front-ends come one after the other, the next one
    /// waits in the backlog (VU-44, VU-48).
    Listener(UnixListener),
    /// A connected socket: the only front-end there will be.
    Connected(UnixStream),
}

/// How long to leave the backlog alone when no connection can be accepted
/// (no file descriptors left, say).
const PAUSE: Duration = Duration::from_millis(250);

/// A listening socket that is only looked at while nobody is connected.
#[derive(Debug)]
pub(crate) struct Doorway {
    listener: UnixListener,
    watched: bool,
    closed_until: Option<Instant>,
}

impl Doorway {
    pub(crate) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            watched: false,
            closed_until: None,
        })
    }

    /// The next front-end, if one waits. Otherwise `poller` wakes us, or
    /// [`closed_until`](Self::closed_until) has to pass first.
    pub(crate) fn accept(&mut self, poller: &Poller, token: u64) -> io::Result<Option<UnixStream>> {
        if self
            .closed_until
            .is_some_and(|until| Instant::now() < until)
        {
            return Ok(None);
        }
        self.closed_until = None;
        match self.listener.accept() {
            Ok((stream, _)) => {
                self.watch(poller, token, false)?;
                return Ok(Some(stream));
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                self.watch(poller, token, true)?;
            }
            Err(error) => {
                log::error!("cannot accept a front-end: {error}");
                self.watch(poller, token, false)?;
                self.closed_until = Some(Instant::now() + PAUSE);
            }
        }
        Ok(None)
    }

    pub(crate) fn closed_until(&self) -> Option<Instant> {
        self.closed_until
    }

    fn watch(&mut self, poller: &Poller, token: u64, on: bool) -> io::Result<()> {
        if self.watched == on {
            return Ok(());
        }
        self.watched = on;
        if on {
            return poller.add(&self.listener, token, Events::EPOLLIN);
        }
        poller.remove(&self.listener)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vu_48_the_backlog_is_left_alone_while_somebody_is_connected() {
        let path = std::env::temp_dir().join(format!("doorway-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let poller = Poller::new().unwrap();
        let mut doorway = Doorway::new(listener).unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        assert!(doorway.accept(&poller, 7).unwrap().is_none());
        assert!(!poller.wait(soon(), 7).unwrap());
        let _first = UnixStream::connect(&path).unwrap();
        assert!(poller.wait(None, 7).unwrap());
        assert!(doorway.accept(&poller, 7).unwrap().is_some());
        let _second = UnixStream::connect(&path).unwrap();
        assert!(!poller.wait(soon(), 7).unwrap());
        assert!(doorway.accept(&poller, 7).unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
    }
}
