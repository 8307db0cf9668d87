//! Requests about shared memory that are answered here: the `vhost` crate
//! leaves out the reply where it has none but an error to give, and takes the
//! payload in one of its two lengths only.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fs::File;
use std::io;

use super::{Session, lock};
use crate::device::Device;
use crate::error::Refusal;
use crate::memory::inflight::Shape;
use crate::session::admission::{self, Terms, u16_at, u64_at};
use crate::session::channel::Message;
use crate::session::handler::{Area, Handler};

/// The area that a payload begins with.
fn area(payload: &[u8]) -> Area {
    Area {
        size: u64_at(payload, 0),
        offset: u64_at(payload, 8),
    }
}

fn shape(payload: &[u8]) -> Shape {
    Shape {
        queues: u16_at(payload, 16),
        entries: u16_at(payload, 18),
    }
}

impl<D: Device> Session<D> {
    /// GET_INFLIGHT_FD: the payload comes back, padded or not as it was sent.
    pub(super) fn get_inflight(&mut self, message: &Message, terms: &Terms) -> io::Result<()> {
        let payload = self.channel.payload(message);
        let mut reply = payload.to_vec();
        let created = lock(&self.handler).create_inflight(shape(payload));
        match created {
            Ok((area, file)) => {
                self.channel.discard();
                let words = [area.size, area.offset];
                for (bytes, word) in reply.chunks_exact_mut(8).zip(words) {
                    bytes.copy_from_slice(&word.to_ne_bytes());
                }
                self.channel
                    .reply_with_fd(message.request, &reply, file.into())
            }
            Err(refusal) => self.refuse(message, terms, &refusal),
        }
    }

    /// SET_INFLIGHT_FD
    pub(super) fn set_inflight(&mut self, message: &Message, terms: &Terms) -> io::Result<()> {
        let payload = self.channel.payload(message);
        let (area, shape) = (area(payload), shape(payload));
        let taken = self.with_file(|handler, file| handler.set_inflight(area, shape, file));
        if let Err(refusal) = &taken {
            self.log_refusal(message, refusal);
        }
        self.acknowledge(message, terms, taken.is_err())
    }

    /// SET_LOG_BASE: always answered, with the payload. QEMU waits for any
    /// reply, and the front-ends built on the crate for one of that length.
    pub(super) fn set_log_base(&mut self, message: &Message) -> io::Result<()> {
        let payload = self.channel.payload(message).to_vec();
        let area = area(&payload);
        match self.with_file(|handler, file| handler.set_log(area, file)) {
            Ok(()) => self.channel.reply(message.request, &payload),
            Err(refusal) => {
                self.log_refusal(message, &refusal);
                let (request, reply) = admission::log_refusal_reply();
                self.channel.reply(request, &reply)
            }
        }
    }

    fn with_file(
        &mut self,
        take: impl FnOnce(&mut Handler<D>, File) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match self.channel.take_fds().pop() {
            Some(fd) => take(&mut lock(&self.handler), File::from(fd)),
            None => Err(Refusal::NoFile),
        }
    }
}
