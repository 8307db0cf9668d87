//! The thread that decides whether the disk path is used: enters it when a
//! guest is there and the image is ours alone, leaves it when somebody else
//! wants the image, and tries again later.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mapping::device::Refusal;

use crate::disk_path::{DiskPath, Obstacle};
use crate::sys;

/// How long an image that is refused for its own sake is left alone: mount
/// options and attributes rarely change.
const REFUSED: Duration = Duration::from_secs(30);

/// Whether the path is wanted, and who waits until that has taken effect.
struct Order {
    wanted: bool,
    done: Option<SyncSender<()>>,
}

/// The guard of one image; dropping it leaves the disk path.
#[derive(Debug)]
pub struct Guard {
    orders: Sender<Order>,
    event: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Starts the thread; the path is not wanted yet.
    ///
    /// # Errors
    /// The host refuses a descriptor or a thread.
    pub fn spawn(path: Arc<DiskPath>) -> io::Result<Guard> {
        let event = Arc::new(sys::event()?);
        let stop = Arc::new(AtomicBool::new(false));
        let (orders, received) = mpsc::channel();
        let watch = Watch {
            path,
            event: Arc::clone(&event),
            stop: Arc::clone(&stop),
            orders: received,
            wanted: false,
            next: None,
        };
        let thread = std::thread::Builder::new()
            .name("guard".to_owned())
            .spawn(move || watch.run())?;
        Ok(Guard {
            orders,
            event,
            stop,
            thread: Some(thread),
        })
    }

    /// A guest is there: use the disk path when possible. Returns at once.
    pub fn want(&self) {
        self.send(true, None);
    }

    /// Nobody uses the disk: leave the path, and return when it was left.
    pub fn unwant(&self) {
        let (done, is_done) = mpsc::sync_channel(1);
        self.send(false, Some(done));
        // Without an answer the thread has gone, and with it the path.
        let _ = is_done.recv();
    }

    fn send(&self, wanted: bool, done: Option<SyncSender<()>>) {
        if self.orders.send(Order { wanted, done }).is_ok() {
            sys::event_set(&*self.event);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        sys::event_set(&*self.event);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the guard has panicked");
        }
    }
}

struct Watch {
    path: Arc<DiskPath>,
    event: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    orders: Receiver<Order>,
    wanted: bool,
    /// When to try to enter; never while the path is in use or not wanted.
    next: Option<Instant>,
}

impl Watch {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            self.obey();
            // Asked in any state, so that an old event does not keep us awake.
            if self.path.lease_is_broken() && self.in_use() {
                self.path.leave("somebody else has asked for the image");
                self.next = self.path.retry_at();
            }
            if self.next.is_some_and(|at| at <= Instant::now()) {
                self.enter();
            }
            self.sleep();
        }
        if self.in_use() {
            self.path.leave("the process ends");
        }
    }

    fn in_use(&self) -> bool {
        self.path.map().enabled()
    }

    fn obey(&mut self) {
        while let Ok(Order { wanted, done }) = self.orders.try_recv() {
            if wanted && !self.wanted {
                self.next = Some(Instant::now());
            } else if !wanted {
                self.next = None;
                if self.in_use() {
                    self.path.leave("no guest uses the disk");
                }
            }
            self.wanted = wanted;
            if let Some(done) = done {
                // Who does not wait any more does not want to know.
                let _ = done.send(());
            }
        }
    }

    fn enter(&mut self) {
        self.next = match self.path.enter() {
            Ok(()) => None,
            Err(Obstacle::Lease(_) | Obstacle::Asked | Obstacle::Refused(Refusal::Cached(_))) => {
                self.path.retry_at()
            }
            Err(_) => Some(Instant::now() + REFUSED),
        };
    }

    fn sleep(&self) {
        let timeout = match self.next {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()).as_micros();
                i32::try_from(left.div_ceil(1000)).unwrap_or(i32::MAX)
            }
        };
        let fds = [self.event.as_raw_fd(), self.path.lease_event().as_raw_fd()];
        if let Err(error) = sys::poll_readable(&fds, timeout) {
            log::error!("the guard cannot wait: {error}");
            std::thread::sleep(Duration::from_millis(100));
        }
        sys::event_take(&*self.event);
    }
}
