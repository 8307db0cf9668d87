//! The helper thread that loads what readers miss.

pub(crate) mod advise;
pub(crate) mod later;
pub(crate) mod stream;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use pulse::Doing;

use self::later::{Later, Waiting};
use self::stream::{Access, Streams};
use crate::error::Error;
use crate::map::Map;
use crate::map::filling::{PutOff, Ready};
use crate::map::load::Style;
use crate::map::wish::Wish;
use crate::source::ExtentSource;
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, Ordering, lock};
use crate::threads::{self, Thread};

/// Windows read at a time ahead of streams and by advice, between two looks at what readers miss.
const CHUNK: usize = 16;
/// Most windows populated ahead of one stream (256 MiB with windows of 4 MiB).
const MOST_AHEAD: usize = 64;
/// Most pieces of advice that wait at a time.
const MOST_JOBS: usize = 64;
/// How long after a failed or unsettled load a window is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// How often replaced windows are looked at that wait for readers.
const RECLAIM: Duration = Duration::from_millis(50);
/// Loading windows that are being filled, to see whether they still are, may take one part in so many of the time.
const TRYING: u32 = 16;
/// How long dropping the filler waits for a thread that may be stuck in the file system.
const PATIENCE: Duration = Duration::from_secs(1);

/// Loads windows on a thread of its own: those that readers miss, those ahead of sequential streams, and
/// those that advice names (see [`Filler::willneed`] and the other functions).
///
/// Dropping it stops the thread. A thread that hangs in the file system (which a frozen one does to it) is
/// left behind after a second; it touches nothing of the map once it comes back but to publish what it
/// read, under the usual rules.
pub struct Filler<S: ExtentSource> {
    pub(crate) map: Map,
    pub(crate) source: Arc<S>,
    pub(crate) control: Arc<Control>,
}

/// What the handle and the thread share.
pub(crate) struct Control {
    stop: AtomicBool,
    stopped: Mutex<bool>,
    ended: Condvar,
    pub(crate) advice: Mutex<Advice>,
}

#[derive(Default)]
pub(crate) struct Advice {
    /// Windows to be loaded, by `willneed` and for pinned windows that were forgotten.
    pub(crate) jobs: VecDeque<Range<usize>>,
    /// The newest last.
    pub(crate) access: Vec<(Range<usize>, Access)>,
    pub(crate) dropped: u64,
    /// Pinned ranges, in windows.
    pub(crate) pinned: Vec<Range<usize>>,
}

impl Advice {
    pub(crate) fn access(&self, window: usize) -> Access {
        let named = self
            .access
            .iter()
            .rev()
            .find(|(range, _)| range.contains(&window));
        named.map_or(Access::Normal, |(_, access)| *access)
    }

    /// Puts a job in the queue; whether there was room.
    pub(crate) fn add_job(&mut self, windows: Range<usize>) -> bool {
        let room = self.jobs.len() < MOST_JOBS;
        if room {
            self.jobs.push_back(windows);
        } else {
            self.dropped += 1;
        }
        room
    }
}

impl<S: ExtentSource> std::fmt::Debug for Filler<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filler")
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}

impl<S: ExtentSource> Filler<S> {
    /// Starts the thread, named `map-filler`. A map should have one filler.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn spawn(map: &Map, source: Arc<S>) -> Result<Filler<S>, Error> {
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            stopped: Mutex::new(false),
            ended: Condvar::new(),
            advice: Mutex::new(Advice::default()),
        });
        let worker = Worker {
            map: map.clone(),
            source: Arc::clone(&source),
            control: Arc::clone(&control),
            streams: Streams::default(),
            later: Later::new(map.config().quiet),
            trying: Instant::now(),
            ahead: VecDeque::new(),
        };
        spawn(move || worker.run()).map_err(Error::Thread)?;
        map.shared.wishes.listen(true);
        Ok(Filler {
            map: map.clone(),
            source,
            control,
        })
    }

    /// The map it fills.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The source it reads from.
    #[must_use]
    pub fn source(&self) -> &Arc<S> {
        &self.source
    }
}

impl<S: ExtentSource> Drop for Filler<S> {
    fn drop(&mut self) {
        self.map.shared.wishes.listen(false);
        self.control.stop.store(true, Ordering::Release);
        self.map.shared.wishes.poke();
        let until = Instant::now() + PATIENCE;
        let mut stopped = lock(&self.control.stopped);
        while !*stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::warn!(
                    "the file system does not answer: leaving the map's helper thread behind"
                );
                return;
            }
            stopped = match self.control.ended.wait_timeout(stopped, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name("map-filler".into())
        .spawn(move || {
            threads::begun(Thread::Filler);
            run();
        })
        .map(|_| ())
}

struct Worker<S> {
    map: Map,
    source: Arc<S>,
    control: Arc<Control>,
    streams: Streams,
    /// Wishes to be looked at again.
    later: Later,
    /// When a window that is being filled may be loaded next.
    trying: Instant,
    /// Windows to be loaded ahead of streams.
    ahead: VecDeque<Range<usize>>,
}

/// Says that the thread has ended, also if a source panics.
struct Ended(Arc<Control>);

impl Drop for Ended {
    fn drop(&mut self) {
        *lock(&self.0.stopped) = true;
        self.0.ended.notify_all();
    }
}

impl<S: ExtentSource> Worker<S> {
    fn run(mut self) {
        let _ended = Ended(Arc::clone(&self.control));
        let _pulse = pulse::join("map-filler", Doing::Disk);
        let mut wishes = Vec::new();
        while !self.control.stop.load(Ordering::Acquire) {
            let timeout = self.timeout();
            pulse::during(Doing::Resting, || {
                self.map.shared.wishes.take(&mut wishes, timeout);
            });
            self.serve(&mut wishes);
            self.load_ahead();
            self.follow_advice();
            self.reload_pinned();
            let mut writer = self.map.shared.lock();
            self.map.shared.reclaim(&mut writer);
        }
    }

