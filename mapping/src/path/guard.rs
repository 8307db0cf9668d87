//! The thread that decides whether the disk path is used: enters it when a
//! guest is there, the operator allows it and the image is ours alone; leaves
//! it when one of these ends, and tries again later when somebody else wanted
//! the image.
//!
//! While the path is in use it waits for nobody but the kernel: what it logs
//! goes through a queue, and what has to be looked up elsewhere is the
//! [lookout](crate::path::lookout)'s to do.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pulse::Doing;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::device::Refusal;
use crate::lease::LeaseError;

use super::ablation;
use super::away::{Away, Obstacle};
use super::change::Change;
use super::close_watch::CloseWatch;
use super::core::Core;
use super::lookout::{Lookout, SMALL_STACK, Seen};
use crate::sys;
use crate::threads::{self, Thread};

/// How long an image that is refused for its own sake is left alone.
const REFUSED: Duration = Duration::from_secs(30);
/// The same for what can be mended at any time: mount options, attributes, the
/// break time. That a file system was remounted is told.
const MENDED: Duration = Duration::from_secs(5);
/// How often the lease is looked at while the path is in use, whatever was
/// told.
const LOOK: Duration = Duration::from_secs(1);

/// How soon an image that somebody has closed is asked for again, and for how
/// long: closing takes a moment, and it may be open more than once.
const CLOSED: Duration = Duration::from_millis(10);
const CLOSING: Duration = Duration::from_millis(200);

/// What the thread is told.
enum Order {
    /// A guest is there, or none.
    Wanted(bool),
    /// An operator allows the path, or not.
    Allowed(bool),
    /// Its user clones the file, or has done so.
    Aside(bool),
    /// An operator allows it, and wants to know what is in its way.
    Try,
    /// The lookout has seen something.
    Seen(Seen),
}

/// Whoever waits until an order has taken effect.
type Done = SyncSender<Result<(), Obstacle>>;

/// The guard of one image; dropping it leaves the disk path.
#[derive(Debug)]
pub(super) struct Guard {
    orders: Sender<(Order, Option<Done>)>,
    event: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _lookout: Lookout,
}

