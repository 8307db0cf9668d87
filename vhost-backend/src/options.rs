//! What a server is told at its start.

use std::time::Duration;

use crate::error::Error;

/// How long a worker looks for work before it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollTime {
    /// It sleeps at once.
    Never,
    /// This long.
    Fixed(Duration),
    /// As long as it has learned to be worth it: not at all on slow disks and
    /// for idle guests.
    Adaptive,
}

/// How much is offered to the front-end, and on how many threads it is
/// served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Queues offered, 1 to [`Options::MAX_QUEUES`].
    pub queues: u16,
    /// The largest ring accepted, in entries: a power of two, 4 to 32768.
    pub queue_size: u16,
    /// Threads that serve rings, 1 to `queues`. Worker `w` serves the queues
    /// `q` with `q % workers == w`.
    pub workers: usize,
    /// Host CPUs to pin the workers to, in turn; empty: not pinned.
    pub cpus: Vec<usize>,
    /// How long a worker looks for work before it sleeps.
    pub poll: PollTime,
}

impl Options {
    /// The ring index of a vhost-user message has eight bits.
    pub const MAX_QUEUES: u16 = 256;

    /// # Errors
    /// Names the option that is outside its limits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.queues == 0 || self.queues > Self::MAX_QUEUES {
            return Err(Error::Options("the number of queues must be 1 to 256"));
        }
        if !self.queue_size.is_power_of_two() || self.queue_size < 4 {
            return Err(Error::Options(
                "the queue size must be a power of two, 4 to 32768",
            ));
        }
        if self.workers == 0 || self.workers > usize::from(self.queues) {
            return Err(Error::Options(
                "the number of worker threads must be 1 to the number of queues",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(queues: u16, queue_size: u16, workers: usize) -> Options {
        Options {
            queues,
            queue_size,
            workers,
            cpus: Vec::new(),
            poll: PollTime::Never,
        }
    }

    #[test]
    fn limits_are_kept() {
        for good in [
            options(1, 4, 1),
            options(256, 32768, 256),
            options(4, 256, 3),
        ] {
            good.check().unwrap();
        }
        for bad in [
            options(0, 256, 1),
            options(257, 256, 1),
            options(1, 100, 1),
            options(1, 2, 1),
            options(1, 256, 0),
            options(1, 256, 2),
        ] {
            bad.check().unwrap_err();
        }
    }
}
