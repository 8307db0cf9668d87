//! The thread that looks at what the guard has no event for: how the file
//! system is mounted, the image's attributes and length, the break time of
//! leases, and the guard itself. It may wait for /proc, so the guard does not
//! do it.
//!
//! What cuts the image without breaking the lease (a truncation through an
//! overlay, or by a client of an NFS server here) is told as a change of its
//! content, like each write of our own by the file: those are looked at, but
//! not more often than a few milliseconds apart.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pulse::Doing;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::ablation;
use super::away::Obstacle;
use super::change::Change;
use super::core::Core;
use crate::sys;
use crate::threads::{self, Thread};

/// Bytes of the stack of a thread that does little.
pub(super) const SMALL_STACK: usize = 256 << 10;
/// How often it looks while the disk path is in use.
const PERIOD: Duration = Duration::from_secs(1);
/// How long changes of the image are not looked at after one.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest sleep while the disk path is in use.
const MOST: Duration = Duration::from_millis(999);

/// What was seen, for whoever acts on it.
#[derive(Debug)]
pub(super) enum Seen {
    /// The path may not be used any more, for this reason.
    Obstacle(Obstacle),
    /// What kept the path away may have gone.
    Change,
}

/// The thread; dropping it ends it.
#[derive(Debug)]
pub(super) struct Lookout {
    stop: Arc<AtomicBool>,
    event: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host refuses a descriptor or a thread.
    pub(super) fn spawn(
        path: Arc<Core>,
        tell: impl Fn(Seen) + Send + 'static,
    ) -> io::Result<Lookout> {
        let stop = Arc::new(AtomicBool::new(false));
        let event = Arc::new(sys::eventfd()?);
        let mounts = File::open("/proc/self/mountinfo")
            .map_err(|error| log::debug!("mounts are not watched: {error}"))
            .ok();
        let changes = watch_changes(path.filler().source().file())
            .map_err(|error| log::debug!("changes of the image are not watched: {error}"))
            .ok();
        let watch = Watch {
            path,
            changes,
            tell,
            stop: Arc::clone(&stop),
            event: Arc::clone(&event),
            mounts,
            told_late: false,
        };
        let thread = std::thread::Builder::new()
            .name("lookout".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(move || {
                threads::begun(Thread::Lookout);
                watch.run();
            })?;
        Ok(Lookout {
            stop,
            event,
            thread: Some(thread),
        })
    }

    /// To be signalled when the path is entered.
    pub(super) fn event(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        sys::eventfd_signal(self.event.as_raw_fd());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the lookout has panicked");
        }
    }
}

struct Watch<T> {
    path: Arc<Core>,
    tell: T,
    stop: Arc<AtomicBool>,
    event: Arc<OwnedFd>,
    /// Becomes ready when something is mounted, unmounted or remounted in this
    /// mount namespace, though not for every way to do that.
    mounts: Option<File>,
    /// Tells when the image was changed by anybody's file.
    changes: Option<OwnedFd>,
    told_late: bool,
}

/// What ended a sleep.
#[derive(Debug, Clone, Copy, Default)]
struct Woken {
    mounted: bool,
    changed: bool,
}

impl<T: Fn(Seen)> Watch<T> {
    fn run(mut self) {
        let event = Arc::clone(&self.event);
        let wake = move || sys::eventfd_signal(event.as_raw_fd());
        let _pulse = pulse::join_with("lookout", Doing::Disk, wake);
        let mut woken = Woken::default();
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let in_use = self.path.is_live();
            if !in_use && woken.mounted {
                (self.tell)(Seen::Change);
            }
            if in_use && woken.changed {
                self.look_at_length();
            }
            if in_use && (woken.mounted || next <= Instant::now()) {
                self.look();
                self.watch_guard();
                next = Instant::now() + PERIOD;
            }
            let left = next.saturating_duration_since(Instant::now());
            woken = self.sleep(in_use.then_some(left), woken.changed);
        }
    }

    fn look_at_length(&self) {
        if let Some(changes) = &self.changes {
            let mut events = [0; 4096];
            // What they say does not matter: there is one file.
            while rustix::io::read(changes, &mut events).is_ok_and(|bytes| bytes > 0) {}
        }
        if !self.path.is_whole() {
            self.refuse(Obstacle::Short);
        }
    }

    /// At once, also if the guard does not hear.
    fn refuse(&self, obstacle: Obstacle) {
        self.path.suspend();
        (self.tell)(Seen::Obstacle(obstacle));
    }

    fn look(&self) {
        if ablation::left_out("recheck") {
            return;
        }
        if let Err(obstacle) = self.path.check_conditions() {
            self.refuse(obstacle);
        }
    }

    fn watch_guard(&mut self) {
        let state = self.path.guard_state();
        if state.late != self.told_late {
            self.told_late = state.late;
            let seconds = state.turned_ms_ago / 1000;
            self.path.observer.tell(if state.late {
                Change::GuardLate(Duration::from_secs(seconds))
            } else {
                Change::GuardOnTime
            });
            if state.late {
                log::warn!(
                    "the guard has not looked at the lease for {seconds} s; workers look themselves"
                );
            } else {
                log::info!("the guard looks at the lease again");
            }
        }
    }

    /// Sleeps until something is mounted or remounted, the path is entered or,
    /// while it is in use, the image is changed or the time is `left` for the
    /// next look. Changes are not waited for right after one.
    fn sleep(&self, left: Option<Duration>, after_change: bool) -> Woken {
        let event = self.event.as_fd();
        let mounts = self.mounts.as_ref().map_or(event, File::as_fd);
        let changes = self.changes.as_ref();
        let changes = changes.filter(|_| left.is_some() && !after_change);
        let changes = changes.map_or(event, OwnedFd::as_fd);
        let mut polls = [
            PollFd::new(&event, PollFlags::IN),
            PollFd::new(&mounts, PollFlags::PRI),
            PollFd::new(&changes, PollFlags::IN),
        ];
        let pause = left.filter(|_| after_change).map(|_| PAUSE);
        let time = left.into_iter().chain(pause).min().map(|time| Timespec {
            tv_sec: 0,
            tv_nsec: time.min(MOST).subsec_nanos().into(),
        });
        let polled = pulse::during(Doing::Resting, || {
            rustix::event::poll(&mut polls, time.as_ref())
        });
        let woken = match polled {
            Ok(_) => Woken {
                mounted: polls[1].revents().contains(PollFlags::PRI),
                changed: polls[2].revents().contains(PollFlags::IN)
                    && !polls[0].revents().contains(PollFlags::IN),
            },
            Err(rustix::io::Errno::INTR) => Woken::default(),
            Err(error) => {
                log::error!("the lookout cannot wait: {error}");
                std::thread::sleep(Duration::from_secs(1));
                Woken::default()
            }
        };
        sys::eventfd_take(self.event.as_raw_fd());
        woken
    }
}

/// Readable when anybody has changed the file by its file system.
fn watch_changes(file: &File) -> rustix::io::Result<OwnedFd> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // The file itself, whatever its name is by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify::add_watch(&inotify, path, WatchFlags::MODIFY)?;
    Ok(inotify)
}