impl Guard {
    /// Starts the thread; the path is not wanted yet.
    ///
    /// # Errors
    /// The host refuses a descriptor or a thread.
    pub(super) fn spawn(path: Arc<Core>) -> io::Result<Guard> {
        let event = Arc::new(sys::eventfd()?);
        let stop = Arc::new(AtomicBool::new(false));
        let (orders, received) = mpsc::channel();
        let closes = CloseWatch::new()
            .map_err(|error| {
                log::debug!("it cannot be noticed that others close the image: {error}")
            })
            .ok();
        let (tell, wake) = (orders.clone(), Arc::clone(&event));
        let lookout = Lookout::spawn(Arc::clone(&path), move |seen| {
            if tell.send((Order::Seen(seen), None)).is_ok() {
                sys::eventfd_signal(wake.as_raw_fd());
            }
        })?;
        let watch = Watch {
            path,
            used: false,
            entered: lookout.event(),
            event: Arc::clone(&event),
            stop: Arc::clone(&stop),
            orders: received,
            wanted: false,
            allowed: true,
            aside: 0,
            next: None,
            closes,
            hurry: None,
        };
        let thread = std::thread::Builder::new()
            .name("guard".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(move || {
                threads::begun(Thread::Guard);
                watch.run();
            })?;
        Ok(Guard {
            orders,
            event,
            stop,
            thread: Some(thread),
            _lookout: lookout,
        })
    }

    /// A guest is there: use the disk path when possible. Returns at once.
    pub(super) fn want(&self) {
        self.send(Order::Wanted(true), None);
    }

    /// Nobody uses the disk: leave the path, and return when it was left.
    pub(super) fn unwant(&self) {
        // Without an answer the thread has gone, and with it the path.
        let _ = self.ask(Order::Wanted(false));
    }

    /// Leave the path and stay away from it until it is allowed again; returns
    /// when it was left.
    pub(super) fn forbid(&self) {
        let _ = self.ask(Order::Allowed(false));
    }

    /// The path may be used when a guest is there and the image is ours, which
    /// is so from the start.
    pub(super) fn allow(&self) {
        let _ = self.ask(Order::Allowed(true));
    }

    /// Leave the path and stay away from it until as many have
    /// [come back](Self::come_back); returns when it was left.
    pub(super) fn step_aside(&self) {
        let _ = self.ask(Order::Aside(true));
    }

    /// Whoever has stepped aside needs that no more.
    pub(super) fn come_back(&self) {
        self.send(Order::Aside(false), None);
    }

    /// As [`allow`](Self::allow), and tries the path now. With a guest it
    /// stays in use; without one it is left again.
    ///
    /// # Errors
    /// What is in the way. With a guest it is tried again later.
    pub(super) fn try_now(&self) -> Result<(), Obstacle> {
        self.ask(Order::Try)
    }

    fn ask(&self, order: Order) -> Result<(), Obstacle> {
        let (done, is_done) = mpsc::sync_channel(1);
        self.send(order, Some(done));
        is_done
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the guard has ended").into()))
    }

    fn send(&self, order: Order, done: Option<Done>) {
        if self.orders.send((order, done)).is_ok() {
            sys::eventfd_signal(self.event.as_raw_fd());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        sys::eventfd_signal(self.event.as_raw_fd());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the guard has panicked");
        }
    }
}

struct Watch {
    path: Arc<Core>,
    /// The path was entered and has not been left.
    used: bool,
    /// Tells the lookout that it was.
    entered: Arc<OwnedFd>,
    event: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    orders: Receiver<(Order, Option<Done>)>,
    /// A guest is there.
    wanted: bool,
    /// No operator keeps us away.
    allowed: bool,
    /// So many have stepped aside.
    aside: usize,
    /// When to try to enter; never while the path is in use or not wanted.
    next: Option<Instant>,
    /// Tells when whoever had the image as we asked for it closes it.
    closes: Option<CloseWatch>,
    /// Somebody has just closed it: ask more often until then.
    hurry: Option<Instant>,
}

impl Watch {
    fn run(mut self) {
        let event = Arc::clone(&self.event);
        let wake = move || sys::eventfd_signal(event.as_raw_fd());
        let _pulse = pulse::join_with("guard", Doing::Disk, wake);
        while !self.stop.load(Ordering::Acquire) {
            self.path.turn();
            // Asked in any state, so that an old event does not keep us awake.
            if self.path.lease_is_broken() && self.used {
                self.path.observer.tell(Change::LeaseLost);
                self.leave(&Away::Asked);
                self.next = self.path.retry_at();
            }
            self.obey();
            self.notice_closing();
            if self.next.is_some_and(|at| at <= Instant::now()) {
                // The path says why, and what comes next is set.
                let _ = self.enter();
            }
            self.sleep();
        }
        if self.used {
            self.leave(&Away::Ended);
        }
    }

    fn leave(&mut self, away: &Away<'_>) {
        self.path.leave(away);
        self.used = false;
    }

    /// Does not leave an image alone for long once it has been closed.
    fn notice_closing(&mut self) {
        let now = Instant::now();
        if self.closes.as_ref().is_some_and(CloseWatch::take) {
            self.hurry = Some(now + CLOSING);
        }
        match (self.hurry, &mut self.next) {
            (Some(until), Some(next)) if now < until => *next = (*next).min(now + CLOSED),
            _ => self.hurry = None,
        }
    }

    /// Watches whoever has the image, if that is what is in the way.
    fn watch_closing(&mut self, result: &Result<(), Obstacle>) {
        let Some(closes) = &mut self.closes else {
            return;
        };
        if !matches!(result, Err(Obstacle::Lease(LeaseError::InUse))) {
            closes.end();
            return;
        }
        match closes.begin(self.path.filler().source().file()) {
            Ok(false) => {}
            // It may have been closed before it was watched.
            Ok(true) => self.hurry = Some(Instant::now() + CLOSING),
            Err(error) => log::debug!("the image cannot be watched: {error}"),
        }
    }

