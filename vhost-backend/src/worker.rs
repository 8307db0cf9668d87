//! The thread that serves rings. One turn: collect what has ended, show it,
//! obey the session, fetch a few, submit them. It looks for work and then
//! sleeps only when a turn found nothing to do, and nothing in a turn waits,
//! allocates or locks.

pub(crate) mod spin;
pub(crate) mod watch;
pub(crate) mod workers;

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::Duration;

use pulse::Doing;
use vmm_sys_util::eventfd::EventFd;

use self::spin::Spin;
use self::watch::Watch;
use crate::command::{Answer, Command, Order, RingSetup};
use crate::device::{Device, IoChannel};
use crate::held::Due;
use crate::memory::dirty::{Logging, Tracker};
use crate::probes;
use crate::queue::chain::MOST_RANGES;
use crate::queue::interrupts::TurnClock;
use crate::queue::{Common, Queue};
use crate::sys;

/// How often a ring without a kick is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// All that a worker thread owns.
pub(crate) struct Worker<D: Device> {
    pub common: Common<D>,
    /// Queue `worker + i * workers` of the front-end is at `i`.
    pub queues: Box<[Queue]>,
    /// No queue from here on has a ring: none of them costs anything.
    pub served: usize,
    /// The queue that is fetched from first.
    pub first: usize,
    pub workers: usize,
    /// Most requests in flight at a time.
    pub slots: usize,
    pub watch: Watch,
    pub spin: Spin,
    pub orders: Receiver<Order>,
    /// Wait until no request uses an older memory table.
    pub retiring: Vec<SyncSender<Answer>>,
    /// As the session wants it; for rings that are started.
    pub logging: Logging,
    /// Was told to leave, and does so when nothing is in flight.
    pub leaving: bool,
}

impl<D: Device> Worker<D> {
    /// Serves until it is told to quit, or nobody is left to tell it.
    pub(crate) fn run(&mut self) {
        loop {
            pulse::turn();
            let ended = self.reap();
            if self.common.epochs.are_stale() {
                self.bury();
            }
            self.show();
            self.settle();
            self.obey();
            if self.leaving && self.served().all(|queue| queue.in_flight() == 0) {
                self.publish();
                return;
            }
            let fetched = self.fetch();
            if ended + fetched > 0 {
                self.submit();
                if fetched > 0 {
                    probes::submitted(fetched);
                    // What needed no I/O.
                    self.show();
                }
                self.spin.busy();
                continue;
            }
            self.publish();
            if self.common.gate.is_held() && self.common.tags.all_are_free() {
                self.common.gate.rest();
            }
            // With no room left only an end goes on.
            let asleep = !self.look() && (!self.common.has_room() || !self.arm());
            // What was just looked at may be gone, and then nobody would kick.
            if asleep && !self.common.epochs.are_stale() {
                self.sleep();
            }
        }
    }

    /// Gives what was fetched to the kernel.
    #[inline(always)]
    fn submit(&mut self) {
        if std::mem::take(&mut self.common.timed) {
            self.served().for_each(Queue::submitted);
        }
        pulse::during(Doing::Disk, || self.common.channel.flush_submissions());
    }

    /// Memory that the front-end shares was lost: nothing uses it from now on.
    #[cold]
    fn bury(&mut self) {
        if self.common.epochs.bury()
            && let Some(memory) = self.common.epochs.current()
        {
            self.common.channel.memory(&memory.host_regions());
        }
        let log = self.logging.log.as_ref();
        let log_is_lost = log.is_some_and(|log| log.is_lost());
        for queue in &mut self.queues {
            queue.bury(&self.common.epochs, log_is_lost);
        }
    }

    /// Takes the completions; returns how many.
    fn reap(&mut self) -> usize {
        self.common.reap(&mut self.queues)
    }

    /// The queues that may have a ring.
    fn served(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.queues.iter_mut().take(self.served)
    }

    /// Shows what was answered, with the interrupts that are due.
    fn show(&mut self) {
        let mut clock = TurnClock::default();
        for queue in self.served() {
            queue.show(&mut clock);
        }
    }

    /// Shows what was answered, with all interrupts.
    fn publish(&mut self) {
        for queue in self.served() {
            queue.publish();
        }
    }

