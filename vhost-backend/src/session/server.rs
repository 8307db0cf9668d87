//! A disk offered to front-ends: workers that live as long as the server, and
//! the thread that serves one session after the other.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use epoll::Events;
use pulse::Doing;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::command::Mode;
use crate::device::Device;
use crate::error::{Error, of_host};
use crate::held::HeldRequests;
use crate::limits::Limits;
use crate::meter::{Activity, Meters};
use crate::options::Options;
use crate::peer::{self, Peer};
use crate::session::handler::Handler;
use crate::session::keeping::Keeping;
use crate::session::listener::{Doorway, Endpoint, SILENCE, Visitor};
use crate::session::poller::Poller;
use crate::session::{Outcome, Session, Shared, lock};
use crate::status::{Connected, SessionStatus};
use crate::worker::workers::Workers;

const WAKE: u64 = 0;
const FRONT_END: u64 = 1;
const LISTENER: u64 = 2;

/// What others ask of the session thread.
#[derive(Debug)]
struct Bell {
    event: EventFd,
    stop: AtomicBool,
    /// What is served then is left to a next process.
    keep: AtomicBool,
    capacity_changed: AtomicBool,
    status: Mutex<SessionStatus>,
    meters: Meters,
}

impl Bell {
    fn ring(&self, what: &AtomicBool) {
        what.store(true, Ordering::Release);
        // Fails only when the counter is full, and then it is readable.
        let _ = self.event.write(1);
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn show(&self, status: SessionStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// A handle on a server, for other threads.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Bell>);

impl Handle {
    /// Ends [`Server::run`]: what was fetched is answered, then the
    /// front-end's socket is closed.
    pub fn stop(&self) {
        self.0.ring(&self.0.stop);
    }

    /// As [`stop`](Self::stop), but where sessions are [kept](Server::keep) the
    /// front-end's is left to a next process, and its socket stays open.
    pub fn stop_and_keep(&self) {
        self.0.keep.store(true, Ordering::Release);
        self.stop();
    }

    /// [`Device::capacity_sectors`] has changed. The front-end is told if it
    /// has negotiated that (BLK-35, VU-27).
    pub fn capacity_changed(&self) {
        self.0.ring(&self.0.capacity_changed);
    }

    /// What the workers have counted since the start.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.0.meters.read()
    }

    /// The session as it was when it last did something.
    #[must_use]
    pub fn status(&self) -> SessionStatus {
        let status = self.0.status.lock();
        status.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A disk offered over vhost-user. Its workers are started with it and end
/// when it is dropped.
pub struct Server<D: Device> {
    handler: Shared<D>,
    bell: Arc<Bell>,
    observer: Box<dyn Fn(Visit) + Send>,
    /// Where sessions are kept.
    keeping: Option<Keeping>,
    /// The session to begin with.
    parcel: Option<OwnedFd>,
}

/// What becomes of front-ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Visit {
    /// One is served, whose process this is, if the kernel tells.
    Came(Option<Peer>),
    /// It has gone, and all that it had asked for has ended.
    Gone,
}

impl<D: Device> Server<D> {
    /// As [`with_limits`](Self::with_limits), and there are none, and nobody
    /// else knows of what is held.
    ///
    /// # Errors
    /// As there.
    pub fn new(device: Arc<D>, options: Options) -> Result<Self, Error> {
        Self::with_limits(device, options, &Arc::default(), &Arc::default())
    }

    /// Starts the workers and opens their I/O; they keep these limits, and
    /// count there what they hold.
    ///
    /// # Errors
    /// An option is outside its limits, or the host refuses a thread or its
    /// I/O.
    pub fn with_limits(
        device: Arc<D>,
        options: Options,
        limits: &Arc<Limits>,
        held: &Arc<HeldRequests>,
    ) -> Result<Self, Error> {
        options.check()?;
        let event =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::os("create an eventfd"))?;
        let mode = Arc::new(Mode::default());
        let workers = Workers::spawn(
            Arc::clone(&device),
            Arc::clone(&mode),
            limits,
            held,
            &options,
        )?;
        let meters = workers.meters().clone();
        let handler = Handler::new(device, workers, mode, &options);
        let bell = Bell {
            event,
            stop: AtomicBool::new(false),
            keep: AtomicBool::new(false),
            capacity_changed: AtomicBool::new(false),
            status: Mutex::default(),
            meters,
        };
        Ok(Self {
            handler: Arc::new(Mutex::new(handler)),
            bell: Arc::new(bell),
            observer: Box::new(|_| ()),
            keeping: None,
            parcel: None,
        })
    }

    /// Has `observer` told of front-ends, by the session thread, which waits
    /// for it.
    pub fn observe(&mut self, observer: impl Fn(Visit) + Send + 'static) {
        self.observer = Box::new(observer);
    }

    /// For signal handlers and control interfaces.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.bell))
    }

    /// Serves front-ends on this thread. Returns once [`Handle::stop`] was
    /// called, or when the only front-end of [`Endpoint::Connected`] has gone;
    /// all rings are stopped and drained then.
    ///
    /// # Errors
    /// The host refuses something the session thread needs. A misbehaving
    /// front-end is no error.
    pub fn run(&mut self, endpoint: Endpoint) -> Result<(), Error> {
        let bell = Arc::clone(&self.bell);
        // Fails only where it is signalled already.
        let wake = move || drop(bell.event.write(1));
        let _pulse = pulse::join_with("session", Doing::Turning, wake);
        let poller = Poller::new().map_err(Error::os("create an epoll instance"))?;
        poller
            .add(&self.bell.event, WAKE, Events::EPOLLIN)
            .map_err(Error::os("watch for orders"))?;
        let (mut doorway, mut session) = match endpoint {
            Endpoint::Listener(listener) => {
                let doorway = Doorway::new(listener, &poller, LISTENER)
                    .map_err(Error::os("listen for front-ends"))?;
                (Some(doorway), self.taken_up(&poller))
            }
            Endpoint::Connected(stream) => (
                None,
                Some(
                    self.connect(stream, &poller)
                        .map_err(Error::os("serve the front-end"))?,
                ),
            ),
        };
        let result = self.serve(&poller, &mut doorway, &mut session);
        self.hang_up(&mut session);
        result
    }

    fn serve(
        &mut self,
        poller: &Poller,
        doorway: &mut Option<Doorway>,
        session: &mut Option<Session<D>>,
    ) -> Result<(), Error> {
        while !self.bell.stops() {
            pulse::turn();
            if let Some(doorway) = doorway.as_mut() {
                // One that has hung up keeps nobody waiting: its end comes next.
                let served = session.as_ref().filter(|one| !one.has_hung_up());
                let served = served.map(|one| one.connected().peer);
                doorway.look(poller, served);
            }
            if let (Some(session), Some(doorway)) = (session.as_mut(), doorway.as_ref())
                && let Some(first) = doorway.waiting().next()
            {
                session.drop_orphaned_channel(first.since.elapsed() >= SILENCE);
            }
            let outcome = match (session.as_mut(), doorway.as_mut()) {
                (Some(session), _) => self.turn(session),
                (None, Some(doorway)) => self.let_in(doorway, poller, session)?,
                (None, None) => return Ok(()),
            };
            let impatience = impatience(doorway.as_ref(), session.as_ref());
            let outcome = match impatience {
                Some(at) if at <= Instant::now() => Outcome::Over,
                _ => outcome,
            };
            let deadline = match outcome {
                Outcome::Over => {
                    self.hang_up(session);
                    continue;
                }
                Outcome::Busy => Some(Instant::now()),
                Outcome::Waits => self.deadline(doorway.as_ref(), session.as_ref(), impatience),
            };
            self.show(doorway.as_ref(), session.as_ref());
            if pulse::during(Doing::Resting, || poller.wait(deadline, WAKE))
                .map_err(Error::os("wait for events"))?
            {
                // Readable just now; nobody else reads it.
                let _ = self.bell.event.read();
            }
        }
        Ok(())
    }

    /// Has the state known to whoever asks.
    fn show(&self, doorway: Option<&Doorway>, session: Option<&Session<D>>) {
        let mut status = match session {
            Some(_) => lock(&self.handler).status(),
            None => SessionStatus::default(),
        };
        status.front_end = session.map(Session::connected);
        let waiting = doorway.into_iter().flat_map(Doorway::waiting);
        status.waiting = waiting
            .map(|visitor| Connected {
                peer: visitor.peer,
                since: visitor.since,
            })
            .collect();
        self.bell.show(status);
    }

    fn turn(&mut self, session: &mut Session<D>) -> Outcome {
        if self.bell.capacity_changed.swap(false, Ordering::AcqRel) {
            session.capacity_changed();
        }
        if lock(&self.handler)
            .retry_at()
            .is_some_and(|at| at <= Instant::now())
        {
            lock(&self.handler).start_ready();
        }
        self.serve_kept(session)
    }

    fn let_in(
        &self,
        doorway: &mut Doorway,
        poller: &Poller,
        session: &mut Option<Session<D>>,
    ) -> Result<Outcome, Error> {
        // Whoever comes next reads the configuration as it is.
        self.bell.capacity_changed.store(false, Ordering::Release);
        let next = doorway
            .next(poller)
            .map_err(Error::os("accept a front-end"))?;
        let Some(Visitor { stream, .. }) = next else {
            return Ok(Outcome::Waits);
        };
        match self.connect(stream, poller) {
            Ok(connected) => *session = Some(connected),
            Err(error) => log::error!("cannot serve a front-end: {}", of_host(&error)),
        }
        Ok(Outcome::Busy)
    }

    fn connect(&self, stream: UnixStream, poller: &Poller) -> io::Result<Session<D>> {
        let session = Session::new(stream, &self.handler, poller, FRONT_END)?;
        let peer = session.connected().peer;
        log::info!("a front-end has connected ({})", peer::name(peer));
        (self.observer)(Visit::Came(peer));
        Ok(session)
    }

    /// Drains first, so that a closed socket says that all is done.
    fn hang_up(&mut self, session: &mut Option<Session<D>>) {
        if let Some(mut session) = session.take() {
            let kept = self.bell.keeps() && self.leave(&mut session);
            lock(&self.handler).disconnect(self.bell.stops());
            drop(session);
            self.bell.show(SessionStatus::default());
            if kept {
                log::info!("the front-end is left to the next process");
            } else {
                log::info!("the front-end has gone");
                if let Some(keeping) = &mut self.keeping {
                    keeping.clear();
                }
            }
            (self.observer)(Visit::Gone);
        }
    }

    fn deadline(
        &self,
        doorway: Option<&Doorway>,
        session: Option<&Session<D>>,
        impatience: Option<Instant>,
    ) -> Option<Instant> {
        let closed = doorway.and_then(Doorway::closed_until);
        let mine = match session {
            Some(session) => [
                session.deadline(),
                lock(&self.handler).retry_at(),
                self.keeping.as_ref().and_then(Keeping::due),
            ],
            None => [None; 3],
        };
        let first = doorway.and_then(|doorway| doorway.waiting().next());
        let orphaned = session
            .filter(|session| session.may_be_orphaned())
            .and(first)
            .map(|first| first.since + SILENCE)
            .filter(|at| *at > Instant::now());
        let all = mine.into_iter().chain([closed, impatience, orphaned]);
        all.flatten().min()
    }
}

/// When a connection that is no front-end yet, or leaves a message unfinished,
/// has kept another one waiting for long enough. One that has set something up
/// may be silent for ever: its guest may be paused, or not have begun.
fn impatience<D: Device>(
    doorway: Option<&Doorway>,
    session: Option<&Session<D>>,
) -> Option<Instant> {
    let session = session?;
    let (since, what) = session.gives_way()?;
    let waiting = doorway?.waiting().next()?;
    let at = waiting.since.max(since) + SILENCE;
    if at <= Instant::now() {
        log::warn!(
            "the front-end ({}) is disconnected: {what} for {} s, and another one ({}) waits",
            peer::name(session.connected().peer),
            since.elapsed().as_secs(),
            peer::name(waiting.peer)
        );
    }
    Some(at)
}

mod keeping;

#[cfg(test)]
mod area_tests;
#[cfg(test)]
mod pause_tests;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