    fn obey(&mut self) {
        while let Ok((order, done)) = self.orders.try_recv() {
            let result = match order {
                Order::Wanted(wanted) => {
                    self.wanted = wanted;
                    self.follow();
                    Ok(())
                }
                Order::Allowed(allowed) => {
                    self.allowed = allowed;
                    self.follow();
                    Ok(())
                }
                Order::Aside(aside) => {
                    self.aside = if aside {
                        self.aside + 1
                    } else {
                        self.aside.saturating_sub(1)
                    };
                    self.follow();
                    Ok(())
                }
                Order::Try => {
                    self.allowed = true;
                    self.try_now()
                }
                Order::Seen(seen) => {
                    self.take_note(seen);
                    Ok(())
                }
            };
            if let Some(done) = done {
                // Who does not wait any more does not want to know.
                let _ = done.send(result);
            }
        }
    }

    /// Something has changed that the path depends on.
    fn take_note(&mut self, seen: Seen) {
        match seen {
            Seen::Obstacle(obstacle) if self.used => {
                self.leave(&Away::Obstacle(&obstacle));
                self.next = Some(Instant::now() + MENDED);
            }
            // It was left meanwhile, and will be looked at before it is entered.
            Seen::Obstacle(_) => {}
            Seen::Change => {
                if let Some(next) = &mut self.next {
                    *next = Instant::now();
                }
            }
        }
    }

    /// Leaves the path, or sees to it that it is tried.
    fn follow(&mut self) {
        let away = match (self.allowed, self.wanted) {
            _ if self.aside > 0 => Away::Aside,
            (true, true) => {
                if !self.used && self.next.is_none() {
                    self.next = Some(Instant::now());
                }
                return;
            }
            (false, _) => Away::Forbidden,
            (true, false) => Away::Unwanted,
        };
        self.next = None;
        if let Some(closes) = &mut self.closes {
            closes.end();
        }
        if self.used {
            self.leave(&away);
        } else {
            self.path.stay_away(&away);
        }
    }

    fn try_now(&mut self) -> Result<(), Obstacle> {
        if self.used {
            return Ok(());
        }
        if self.aside > 0 {
            return Err(io::Error::other("the image is being cloned").into());
        }
        if self.wanted {
            return self.enter();
        }
        self.path.enter()?;
        self.leave(&Away::Unwanted);
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Obstacle> {
        let result = self.path.enter();
        self.used = result.is_ok();
        if self.used {
            sys::eventfd_signal(self.entered.as_raw_fd());
            ablation::go_deaf();
        }
        self.next = match &result {
            Ok(()) => None,
            Err(Obstacle::Refused(Refusal::MountOption(_)) | Obstacle::BreakTime(_)) => {
                Some(Instant::now() + MENDED)
            }
            Err(Obstacle::Lease(_) | Obstacle::Asked | Obstacle::Refused(Refusal::Cached(_))) => {
                self.path.retry_at()
            }
            Err(_) => Some(Instant::now() + REFUSED),
        };
        self.watch_closing(&result);
        result
    }

    fn sleep(&self) {
        let next = self
            .next
            .map(|at| at.saturating_duration_since(Instant::now()));
        let look = self.used.then_some(LOOK);
        let timeout = next.into_iter().chain(look).min().map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let event = self.event.as_fd();
        let lease = self.path.lease_event();
        let closes = self.closes.as_ref().map_or(event, CloseWatch::event);
        let mut polls = [&event, &lease, &closes].map(|fd| PollFd::new(fd, PollFlags::IN));
        let result = pulse::during(Doing::Resting, || {
            rustix::event::poll(&mut polls, timeout.as_ref())
        });
        if let Err(error) = result
            && error != rustix::io::Errno::INTR
        {
            log::error!("the guard cannot wait: {error}");
            std::thread::sleep(Duration::from_millis(100));
        }
        sys::eventfd_take(self.event.as_raw_fd());
    }
}
