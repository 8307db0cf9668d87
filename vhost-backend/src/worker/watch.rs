//! What wakes a worker besides its I/O: the kicks of its rings and the
//! commands of the session. The channel waits for them; they stay open here.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

use crate::device::IoChannel;

/// Where the channel watches for commands; the kicks follow.
const COMMANDS: usize = 0;

/// The eventfds that a worker's channel watches.
#[derive(Debug)]
pub(crate) struct Watch {
    _commands: EventFd,
    kicks: Box<[Option<EventFd>]>,
}

impl Watch {
    /// Watches for commands, and has room for the kicks of `queues` queues.
    pub(crate) fn new(commands: EventFd, queues: usize, channel: &mut impl IoChannel) -> Self {
        channel.watch(COMMANDS, Some(commands.as_raw_fd()));
        Self {
            _commands: commands,
            kicks: (0..queues).map(|_| None).collect(),
        }
    }

    /// Watches this kick in place of the queue's former one. Returns whether
    /// there is one.
    pub(crate) fn set_kick(
        &mut self,
        queue: usize,
        fd: Option<EventFd>,
        channel: &mut impl IoChannel,
    ) -> bool {
        let Some(kick) = self.kicks.get_mut(queue) else {
            return false;
        };
        let changes = kick.is_some() || fd.is_some();
        if changes {
            channel.watch(COMMANDS + 1 + queue, fd.as_ref().map(AsRawFd::as_raw_fd));
        }
        *kick = fd;
        kick.is_some()
    }
}
