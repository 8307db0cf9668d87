//! The state of the disk, saved for a front-end and taken from it again.

use std::fs::File;
use std::os::unix::net::UnixStream;

use vhost::vhost_user;

use super::Handler;
use crate::aside::Aside;
use crate::device::Device;
use crate::error::{Refusal, StateError};
use crate::session::device_state::{DeviceState, check_pipe};

/// What was asked for last.
#[derive(Debug)]
pub(super) enum Transfer {
    /// Nothing, or what failed.
    None,
    /// It was saved.
    Saved,
    /// It comes through there, and is taken when the front-end asks whether
    /// that went well.
    Loading(Aside<File>),
}

impl<D: Device> Handler<D> {
    /// Saves the state through a pipe of the front-end.
    pub(crate) fn save_state(&mut self, pipe: File) -> Result<(), Refusal> {
        self.transfer = Transfer::None;
        let state = self.at_rest()?;
        let queues = 0..self.vrings.len();
        if queues
            .filter_map(|queue| self.inflight_region(queue))
            .any(|region| region.has_requests())
        {
            return Err(StateError::Held.into());
        }
        state.save(pipe)?;
        self.transfer = Transfer::Saved;
        Ok(())
    }

    /// A saved state will come through this pipe.
    pub(crate) fn begin_load(&mut self, pipe: File) -> Result<(), Refusal> {
        self.transfer = Transfer::None;
        self.at_rest()?;
        check_pipe(&pipe)?;
        self.transfer = Transfer::Loading(Aside::new(pipe));
        Ok(())
    }

    /// Whether the state was saved, or has come and is taken.
    pub(crate) fn check_state(&mut self) -> Result<(), Refusal> {
        match std::mem::replace(&mut self.transfer, Transfer::None) {
            Transfer::None => Err(StateError::Nothing.into()),
            Transfer::Saved => Ok(()),
            Transfer::Loading(pipe) => {
                let front_end = self.front_end.as_ref().map(UnixStream::try_clone);
                let front_end = front_end.transpose().map_err(StateError::from)?;
                let saved = DeviceState::load(Aside::into_inner(pipe), front_end)?;
                self.at_rest()?.takes(&saved)?;
                for (ring, base) in self.vrings.iter_mut().zip(saved.bases) {
                    ring.base = base;
                }
                self.writeback = saved.writeback;
                self.update_mode();
                Ok(())
            }
        }
    }

    /// Keeps why a state was refused: the crate tells the front-end that it was,
    /// and nobody why.
    pub(crate) fn refuse_state(&mut self, refusal: Refusal) -> vhost_user::Error {
        self.state_refusal = Some(refusal);
        vhost_user::Error::InvalidOperation("the state is refused")
    }

    /// Why the last state was not saved or taken, once.
    pub(crate) fn take_state_refusal(&mut self) -> Option<Refusal> {
        self.state_refusal.take()
    }

    fn at_rest(&self) -> Result<DeviceState, StateError> {
        if self.rings_running() > 0 {
            return Err(StateError::Running);
        }
        Ok(DeviceState {
            capacity: self.device.capacity_sectors(),
            serial: self.info.serial,
            writeback: self.writeback,
            bases: self.vrings.iter().map(|ring| ring.base).collect(),
        })
    }
}
