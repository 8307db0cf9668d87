//! The loop: turns over the queues until the time is over.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::churn::Churn;
use super::course::Course;
use super::error::{LoadError, LoadResult};
use super::flow::Flow;
use super::lane::{Clock, Lane};
use super::plan::{Extent, Plan, Waiting};
use super::report::Report;
use super::tally::Tally;
use crate::error::Error;
use crate::process::LIMIT;
use crate::sys;

/// Empty turns between two looks at the clock.
const LOOK: u32 = 1024;
/// A client that polls waits by call after this time without a completion.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a queue does.
#[derive(Debug)]
pub(super) enum Traffic {
    Flow(Flow),
    Churn(Churn),
}

impl Traffic {
    pub(super) fn lane(&self) -> &Lane {
        match self {
            Self::Flow(flow) => &flow.lane,
            Self::Churn(churn) => &churn.lane,
        }
    }

    fn lane_mut(&mut self) -> &mut Lane {
        match self {
            Self::Flow(flow) => &mut flow.lane,
            Self::Churn(churn) => &mut churn.lane,
        }
    }

    #[inline]
    fn turn(&mut self, clock: &mut Clock, goes_on: bool) -> LoadResult<bool> {
        match self {
            Self::Flow(flow) => flow.turn(clock, goes_on),
            Self::Churn(churn) => churn.turn(clock, goes_on),
        }
    }

    /// Nothing is in flight, and nothing half done.
    fn rests(&self) -> bool {
        match self {
            Self::Flow(flow) => flow.lane.quiet(),
            Self::Churn(churn) => churn.rests(),
        }
    }

    /// It has done all that it was told; churn has no end of its own.
    fn exhausted(&self) -> Option<bool> {
        match self {
            Self::Flow(flow) => Some(flow.exhausted()),
            Self::Churn(_) => None,
        }
    }
}

/// Whether what ends is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Counted,
    Over,
}

/// What one thread has measured.
struct Outcome {
    elapsed: Duration,
    ticks: u64,
    course: Course,
}

/// One thread and its queues.
struct Driving<'a> {
    plan: &'a Plan,
    traffic: Vec<&'a mut Traffic>,
    /// Prepared for poll(2).
    calls: Vec<libc::pollfd>,
    clock: Clock,
    phase: Phase,
    began: Instant,
    ticks: u64,
    course: Course,
    outcome: Option<Outcome>,
    /// The process whose CPU time is wanted, for the first thread.
    cpu_of: Option<u32>,
    /// Some thread has done all that it was told.
    over: &'a AtomicBool,
}

/// Runs the load once.
pub(super) fn run(plan: &Plan, traffic: &mut [Traffic]) -> LoadResult<Report> {
    let requests = match plan.extent {
        Extent::Time { .. } => u64::MAX,
        Extent::Requests(requests) => requests,
    };
    let threads = usize::from(plan.threads);
    let mut shares: Vec<Vec<&mut Traffic>> = (0..threads).map(|_| Vec::new()).collect();
    for (queue, traffic) in traffic.iter_mut().enumerate() {
        if let Traffic::Flow(flow) = traffic {
            flow.prepare(requests);
        }
        shares[queue % threads].push(traffic);
    }
    let over = &AtomicBool::new(false);
    let outcomes = thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .enumerate()
            .map(|(index, share)| scope.spawn(move || drive(plan, index, share, over)))
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .map(|result| result.unwrap_or(Err(LoadError::Died)))
            .collect::<LoadResult<Vec<Outcome>>>()
    })?;
    let mut total = Tally::new()?;
    for traffic in traffic.iter() {
        total.add(&traffic.lane().tally);
    }
    let mut verified = 0;
    for traffic in traffic.iter_mut() {
        verified += traffic.lane_mut().prove()?;
    }
    let elapsed = outcomes.iter().map(|o| o.elapsed).max().unwrap_or_default();
    let ticks = plan.cpu_of.map(|_| outcomes.iter().map(|o| o.ticks).sum());
    let mut course = Course::new(plan.every, counted(plan))?;
    for outcome in &outcomes {
        course.add(&outcome.course);
    }
    let intervals = course.into_intervals();
    Ok(Report::new(
        plan, &total, elapsed, ticks, verified, intervals,
    ))
}

/// The time that is counted, where it is known.
fn counted(plan: &Plan) -> Duration {
    match plan.extent {
        Extent::Time { counted, .. } => counted,
        Extent::Requests(_) => Duration::ZERO,
    }
}

