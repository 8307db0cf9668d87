//! The state of a back-end, saved and restored through a pipe.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::codes::{flag, request};
use crate::connection::Connection;
use crate::error::{Error, Result};

const SAVE: u32 = 0;
const LOAD: u32 = 1;

impl Connection {
    /// What the back-end has to keep of a device whose rings are all stopped.
    ///
    /// # Errors
    /// The back-end refuses, or the host does.
    pub fn save_state(&self) -> Result<Vec<u8>> {
        let (mut end, pipe) = pipe()?;
        self.transfer(SAVE, pipe)?;
        let mut state = Vec::new();
        let read = end.read_to_end(&mut state);
        read.map_err(|e| Error::Host("read a state", e))?;
        self.check_state()?;
        Ok(state)
    }

    /// Has the back-end restore what was saved; before rings start.
    ///
    /// # Errors
    /// The back-end refuses, or the host does.
    pub fn load_state(&self, state: &[u8]) -> Result<()> {
        let (end, mut pipe) = pipe()?;
        self.transfer(LOAD, end)?;
        let written = pipe.write_all(state);
        written.map_err(|e| Error::Host("write a state", e))?;
        drop(pipe);
        self.check_state()
    }

    fn transfer(&self, direction: u32, pipe: File) -> Result<()> {
        let payload = [direction, 0].map(u32::to_ne_bytes).concat();
        let fds = [pipe.as_raw_fd()];
        let reply = self.ask(request::SET_DEVICE_STATE_FD, &payload, &fds)?;
        accepted(request::SET_DEVICE_STATE_FD, reply.u64_at(0) & !flag::NO_FD)
    }

    fn check_state(&self) -> Result<()> {
        let reply = self.ask(request::CHECK_DEVICE_STATE, &[], &[])?;
        accepted(request::CHECK_DEVICE_STATE, reply.u64_at(0))
    }
}

fn accepted(request: u32, value: u64) -> Result<()> {
    match value {
        0 => Ok(()),
        value => Err(Error::Refused { request, value }),
    }
}

fn pipe() -> Result<(File, File)> {
    let (end, pipe) = std::io::pipe().map_err(|e| Error::Host("make a pipe", e))?;
    Ok((OwnedFd::from(end).into(), OwnedFd::from(pipe).into()))
}
