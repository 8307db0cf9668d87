//! How a session is kept for a next process, and taken up from the last one.

use std::io;
use std::os::fd::OwnedFd;

use super::{Bell, Server};
use crate::device::Device;
use crate::session::keeping::{Keeping, Shelf};
use crate::session::poller::Poller;
use crate::session::{Outcome, Session, lock, parcel};
use crate::sys;

impl Bell {
    /// The session is to be left to a next process.
    pub(super) fn keeps(&self) -> bool {
        self.keep.load(std::sync::atomic::Ordering::Acquire)
    }
}

impl<D: Device> Server<D> {
    /// From now on sessions are kept there for a next process, in case this one
    /// ends while its front-end does not. They can be gone on with after a
    /// [`stop_and_keep`](super::Handle::stop_and_keep); and after a sudden end, if
    /// the front-end keeps a record of requests in flight and nothing of a message
    /// was lost. What cannot be gone on with is hung up on, as if nothing had been
    /// kept. The `companion` goes with each, for whoever goes on
    /// ([`companion`](crate::companion)).
    pub fn keep(&mut self, shelf: Box<dyn Shelf>, companion: Option<OwnedFd>) {
        lock(&self.handler).keep();
        self.keeping = Some(Keeping::new(shelf, companion));
    }

    /// [`run`](Self::run) goes on with the session of another process, that was put
    /// on a [`Shelf`] as this `parcel`. One that cannot be gone on with is hung up
    /// on.
    pub fn take_up(&mut self, parcel: OwnedFd) {
        self.parcel = Some(parcel);
    }

    /// What [`take_up`](Self::take_up) was given, as a session.
    pub(super) fn taken_up(&mut self, poller: &Poller) -> Option<Session<D>> {
        let parcel = self.parcel.take()?;
        match self.go_on_with(parcel, poller) {
            Ok(session) => {
                log::info!("the front-end of the process before is served on");
                Some(session)
            }
            Err(error) => {
                log::info!("the front-end of the process before has to connect again: {error}");
                if let Some(keeping) = &mut self.keeping {
                    keeping.clear();
                }
                None
            }
        }
    }

    fn go_on_with(&mut self, parcel: OwnedFd, poller: &Poller) -> io::Result<Session<D>> {
        let (stream, contents) = parcel::open(parcel)?;
        if sys::has_hung_up(&stream) {
            return Err(io::Error::other("it has gone"));
        }
        if lock(&self.handler).identity() != contents.identity {
            return Err(io::Error::other(
                "the disk has another size, serial or form than it had",
            ));
        }
        let mut session = self.connect(stream, poller)?;
        let resumed = session.resume(contents);
        match resumed {
            Ok(()) => {
                if let Some(keeping) = &mut self.keeping {
                    keeping.renew_now();
                }
                Ok(session)
            }
            Err(error) => {
                self.hang_up(&mut Some(session));
                Err(error)
            }
        }
    }

    /// Serves the session's messages; what is kept of it says at each instant
    /// whether it can be used.
    pub(super) fn serve_kept(&mut self, session: &mut Session<D>) -> Outcome {
        let Some(keeping) = &mut self.keeping else {
            return session.serve();
        };
        keeping.unsettle();
        let outcome = session.serve();
        if session.take_changes() {
            keeping.renew_soon();
        }
        if outcome != Outcome::Waits || !session.is_between_messages() {
            return outcome;
        }
        if !keeping.is_due() {
            keeping.settle();
        } else if session.is_front_end() && lock(&self.handler).can_be_kept() {
            keeping.put(session.pack(keeping.companion()));
        } else {
            keeping.clear_if_kept();
        }
        outcome
    }

    /// Leaves a session to the next process, if it can be; its rings rest then.
    pub(super) fn leave(&mut self, session: &mut Session<D>) -> bool {
        let Some(keeping) = &mut self.keeping else {
            return false;
        };
        keeping.unsettle();
        lock(&self.handler).rest();
        let can_be = session.is_front_end()
            && session.is_between_messages()
            && lock(&self.handler).can_be_kept();
        if can_be && keeping.put(session.pack(keeping.companion())) {
            session.leave_open();
            return true;
        }
        keeping.clear();
        false
    }
}