    /// How long there is nothing to do but for new wishes.
    fn timeout(&self) -> Option<Duration> {
        if !self.ahead.is_empty() || !lock(&self.control.advice).jobs.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = self
            .later
            .next()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let retired = (self.map.shared.lock().retired() != 0).then_some(RECLAIM);
        due.into_iter().chain(retired).min()
    }

    /// Loads what readers wait for, neighbours together, and notes what comes next in their streams.
    fn serve(&mut self, wishes: &mut Vec<Wish>) {
        let most = self.most_ahead();
        let mut wanted: Vec<usize> = Vec::new();
        let mut tried = false;
        let now = Instant::now();
        while let Some(waiting) = self.later.take_due(now) {
            let before = PutOff {
                time: now.saturating_duration_since(waiting.since),
                may_try: !tried && now >= self.trying,
            };
            let ready = self.map.shared.ready(waiting.window, Some(before));
            tried |= ready == Ready::Try;
            self.take(waiting, ready, now, &mut wanted);
        }
        for wish in wishes.drain(..) {
            let access = lock(&self.control.advice).access(wish.window);
            let ahead = self.streams.used(wish.window, access, most);
            if !ahead.is_empty() {
                self.ahead.push_back(ahead);
            }
            let ready = if wish.ahead {
                Ready::Never
            } else {
                self.map.shared.ready(wish.window, None)
            };
            let waiting = Waiting::new(wish.window, now);
            self.take(waiting, ready, now, &mut wanted);
        }
        wanted.sort_unstable();
        wanted.dedup();
        for run in wanted.chunk_by(|a, b| a + 1 == *b) {
            self.load(run);
        }
        if tried {
            let end = Instant::now();
            self.trying = end + end.saturating_duration_since(now) * TRYING;
        }
    }

    fn take(&mut self, waiting: Waiting, ready: Ready, now: Instant, wanted: &mut Vec<usize>) {
        match ready {
            Ready::Now | Ready::Try => wanted.push(waiting.window),
            Ready::Later(time) => self.later.add(now + time, waiting),
            Ready::Never => self.map.shared.answered(waiting.window),
        }
    }

    /// Loads windows that are neighbours, and answers those who wish for them.
    fn load(&mut self, run: &[usize]) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return;
        };
        let result = self
            .map
            .shared
            .load_windows(&*self.source, *first..*last + 1, Style::Wanted);
        match result {
            Err(error @ (Error::Unsettled(_) | Error::Source(_))) => {
                log::debug!("windows {first} to {last} of the map: {error}");
                let now = Instant::now();
                for &window in run {
                    self.later.add(now + RETRY, Waiting::new(window, now));
                }
            }
            _ => run
                .iter()
                .for_each(|&window| self.map.shared.answered(window)),
        }
    }

    /// Windows that may be populated ahead of a stream without taking more than a quarter of the budget.
    fn most_ahead(&self) -> usize {
        let writer = self.map.shared.lock();
        let each = (writer.evictable / writer.windows.max(1)).max(1);
        let most = self.map.config().budget / 4 / each;
        usize::try_from(most).unwrap_or(MOST_AHEAD).min(MOST_AHEAD)
    }

    /// One chunk of what streams will need.
    fn load_ahead(&mut self) {
        let Some(mut windows) = self.ahead.pop_front() else {
            return;
        };
        if let Some(run) = self
            .map
            .shared
            .next_missing(&mut windows, CHUNK, Style::Ahead)
        {
            let went_well = self
                .map
                .shared
                .load_windows(&*self.source, run, Style::Ahead)
                .is_ok();
            if went_well && !windows.is_empty() {
                self.ahead.push_front(windows);
            }
        }
    }

    /// One chunk of what advice asks for.
    fn follow_advice(&mut self) {
        let Some(mut windows) = lock(&self.control.advice).jobs.pop_front() else {
            return;
        };
        if let Some(run) = self
            .map
            .shared
            .next_missing(&mut windows, CHUNK, Style::Advised)
        {
            let went_well = self
                .map
                .shared
                .load_windows(&*self.source, run, Style::Advised)
                .is_ok();
            if went_well && !windows.is_empty() {
                lock(&self.control.advice).jobs.push_front(windows);
            }
        }
    }

    /// Pinned windows that were forgotten come back once loading is possible.
    fn reload_pinned(&mut self) {
        let pinned = lock(&self.control.advice).pinned.clone();
        if pinned.is_empty() || !self.map.enabled() {
            return;
        }
        for mut windows in pinned {
            while let Some(run) = self
                .map
                .shared
                .next_missing(&mut windows, CHUNK, Style::Wanted)
            {
                for window in run {
                    if self.later.has(window) {
                        continue;
                    }
                    let now = Instant::now();
                    let waiting = Waiting::new(window, now);
                    match self.map.shared.ready(window, None) {
                        Ready::Now | Ready::Try => {
                            let one = window..window + 1;
                            if self
                                .map
                                .shared
                                .load_windows(&*self.source, one, Style::Wanted)
                                .is_err()
                            {
                                self.later.add(now + RETRY, waiting);
                            }
                        }
                        Ready::Later(time) => self.later.add(now + time, waiting),
                        Ready::Never => {}
                    }
                }
            }
        }
    }
}
