//! Where a session is kept for a next process, which may be needed at any time:
//! what is kept is marked as out of date before the front-end's next message is
//! received, and renewed when it has been quiet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::session::parcel::Seal;

/// How long a front-end has been quiet when what is kept of it is renewed: who
/// sets a device up sends many messages at once.
const QUIET: Duration = Duration::from_millis(100);
/// When to try again what did not work.
const AGAIN: Duration = Duration::from_secs(1);

/// Where something outlives this process. Called by the session thread, which
/// waits for it: it may not wait for anybody.
pub trait Shelf: Send {
    /// Puts it there in place of all that was put there before. It is a
    /// descriptor that [`Server::take_up`](crate::Server::take_up) takes in
    /// another process.
    ///
    /// # Errors
    /// It is not kept.
    fn put(&mut self, parcel: OwnedFd) -> io::Result<()>;

    /// Lets go of all that is there, also of what an earlier process has left.
    fn clear(&mut self);
}

/// What is kept of a session.
pub(crate) struct Keeping {
    shelf: Box<dyn Shelf>,
    /// What goes with each session.
    companion: Option<OwnedFd>,
    /// Of what is on the shelf.
    seal: Option<Seal>,
    /// What is on the shelf is to be renewed then.
    due: Option<Instant>,
    /// It did not work the last time, and that was said.
    failed: bool,
}

impl Keeping {
    pub(crate) fn new(shelf: Box<dyn Shelf>, companion: Option<OwnedFd>) -> Self {
        Self {
            shelf,
            companion,
            seal: None,
            due: None,
            failed: false,
        }
    }

    /// What goes with each session.
    pub(crate) fn companion(&self) -> Option<BorrowedFd<'_>> {
        self.companion.as_ref().map(AsFd::as_fd)
    }

    /// The session is about to be changed: what is kept is of no use meanwhile.
    pub(crate) fn unsettle(&mut self) {
        self.set_seal(false);
    }

    /// The session was not changed, after all.
    pub(crate) fn settle(&mut self) {
        if self.due.is_none() {
            self.set_seal(true);
        }
    }

    fn set_seal(&mut self, settled: bool) {
        if let Some(seal) = &self.seal
            && let Err(error) = seal.set(settled)
        {
            log::warn!("what is kept of the front-end cannot be changed: {error}");
            self.clear();
        }
    }

    /// What is kept is to be renewed once the front-end is quiet.
    pub(crate) fn renew_soon(&mut self) {
        self.due = Some(Instant::now() + QUIET);
    }

    /// What is kept is to be renewed as soon as may be.
    pub(crate) fn renew_now(&mut self) {
        self.due = Some(Instant::now());
    }

    /// When [`is_due`](Self::is_due).
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It is time to renew it.
    pub(crate) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// Keeps the session as it was packed. Says so if it cannot be kept; whether
    /// it is.
    pub(crate) fn put(&mut self, packed: io::Result<(OwnedFd, Seal)>) -> bool {
        let put = packed.and_then(|(parcel, seal)| {
            seal.set(true)?;
            self.shelf.put(parcel)?;
            Ok(seal)
        });
        match put {
            Ok(seal) => {
                self.seal = Some(seal);
                self.due = None;
                self.failed = false;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    log::warn!(
                        "the front-end's connection is not kept for a next process, and it has to connect again then: {error}"
                    );
                }
                self.due = Some(Instant::now() + AGAIN);
                false
            }
        }
    }

    /// Nothing is kept any more.
    pub(crate) fn clear(&mut self) {
        self.seal = None;
        self.due = None;
        self.shelf.clear();
    }

    /// Nothing is kept until something changes.
    pub(crate) fn clear_if_kept(&mut self) {
        self.due = None;
        if self.seal.is_some() {
            self.clear();
        }
    }
}
