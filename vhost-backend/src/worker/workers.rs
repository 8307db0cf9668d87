//! The worker threads of a server, and how the session gives them orders.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use pulse::Doing;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::command::{Answer, Command, Mode, Order};
use crate::device::Device;
use crate::error::Error;
use crate::held::{HeldRequests, Holding};
use crate::limits::Limits;
use crate::limits::gate::Gate;
use crate::memory::Memory;
use crate::memory::dirty::Logging;
use crate::meter::{Meter, Meters, QueueMeter};
use crate::options::Options;
use crate::queue::chain::Scratch;
use crate::queue::disk::Disk;
use crate::queue::epochs::Epochs;
use crate::queue::tags::Tags;
use crate::queue::{Common, Queue};
use crate::sys;
use crate::worker::Worker;
use crate::worker::spin::Spin;
use crate::worker::watch::Watch;

/// Bytes of a worker's stack: small, as a process that locks its memory has
/// all of it in memory.
const STACK: usize = 512 << 10;

/// Most requests that a worker has in flight at a time, whatever its rings
/// would hold: more than a disk makes use of, and few enough to keep all that
/// they need.
const MAX_IN_FLIGHT: usize = 1024;

/// How often is looked whether somebody still waits for what a worker does.
const LOOK: Duration = Duration::from_millis(200);
/// How long the requests of a front-end may take that has gone.
const GRACE: Duration = Duration::from_secs(5);
/// Longer requests than any driver makes, in bytes.
const LONG: u64 = 16 << 20;

/// Who waits for what a worker is told to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ForWhom<'a> {
    /// This process, however long it takes.
    Us,
    /// A front-end, as long as it is connected.
    FrontEnd {
        stream: Option<&'a UnixStream>,
        /// What is in flight is recorded.
        recorded: bool,
    },
}

impl ForWhom<'_> {
    fn has_gone(&self) -> bool {
        match self {
            Self::Us => false,
            Self::FrontEnd { stream, .. } => stream.is_none_or(sys::has_hung_up),
        }
    }

    /// Requests with more bytes than that may be left to whoever comes next. A
    /// driver offers again what it has no record of only if it was the next in
    /// turn, so short ones are not left.
    fn over(&self) -> u64 {
        match self {
            Self::FrontEnd { recorded: true, .. } => 0,
            _ => LONG,
        }
    }
}

/// A worker thread as the session sees it.
#[derive(Debug)]
struct Handle {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Sends a command; its answer comes through what is returned, which is
    /// closed without one if the thread has gone.
    fn send(&self, command: Command) -> Receiver<Answer> {
        let (answer, answered) = mpsc::sync_channel(1);
        // If the thread has gone, `answer` is dropped, which tells.
        if self.orders.send(Order { command, answer }).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            log::error!("cannot wake a worker: {error}");
        }
        answered
    }
}

/// All worker threads. Dropping this ends them, after what is in flight.
#[derive(Debug)]
pub(crate) struct Workers {
    handles: Vec<Handle>,
    meters: Meters,
}

impl Workers {
    /// Starts the threads and opens the I/O of each.
    pub(crate) fn spawn<D: Device>(
        device: Arc<D>,
        mode: Arc<Mode>,
        limits: &Arc<Limits>,
        held: &Arc<HeldRequests>,
        options: &Options,
    ) -> Result<Self, Error> {
        options.check()?;
        let mut workers = Self {
            handles: Vec::with_capacity(options.workers),
            meters: Meters::of_queues(usize::from(options.queues)),
        };
        for worker in 0..options.workers {
            let failed = |source| Error::Worker { worker, source };
            let handle = start(
                worker,
                Arc::clone(&device),
                Arc::clone(&mode),
                Share {
                    gate: Gate::new(Arc::clone(limits), worker),
                    holding: Holding::new(Arc::clone(held)),
                    meter: workers.meters.another(),
                    queues: workers.meters.queues().to_vec(),
                },
                options,
            )
            .map_err(failed)?;
            limits.wake_by(Arc::clone(&handle.wake));
            held.wake_by(Arc::clone(&handle.wake));
            workers.handles.push(handle);
        }
        Ok(workers)
    }

    /// What they count.
    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Gives a command to the worker of a queue and waits until it has taken
    /// effect. The queue is one that is offered.
    pub(crate) fn tell(&self, queue: usize, command: Command, for_whom: &ForWhom<'_>) -> Answer {
        let handle = self.handles.get(queue % self.handles.len().max(1));
        handle
            .and_then(|handle| self.wait(&handle.send(command), for_whom))
            .unwrap_or(Answer::Refused)
    }

    /// Gives a command to every worker and waits until it has taken effect
    /// with all.
    pub(crate) fn tell_all(&self, mut command: impl FnMut() -> Command, for_whom: &ForWhom<'_>) {
        let answers: Vec<_> = self
            .handles
            .iter()
            .map(|handle| handle.send(command()))
            .collect();
        for answer in answers {
            if self.wait(&answer, for_whom).is_none() {
                log::error!("a worker has gone");
            }
        }
    }