fn drive(
    plan: &Plan,
    index: usize,
    traffic: Vec<&mut Traffic>,
    over: &AtomicBool,
) -> LoadResult<Outcome> {
    if let Some(&cpu) = plan.cpus.iter().cycle().nth(index) {
        sys::pin(cpu).map_err(|e| Error::Host("stay on the CPU of --cpu", e))?;
    }
    let fds = traffic.iter().map(|t| t.lane().driver().ring().call_fd());
    let calls = fds.map(|fd: RawFd| sys::poll_entry(fd)).collect();
    let now = Instant::now();
    Driving {
        plan,
        traffic,
        calls,
        clock: Clock(now),
        phase: Phase::WarmUp,
        began: now,
        ticks: 0,
        course: Course::new(plan.every, counted(plan))?,
        outcome: None,
        cpu_of: plan.cpu_of.filter(|_| index == 0),
        over,
    }
    .run()
}

impl Driving<'_> {
    fn run(mut self) -> LoadResult<Outcome> {
        let mut idle = 0_u32;
        let mut last = self.clock.0;
        self.want_calls(false);
        loop {
            self.advance()?;
            let mut ended = false;
            let goes_on = self.phase != Phase::Over;
            for traffic in &mut self.traffic {
                ended |= traffic.turn(&mut self.clock, goes_on)?;
            }
            if ended && self.course.is_kept() && self.phase == Phase::Counted {
                self.note();
            }
            if !goes_on && self.traffic.iter().all(|traffic| traffic.rests()) {
                break;
            }
            if ended {
                idle = 0;
                last = self.clock.0;
                continue;
            }
            if self.plan.waiting == Waiting::Call {
                self.sleep()?;
                continue;
            }
            std::hint::spin_loop();
            idle += 1;
            if idle == LOOK {
                idle = 0;
                self.clock.0 = Instant::now();
                if self.clock.0 - last > PATIENCE {
                    self.sleep()?;
                    self.want_calls(false);
                }
            }
        }
        self.outcome.ok_or(LoadError::Died)
    }

    /// Goes on to the next phase when its time has come.
    fn advance(&mut self) -> LoadResult<()> {
        let (warm_up, counted) = match self.plan.extent {
            Extent::Time { warm_up, counted } => (warm_up, counted),
            Extent::Requests(_) => (Duration::ZERO, Duration::MAX),
        };
        match self.phase {
            Phase::WarmUp if self.clock.0 - self.began >= warm_up => {
                for traffic in &mut self.traffic {
                    let lane = traffic.lane_mut();
                    lane.count_calls()?;
                    lane.tally.reset();
                }
                self.ticks = self.cpu_ticks()?;
                self.began = self.clock.0;
                self.phase = Phase::Counted;
            }
            Phase::Counted => {
                let elapsed = self.clock.0 - self.began;
                let mut flows = self.traffic.iter().filter_map(|t| t.exhausted()).peekable();
                let exhausted = match flows.peek() {
                    Some(_) => flows.all(|exhausted| exhausted),
                    None => self.over.load(Ordering::Relaxed),
                };
                if elapsed >= counted || exhausted {
                    self.end(elapsed)?;
                }
            }
            Phase::WarmUp | Phase::Over => {}
        }
        Ok(())
    }

    /// Notes in which interval requests have ended.
    fn note(&mut self) {
        let at = self.clock.0 - self.began;
        for traffic in &mut self.traffic {
            let (requests, longest) = traffic.lane_mut().tally.take_recent();
            self.course.note(at, requests, longest);
        }
    }

    fn end(&mut self, elapsed: Duration) -> LoadResult<()> {
        self.outcome = Some(Outcome {
            elapsed,
            ticks: self.cpu_ticks()? - self.ticks,
            course: std::mem::take(&mut self.course),
        });
        for traffic in &mut self.traffic {
            traffic.lane_mut().count_calls()?;
        }
        self.phase = Phase::Over;
        self.over.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn cpu_ticks(&self) -> LoadResult<u64> {
        let Some(pid) = self.cpu_of else {
            return Ok(0);
        };
        Ok(sys::cpu_ticks(pid).map_err(|e| Error::Host("read the CPU time of --cpu-of", e))?)
    }

    fn want_calls(&self, wanted: bool) {
        for traffic in &self.traffic {
            traffic.lane().driver().ring().want_call(wanted);
        }
    }

    /// Sleeps until a queue that has something in flight calls.
    fn sleep(&mut self) -> LoadResult<()> {
        self.want_calls(true);
        let ready = |traffic: &Traffic| {
            let ring = traffic.lane().driver().ring();
            ring.device_index() != ring.next_used()
        };
        if self.traffic.iter().any(|traffic| ready(traffic)) {
            return Ok(());
        }
        let called = sys::any_readable(&mut self.calls, LIMIT);
        if !called.map_err(|e| Error::Host("wait for a call", e))? {
            return Err(Error::Late("a completion").into());
        }
        for traffic in &mut self.traffic {
            traffic.lane_mut().count_calls()?;
        }
        self.clock.0 = Instant::now();
        Ok(())
    }
}
