//! The thread that looks at what the guard has no event for: how the file
//! system is mounted, the image's attributes, the break time of leases, and
//! the guard itself. It may wait for /proc, so the guard does not do it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::host::hardening::SMALL_STACK;
use crate::host::switches;
use crate::host::sys;
use crate::path::{DiskPath, Obstacle};

/// How often it looks while the disk path is in use.
const PERIOD: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What was seen, for whoever acts on it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The path may not be used any more, for this reason.
    Obstacle(Obstacle),
    /// What kept the path away may have gone.
    Change,
}

/// The thread; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Lookout {
    stop: Arc<AtomicBool>,
    event: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host refuses a descriptor or a thread.
    pub(crate) fn spawn(
        path: Arc<DiskPath>,
        tell: impl Fn(Seen) + Send + 'static,
    ) -> io::Result<Lookout> {
        let stop = Arc::new(AtomicBool::new(false));
        let event = Arc::new(sys::event()?);
        let mounts = File::open("/proc/self/mountinfo")
            .map_err(|error| log::debug!("mounts are not watched: {error}"))
            .ok();
        let watch = Watch {
            path,
            tell,
            stop: Arc::clone(&stop),
            event: Arc::clone(&event),
            mounts,
            told_late: false,
        };
        let thread = std::thread::Builder::new()
            .name("lookout".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(move || watch.run())?;
        Ok(Lookout {
            stop,
            event,
            thread: Some(thread),
        })
    }

    /// To be signalled when the path is entered.
    pub(crate) fn event(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        sys::event_set(&*self.event);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the lookout has panicked");
        }
    }
}

struct Watch<T> {
    path: Arc<DiskPath>,
    tell: T,
    stop: Arc<AtomicBool>,
    event: Arc<OwnedFd>,
    /// Becomes ready when something is mounted, unmounted or remounted in this
    /// mount namespace, though not for every way to do that.
    mounts: Option<File>,
    told_late: bool,
}

impl<T: Fn(Seen)> Watch<T> {
    fn run(mut self) {
        let mut mounted = false;
        while !self.stop.load(Ordering::Acquire) {
            let in_use = self.path.is_live();
            if in_use {
                self.look();
                self.watch_guard();
            } else if mounted {
                (self.tell)(Seen::Change);
            }
            mounted = self.sleep(in_use);
        }
    }

    fn look(&self) {
        if switches::left_out("recheck") {
            return;
        }
        if let Err(obstacle) = self.path.check_conditions() {
            // At once, also if the guard does not hear.
            self.path.suspend();
            (self.tell)(Seen::Obstacle(obstacle));
        }
    }

    fn watch_guard(&mut self) {
        let state = self.path.guard_state();
        if state.late != self.told_late {
            self.told_late = state.late;
            let seconds = state.turned_ms_ago / 1000;
            if state.late {
                log::warn!(
                    "the guard has not looked at the lease for {seconds} s; workers look themselves"
                );
            } else {
                log::info!("the guard looks at the lease again");
            }
        }
    }

    /// Sleeps until something is mounted or remounted, which it says, or the
    /// path is entered, or it is time to look.
    fn sleep(&self, in_use: bool) -> bool {
        let event = self.event.as_fd();
        let mounts = self.mounts.as_ref().map_or(event, File::as_fd);
        let mut polls = [
            PollFd::new(&event, PollFlags::IN),
            PollFd::new(&mounts, PollFlags::PRI),
        ];
        let period = in_use.then_some(PERIOD);
        let mounted = match rustix::event::poll(&mut polls, period.as_ref()) {
            Ok(_) => polls[1].revents().contains(PollFlags::PRI),
            Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                log::error!("the lookout cannot wait: {error}");
                std::thread::sleep(Duration::from_secs(1));
                true
            }
        };
        sys::event_take(&*self.event);
        mounted
    }
}