    /// Waits for an answer, which may have to wait for all requests in flight.
    /// Those that nobody waits for any more have a while to end.
    fn wait(&self, answered: &Receiver<Answer>, for_whom: &ForWhom<'_>) -> Option<Answer> {
        pulse::during(Doing::Disk, || {
            let mut gone_since = None;
            loop {
                match answered.recv_timeout(LOOK) {
                    Ok(answer) => return Some(answer),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if !for_whom.has_gone() {
                    continue;
                }
                let since: Instant = *gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE {
                    self.abandon(for_whom.over());
                    return answered.recv().ok();
                }
            }
        })
    }

    fn abandon(&self, over: u64) {
        log::warn!(
            "the front-end has gone and its requests go on: those that are not with the disk yet are left to the next one"
        );
        for handle in &self.handles {
            // It is carried out before whatever comes later.
            drop(handle.send(Command::Abandon { over }));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        let answers: Vec<_> = self
            .handles
            .iter()
            .map(|handle| handle.send(Command::Quit))
            .collect();
        for handle in &mut self.handles {
            if handle
                .thread
                .take()
                .is_some_and(|thread| pulse::during(Doing::Disk, || thread.join()).is_err())
            {
                log::error!("a worker has panicked");
            }
        }
        drop(answers);
    }
}

/// What a worker has with all others.
struct Share {
    gate: Gate,
    holding: Holding,
    meter: Arc<Meter>,
    /// Of all queues, by number.
    queues: Vec<Arc<QueueMeter>>,
}

/// Starts one thread and waits until it can serve.
fn start<D: Device>(
    worker: usize,
    device: Arc<D>,
    mode: Arc<Mode>,
    share: Share,
    options: &Options,
) -> io::Result<Handle> {
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let commands = wake.try_clone()?;
    let wake = Arc::new(wake);
    let prod = Arc::clone(&wake);
    let (orders, received) = mpsc::channel();
    let (ready, is_ready) = mpsc::sync_channel(1);
    let cpu = options
        .cpus
        .get(worker % options.cpus.len().max(1))
        .copied();
    let options = options.clone();
    let name = format!("worker-{worker}");
    let thread = Builder::new()
        .name(name.clone())
        .stack_size(STACK)
        .spawn(move || {
            // Fails only where it is signalled already.
            let _pulse = pulse::join_with(&name, Doing::Turning, move || drop(prod.write(1)));
            if let Err(error) = sys::ask_for_short_slices() {
                log::debug!("worker {worker} has slices as long as others: {error}");
            }
            let built = cpu.map_or(Ok(()), sys::pin_to_cpu);
            let sealed = Arc::clone(&device);
            let built = built
                .and_then(|()| build(worker, device, mode, share, &options, commands, received));
            if built.is_ok() {
                sealed.worker_ready();
            }
            drop(sealed);
            if let Some(mut worker) = report(built, &ready) {
                worker.run();
            }
        })?;
    is_ready
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread has ended")))?;
    Ok(Handle {
        orders,
        wake,
        thread: Some(thread),
    })
}

/// Tells the starter how it went.
fn report<T>(built: io::Result<T>, ready: &SyncSender<io::Result<()>>) -> Option<T> {
    let (worker, result) = match built {
        Ok(worker) => (Some(worker), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // The starter waits for it.
    let _ = ready.send(result);
    worker
}

fn build<D: Device>(
    worker: usize,
    device: Arc<D>,
    mode: Arc<Mode>,
    share: Share,
    options: &Options,
    commands: EventFd,
    orders: Receiver<Order>,
) -> io::Result<Worker<D>> {
    let numbers = (worker..usize::from(options.queues)).step_by(options.workers);
    let own = share.queues.iter().skip(worker).step_by(options.workers);
    let queues: Box<[_]> = numbers
        .zip(0..)
        .zip(own)
        .map(|((number, index), own)| {
            Queue::new(number, index, (Arc::clone(&share.meter), Arc::clone(own)))
        })
        .collect();
    let slots = (queues.len() * usize::from(options.queue_size)).min(MAX_IN_FLIGHT);
    let mut channel = device.channel(worker, slots)?;
    let watch = Watch::new(commands, queues.len(), &mut channel);
    let common = Common {
        channel,
        epochs: Epochs::new(Arc::new(Memory::default())),
        scratch: Scratch::new(),
        disk: Disk::new(device, mode),
        tags: Tags::new(slots),
        dirty: None,
        gate: share.gate,
        timed: false,
        holding: share.holding,
    };
    Ok(Worker {
        common,
        queues,
        served: 0,
        first: 0,
        workers: options.workers,
        slots,
        watch,
        spin: Spin::new(options.poll, share.meter),
        orders,
        retiring: Vec::new(),
        logging: Logging::default(),
        leaving: false,
    })
}

#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod scarce_tests;
#[cfg(test)]
mod tests;
