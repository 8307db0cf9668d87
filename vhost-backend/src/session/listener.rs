//! Where front-ends come from.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use epoll::Events;

use crate::error::of_host;
use crate::peer::{self, Peer};
use crate::session::poller::Poller;
use crate::sys;

/// Where front-ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket: front-ends come one after the other, the next one
    /// waits (VU-44, VU-48).
    Listener(UnixListener),
    /// A connected socket: the only front-end there will be.
    Connected(UnixStream),
}

/// How long to leave the backlog alone when no connection can be accepted
/// (no file descriptors left, say).
const PAUSE: Duration = Duration::from_millis(250);

/// How long a connection that has sent nothing may keep another one waiting:
/// a front-end begins at once, a probe or a descriptor that was forgotten never.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);

/// Front-ends that are known to wait; more wait in the backlog.
const MOST_WAITING: usize = 8;

/// A connection that is not served yet.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub stream: UnixStream,
    pub peer: Option<Peer>,
    pub since: Instant,
}

/// A listening socket, and who has come.
#[derive(Debug)]
pub(crate) struct Doorway {
    listener: UnixListener,
    waiting: VecDeque<Visitor>,
    closed_until: Option<Instant>,
    token: u64,
}

impl Doorway {
    /// `poller` wakes us with `token` when somebody comes or gives up waiting.
    pub(crate) fn new(listener: UnixListener, poller: &Poller, token: u64) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        poller.add(&listener, token, Events::EPOLLIN | Events::EPOLLET)?;
        Ok(Self {
            listener,
            waiting: VecDeque::new(),
            closed_until: None,
            token,
        })
    }

    /// Takes note of who has come and who has left again. `served` is who keeps
    /// them waiting, for the log.
    pub(crate) fn look(&mut self, poller: &Poller, served: Option<Option<Peer>>) {
        self.waiting.retain(|visitor| {
            let stays = sys::has_sent(&visitor.stream) != Some(false);
            if !stays {
                log::info!(
                    "a front-end that waited ({}) has gone",
                    peer::name(visitor.peer)
                );
            }
            stays
        });
        if self
            .closed_until
            .is_some_and(|until| Instant::now() < until)
        {
            return;
        }
        let complained = self.closed_until.take().is_some();
        // Asked first: at the limit on open files accept(2) fails also where nobody
        // has come.
        while sys::is_readable(&self.listener) && self.has_room() {
            match sys::accept(&self.listener) {
                Ok(stream) => self.enter(stream, poller, served),
                // Nobody, or somebody who has gone again.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    if !complained {
                        log::error!("cannot accept a front-end: {}", of_host(&error));
                    }
                    self.closed_until = Some(Instant::now() + PAUSE);
                    return;
                }
            }
        }
    }

    fn enter(&mut self, stream: UnixStream, poller: &Poller, served: Option<Option<Peer>>) {
        let visitor = Visitor {
            peer: Peer::of(&stream),
            stream,
            since: Instant::now(),
        };
        let edges = Events::EPOLLIN | Events::EPOLLRDHUP | Events::EPOLLET;
        if let Err(error) = poller.add(&visitor.stream, self.token, edges) {
            log::error!("cannot watch a front-end that waits: {}", of_host(&error));
            return;
        }
        if let Some(served) = served {
            log::warn!(
                "another front-end ({}) waits until the one that is connected ({}) has gone",
                peer::name(visitor.peer),
                peer::name(served)
            );
        }
        self.waiting.push_back(visitor);
    }

    /// Where too many wait, one that has been silent for long makes room.
    fn has_room(&mut self) -> bool {
        if self.waiting.len() < MOST_WAITING {
            return true;
        }
        let silent = |visitor: &Visitor| {
            visitor.since.elapsed() >= SILENCE && sys::has_sent(&visitor.stream).is_none()
        };
        match self.waiting.iter().position(silent) {
            None => false,
            Some(index) => self.waiting.remove(index).is_some(),
        }
    }

    /// The next front-end, if one waits: the first of those that have begun to
    /// speak, or else the first.
    pub(crate) fn next(&mut self, poller: &Poller) -> io::Result<Option<Visitor>> {
        let speaks = |visitor: &Visitor| sys::has_sent(&visitor.stream) == Some(true);
        let index = self.waiting.iter().position(speaks).unwrap_or(0);
        let Some(visitor) = self.waiting.remove(index) else {
            return Ok(None);
        };
        poller.remove(&visitor.stream)?;
        Ok(Some(visitor))
    }

    /// Who waits, the first one first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Visitor> {
        self.waiting.iter()
    }

    /// When to [look](Self::look) again without an event.
    pub(crate) fn closed_until(&self) -> Option<Instant> {
        self.closed_until
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn doorway(name: &str) -> (Doorway, Poller, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("doorway-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let poller = Poller::new().unwrap();
        let doorway = Doorway::new(listener, &poller, 7).unwrap();
        (doorway, poller, path)
    }

    #[test]
    fn vu_48_who_waits_is_known_in_order_with_its_process() {
        let (mut doorway, poller, path) = doorway("order");
        doorway.look(&poller, None);
        assert!(doorway.next(&poller).unwrap().is_none());
        let _first = UnixStream::connect(&path).unwrap();
        assert!(poller.wait(None, 7).unwrap());
        let mut second = UnixStream::connect(&path).unwrap();
        doorway.look(&poller, Some(None));
        let pids: Vec<_> = doorway.waiting().map(|one| one.peer.unwrap().pid).collect();
        assert_eq!(pids, [std::process::id(); 2]);
        // Who has begun is served before one that is silent.
        second.write_all(b"x").unwrap();
        let next = doorway.next(&poller).unwrap().unwrap();
        assert_eq!(sys::has_sent(&next.stream), Some(true));
        let next = doorway.next(&poller).unwrap().unwrap();
        assert_eq!(sys::has_sent(&next.stream), None);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn vu_48_who_gives_up_waiting_is_forgotten() {
        let (mut doorway, poller, path) = doorway("gone");
        let one = UnixStream::connect(&path).unwrap();
        doorway.look(&poller, None);
        assert_eq!(doorway.waiting().count(), 1);
        drop(one);
        assert!(poller.wait(None, 7).unwrap());
        doorway.look(&poller, None);
        assert_eq!(doorway.waiting().count(), 0);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn vu_48_what_is_silent_makes_room_when_too_many_wait() {
        let (mut doorway, poller, path) = doorway("many");
        let connect = |_| UnixStream::connect(&path).unwrap();
        let mut ends: Vec<_> = (0..MOST_WAITING).map(connect).collect();
        doorway.look(&poller, None);
        ends[0].write_all(b"x").unwrap();
        ends.push(connect(0));
        doorway.look(&poller, None);
        assert_eq!(doorway.waiting().count(), MOST_WAITING);
        for visitor in &mut doorway.waiting {
            visitor.since -= SILENCE;
        }
        doorway.look(&poller, None);
        assert_eq!(doorway.waiting().count(), MOST_WAITING);
        assert!(doorway.waiting.back().unwrap().since.elapsed() < SILENCE);
        let first = doorway.next(&poller).unwrap().unwrap();
        assert_eq!(sys::has_sent(&first.stream), Some(true));
        std::fs::remove_file(&path).unwrap();
    }
}
