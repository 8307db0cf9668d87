//! A session as the next process needs it, and going on with one of the last.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use vhost::vhost_user::message::FrontendReq;

use super::channel::Next;
use super::parcel::{self, Contents, Seal, Setup};
use super::{Session, lock};
use crate::device::Device;
use crate::sys;

impl<D: Device> Session<D> {
    /// It has set something up, as a front-end does that has a guest.
    pub(crate) fn is_front_end(&self) -> bool {
        self.is_front_end
    }

    /// No part of a message was received and not dealt with.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.channel.is_between_messages()
    }

    /// Whether what a next process needs may have changed since it was asked last.
    pub(crate) fn take_changes(&mut self) -> bool {
        std::mem::take(&mut self.changes)
    }

    /// The socket stays open when this is dropped.
    pub(crate) fn leave_open(&mut self) {
        self.channel.leave_open();
    }

    /// What a next process needs to go on, and the companion.
    ///
    /// # Errors
    /// As [`parcel::pack`].
    pub(crate) fn pack(&self, companion: Option<BorrowedFd<'_>>) -> io::Result<(OwnedFd, Seal)> {
        let mut contents = lock(&self.handler).contents()?;
        contents.features_read = self.features_read;
        contents.news = self.config_changed.is_some();
        if let Some(back) = &self.back {
            contents.setups.push(Setup {
                request: FrontendReq::SET_BACKEND_REQ_FD.into(),
                payload: Vec::new(),
                fds: vec![sys::duplicate(back.stream())?],
            });
        }
        parcel::pack(self.channel.stream(), companion, &contents)
    }

    /// Sets the device up as it was in the last process.
    ///
    /// # Errors
    /// It cannot be; the session is of no use then.
    pub(crate) fn resume(&mut self, contents: Contents) -> io::Result<()> {
        lock(&self.handler).take_up_writeback(contents.writeback);
        self.channel.replay(true);
        if contents.features_read {
            self.serve_again(Setup {
                request: FrontendReq::GET_FEATURES.into(),
                payload: Vec::new(),
                fds: Vec::new(),
            })?;
        }
        for setup in contents.setups {
            self.serve_again(setup)?;
        }
        self.channel.replay(false);
        self.config_changed = contents.news.then(Instant::now);
        Ok(())
    }

    fn serve_again(&mut self, setup: Setup) -> io::Result<()> {
        let request = setup.request;
        self.channel.put(request, &setup.payload, setup.fds)?;
        match self.channel.next()? {
            Next::Message(message) => self.serve_message(&message)?,
            _ => return Err(io::Error::other("what was kept of it is damaged")),
        }
        if self.refusals > 0 {
            let why = format!("this process refuses what it had set up (request {request})");
            return Err(io::Error::other(why));
        }
        Ok(())
    }
}