    /// Answers what has waited for requests to end.
    fn settle(&mut self) {
        let mut ended = false;
        for (index, queue) in self.queues.iter_mut().take(self.served).enumerate() {
            if queue.settle() {
                self.watch.set_kick(index, None, &mut self.common.channel);
                ended = true;
            }
        }
        if ended {
            let last = self.queues.iter().rposition(Queue::is_served);
            self.served = last.map_or(0, |last| last + 1);
        }
        if !self.retiring.is_empty() && self.common.epochs.only_current() {
            for answer in self.retiring.drain(..) {
                let _ = answer.send(Answer::Done);
            }
        }
    }

    /// Carries out the commands that have come.
    fn obey(&mut self) {
        while !self.leaving {
            match self.orders.try_recv() {
                Ok(order) => self.execute(order),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.leave(),
            }
        }
        self.settle();
    }

    fn leave(&mut self) {
        self.leaving = true;
        for queue in self.served() {
            queue.enable(false);
        }
    }

    /// Asks for kicks; `true` if a ring has something already.
    fn arm(&mut self) -> bool {
        let mut more = false;
        for queue in self.served() {
            more |= queue.arm();
        }
        more
    }

    /// Looks for work for a while; `true` if there is some. Where a limit
    /// holds a queue back there is time to sleep.
    fn look(&mut self) -> bool {
        if self.common.gate.has_waiters() {
            return false;
        }
        let Self {
            spin,
            queues,
            served,
            common,
            ..
        } = self;
        let may_fetch = common.has_room();
        spin.look(|| {
            let mut queues = queues.iter_mut().take(*served);
            common.channel.has_ended() || (may_fetch && queues.any(Queue::has_available))
        })
    }

    fn sleep(&mut self) {
        let polled = self.served().any(Queue::needs_polling);
        let polled = polled.then_some(POLL_INTERVAL);
        let limited = self.common.gate.timeout();
        let still = self.common.gate.is_held();
        let held = self.common.holding.timeout().filter(|_| !still);
        let timeout = [polled, limited, held].into_iter().flatten().min();
        pulse::during(Doing::Resting, || self.common.channel.wait(timeout));
    }

    /// Fetches some from each queue; returns how many requests. Where there
    /// is too little room, another queue is the first to get some each time.
    fn fetch(&mut self) -> usize {
        self.common.scratch.begin_turn();
        if self.common.gate.begin_turn() {
            self.queues.iter_mut().for_each(Queue::wait_no_more);
        }
        if self.common.holding.is_on() && !self.common.gate.is_held() {
            self.try_held_again();
        }
        let Self {
            queues,
            served,
            first,
            common,
            ..
        } = self;
        let (turn, count) = (*first, *served);
        let order = (turn..count).chain(0..turn.min(count));
        if common.gate.is_on() {
            return self.fetch_in_turn(order);
        }
        let fetched = order
            .filter_map(|index| Some(queues.get_mut(index)?.fetch_some(common)))
            .sum();
        if !common.may_fetch() {
            *first = if turn + 1 < count { turn + 1 } else { 0 };
        }
        fetched
    }

    /// Fetches some, as far as limits allow it: the first queue that they hold
    /// back is the first one next time, or the one behind it if it was already.
    #[cold]
    fn fetch_in_turn(&mut self, order: impl Iterator<Item = usize>) -> usize {
        let (mut held, mut fetched) = (None, 0);
        for index in order {
            let Some(queue) = self.queues.get_mut(index) else {
                continue;
            };
            let some = queue.fetch_some(&mut self.common);
            fetched += some;
            if queue.is_held() {
                held = held.or(Some((index, some)));
            }
        }
        self.common.gate.end_turn();
        let behind = |index: usize| {
            if index + 1 < self.served {
                index + 1
            } else {
                0
            }
        };
        self.first = match held {
            Some((index, some)) if index == self.first && some > 0 => behind(index),
            Some((index, _)) => index,
            None if !self.common.may_fetch() => behind(self.first),
            None => self.first,
        };
        fetched
    }

    /// Has requests that are held tried again, if it is time.
    #[cold]
    fn try_held_again(&mut self) {
        let due = self.common.holding.due();
        if due == Due::Nothing {
            return;
        }
        let mut some = false;
        for queue in self.queues.iter_mut().take(self.served) {
            some |= queue.held_are_due(due == Due::All);
        }
        if !some {
            self.common.holding.rest();
        }
    }

