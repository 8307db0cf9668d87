//! What wakes a worker besides its I/O: the kicks of its rings and the
//! commands of the session, behind one descriptor that can be waited for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use epoll::{ControlOptions, Event, Events};
use vmm_sys_util::eventfd::EventFd;

use crate::sys;

/// Names the commands' eventfd among the queues.
const COMMANDS: u64 = u64::MAX;

/// An epoll instance and the eventfds it watches.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: RawFd,
    commands: EventFd,
    kicks: Box<[Option<EventFd>]>,
    /// Room for one event of each.
    events: Vec<Event>,
}

impl Watch {
    /// Watches for commands, and kicks of `queues` queues.
    pub(crate) fn new(commands: EventFd, queues: usize) -> io::Result<Self> {
        let epoll = epoll::create(true)?;
        let kicks = (0..queues).map(|_| None).collect();
        let watch = Self {
            epoll,
            commands,
            kicks,
            events: vec![Event { events: 0, data: 0 }; queues + 1],
        };
        watch.add(&watch.commands, COMMANDS)?;
        Ok(watch)
    }

    /// Becomes readable when there is something to [`drain`](Self::drain).
    pub(crate) fn descriptor(&self) -> RawFd {
        self.epoll
    }

    fn add(&self, fd: &EventFd, name: u64) -> io::Result<()> {
        epoll::ctl(
            self.epoll,
            ControlOptions::EPOLL_CTL_ADD,
            fd.as_raw_fd(),
            Event::new(Events::EPOLLIN, name),
        )
    }

    /// Watches this kick in place of the queue's former one. Returns whether
    /// there is one that can be watched.
    pub(crate) fn set_kick(&mut self, queue: usize, fd: Option<EventFd>) -> bool {
        let Some(slot) = self.kicks.get_mut(queue) else {
            return false;
        };
        if let Some(old) = slot.take() {
            // The front-end has it open too, so closing would not end the
            // watch.
            let old = epoll::ctl(
                self.epoll,
                ControlOptions::EPOLL_CTL_DEL,
                old.as_raw_fd(),
                Event::new(Events::empty(), 0),
            );
            if let Err(error) = old {
                log::warn!("cannot forget a kick: {error}");
            }
        }
        let Some(fd) = fd else { return false };
        let watched = sys::set_nonblocking(&fd).and_then(|()| self.add(&fd, queue as u64));
        match watched {
            Ok(()) => {
                if let Some(slot) = self.kicks.get_mut(queue) {
                    *slot = Some(fd);
                }
                true
            }
            Err(error) => {
                log::warn!("a kick cannot be waited for, so its ring is polled: {error}");
                false
            }
        }
    }

    /// Makes everything that was signalled silent again. Calls `dead` for each
    /// queue whose kick can signal no more.
    pub(crate) fn drain(&mut self, mut dead: impl FnMut(usize)) {
        let count = match epoll::wait(self.epoll, 0, &mut self.events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                log::error!("cannot look for kicks: {error}");
                return;
            }
        };
        for index in 0..count {
            let Event { events, data } = self.events[index];
            if data == COMMANDS {
                // Nonblocking; the commands themselves are in their channel.
                let _ = self.commands.read();
                continue;
            }
            let Ok(queue) = usize::try_from(data) else {
                continue;
            };
            let Some(Some(kick)) = self.kicks.get(queue) else {
                continue;
            };
            let alive = match kick.read() {
                // No eventfd counts zero: this is the end of something else.
                Ok(count) => count > 0,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            let hung_up = events & (Events::EPOLLHUP | Events::EPOLLERR).bits() != 0;
            if !alive || hung_up {
                self.set_kick(queue, None);
                dead(queue);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Err(error) = epoll::close(self.epoll) {
            log::warn!("cannot close an epoll instance: {error}");
        }
    }
}
