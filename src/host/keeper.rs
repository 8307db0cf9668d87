//! The thread that keeps the rights of a start: it becomes the next binary,
//! removes the socket files in the end, and looks at other processes. It acts
//! on orders of this process only. What may take its time is done beside it, with
//! the same rights.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use rustix::process::{parent_process_death_signal, set_parent_process_death_signal};

use crate::host::hardening::SMALL_STACK;
use crate::host::sandbox::{self, Kind};

type Job = Box<dyn FnOnce() + Send>;

/// How long is waited for a look at the system.
const LOOK: Duration = Duration::from_secs(2);

static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// The thread, which lives as long as the process.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    jobs: Sender<Job>,
}

impl Keeper {
    /// Starts the thread. To be called when the signals are blocked that the
    /// process watches for, which the next binary has blocked then too.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(crate) fn spawn() -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        // Each thread has its own, and the next binary that of this one.
        let parents_death = parent_process_death_signal().ok().flatten();
        thread::Builder::new()
            .name("keeper".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(move || {
                if let Err(error) = set_parent_process_death_signal(parents_death) {
                    log::debug!("the end of the parent would not be noticed: {error}");
                }
                sandbox::enter(Kind::Keeper);
                while let Ok(job) = todo.recv() {
                    job();
                }
            })?;
        Ok(KEEPER.get_or_init(|| Self { jobs }).clone())
    }

    /// Has a thread that has the same rights do something, and does not wait.
    pub(crate) fn aside(&self, act: impl FnOnce() + Send + 'static) {
        if self.jobs.send(Box::new(move || aside(act))).is_err() {
            log::error!("what keeps the rights of a start has ended");
        }
    }

    /// Has the thread do something, and waits for the result.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn have<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, is_done) = mpsc::sync_channel(1);
        let job = move || {
            // Whoever asked waits for it.
            let _ = done.send(job());
        };
        let ended = || io::Error::other("the thread for it has ended");
        self.jobs.send(Box::new(job)).map_err(|_| ended())?;
        is_done.recv().map_err(|_| ended())
    }
}

/// Does something that may wait for the image, or for another program, on a
/// thread with the rights of this one.
pub(crate) fn aside(act: impl FnOnce() + Send + 'static) {
    let started = thread::Builder::new()
        .name("wish".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(act);
    if let Err(error) = started {
        log::error!(
            "the signal has no effect, as there is no thread for it ({error}): raise the limit on tasks"
        );
    }
}

/// Has a look at the system from where a start can see it; `None` if that takes
/// too long.
pub fn look<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let Some(keeper) = KEEPER.get() else {
        return Some(look());
    };
    let (done, is_done) = mpsc::sync_channel(1);
    keeper.aside(move || {
        // Whoever asked may have gone on.
        let _ = done.send(look());
    });
    is_done.recv_timeout(LOOK).ok()
}