    fn execute(&mut self, order: Order) {
        let Order { command, answer } = order;
        let reply = match command {
            Command::Stop { queue, leave } => {
                let index = queue / self.workers;
                match self.queues.get_mut(index) {
                    Some(queue) => {
                        queue.stop(answer, leave, &mut self.common.holding);
                        self.served = self.served.max(index + 1);
                    }
                    None => drop(answer.send(Answer::Stopped(None))),
                }
                return;
            }
            Command::Pause { queue, leave } => {
                match self.queues.get_mut(queue / self.workers) {
                    Some(queue) => queue.pause(answer, leave),
                    None => drop(answer.send(Answer::Refused)),
                }
                return;
            }
            Command::Memory { memory, retire } => {
                self.common.channel.memory(&memory.host_regions());
                self.common.epochs.replace(memory);
                for queue in &mut self.queues {
                    queue.relocate(&self.common.epochs, None);
                }
                // Some of it may have been lost before.
                self.bury();
                if retire {
                    self.retiring.push(answer);
                    return;
                }
                true
            }
            Command::Abandon { over } => {
                let holding = &mut self.common.holding;
                let queues = self.queues.iter_mut();
                queues.for_each(|queue| queue.abandon(holding));
                self.common.channel.abandon(over);
                true
            }
            Command::Quit => {
                self.leave();
                true
            }
            Command::Start { queue, setup } => self.start(queue / self.workers, setup),
            Command::Move {
                queue,
                addresses,
                used_log,
            } => match self.queues.get_mut(queue / self.workers) {
                Some(queue) => {
                    queue.set_used_log(used_log, self.logging.log.as_ref());
                    queue.relocate(&self.common.epochs, Some(addresses))
                }
                None => false,
            },
            Command::Log { logging } => {
                if self.set_logging(logging) {
                    self.retiring.push(answer);
                    return;
                }
                true
            }
            Command::Enable { queue, on } => {
                self.common.holding.look_soon();
                self.with(queue, |queue| queue.enable(on))
            }
            Command::Kick { queue, fd } => {
                let index = queue / self.workers;
                let watched = self.watch.set_kick(index, fd, &mut self.common.channel);
                self.with(queue, |queue| queue.set_polled(!watched))
            }
            Command::Call { queue, fd } => self.with(queue, |queue| queue.set_call(signal(fd))),
            Command::Err { queue, fd } => self.with(queue, |queue| queue.set_err(signal(fd))),
        };
        let _ = answer.send(if reply { Answer::Done } else { Answer::Refused });
    }

    fn with(&mut self, queue: usize, change: impl FnOnce(&mut Queue)) -> bool {
        self.queues
            .get_mut(queue / self.workers)
            .map(change)
            .is_some()
    }

    /// Returns whether requests are in flight that wrote or will write
    /// without a trace, and have to end first.
    fn set_logging(&mut self, logging: Logging) -> bool {
        let log = logging.log.clone();
        for queue in &mut self.queues {
            queue.set_log(log.as_ref());
        }
        let common = &mut self.common;
        let was_off = common.dirty.is_none();
        match log.filter(|_| logging.data) {
            None => common.dirty = None,
            Some(log) => match &mut common.dirty {
                Some(dirty) => dirty.replace_log(log),
                None => common.dirty = Some(Tracker::new(log, self.slots, MOST_RANGES)),
            },
        }
        self.logging = logging;
        let turned_on = was_off && common.dirty.is_some();
        if turned_on {
            common.epochs.renew();
        }
        turned_on
    }

    fn start(&mut self, index: usize, mut setup: RingSetup) -> bool {
        let Some(queue) = self.queues.get_mut(index) else {
            return false;
        };
        if !queue.start(&setup, &self.common.epochs) {
            return false;
        }
        queue.set_log(self.logging.log.as_ref());
        self.common.channel.abandon(u64::MAX);
        self.served = self.served.max(index + 1);
        let entries = self.queues.iter().map(Queue::entries).sum();
        let requests = self.common.tags.grow(entries);
        self.common.channel.room(requests);
        let Some(queue) = self.queues.get_mut(index) else {
            return false;
        };
        self.common.scratch.begin_turn();
        queue.resubmit(&mut self.common);
        queue.submitted();
        pulse::during(Doing::Disk, || self.common.channel.flush_submissions());
        queue.publish();
        let kick = setup.kick.take();
        let watched = self.watch.set_kick(index, kick, &mut self.common.channel);
        queue.set_polled(!watched);
        true
    }
}

/// A descriptor that can be written without ever waiting for its reader.
fn signal(fd: Option<EventFd>) -> Option<EventFd> {
    if let Some(fd) = &fd
        && let Err(error) = sys::set_nonblocking(fd)
    {
        log::warn!("an eventfd stays blocking: {error}");
    }
    fd
}
