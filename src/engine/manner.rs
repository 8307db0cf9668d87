//! How reads and writes of a device are best given to the kernel, found by
//! asking the device.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::{limits, probe};
use crate::host::switches;

/// How reads and writes are given to the kernel and their ends are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Queued in the ring; the device interrupts when it has ended one.
    Queued,
    /// Queued in a ring of their own (`IORING_SETUP_IOPOLL`): the device never
    /// interrupts, and is looked at instead while that pays.
    Polled,
    /// Carried out by the calling thread: the kernel would hand them to
    /// threads of its own, which costs more than waiting for them.
    Inline,
}

/// A device that takes a read this long is not worth waiting for inline.
const INLINE_LIMIT: Duration = Duration::from_micros(40);

impl Manner {
    /// The best manner for direct I/O on an open block device with logical
    /// blocks of `block` bytes. It is looked at for ends only if it `may_poll`.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(crate) fn of(
        device: &File,
        block: u32,
        may_poll: bool,
    ) -> io::Result<Result<Manner, Punts>> {
        let Some(time) = probe::nowait_probe(device, block)? else {
            return Ok(Ok(if may_poll && polls(device)? {
                Manner::Polled
            } else {
                Manner::Queued
            }));
        };
        Ok(
            if time <= INLINE_LIMIT || switches::left_out("inlinelimit") {
                Ok(Manner::Inline)
            } else {
                Err(Punts(time))
            },
        )
    }
}

/// The kernel hands all I/O on the device to threads of its own, and the
/// device takes so long, the median of some reads, that it is better not
/// waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device takes no I/O without waiting (no NOWAIT) and is too slow to be waited for ({} us a read)",
    .0.as_micros()
)]
pub struct Punts(pub Duration);

/// The device has queues that never interrupt.
fn polls(device: &File) -> io::Result<bool> {
    Ok(limits::attribute(device, "io_poll")?.is_some_and(|text| text == "1"))
}
