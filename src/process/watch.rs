//! The thread that watches all others: it says who stands still and who goes
//! on, and tells the service manager that the process is well as long as all
//! that must turn do turn. When the process is to stop and does not, it ends it.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use pulse::{Change, Watch};
use vhost_backend::HeldRequests;

use crate::host::feed::Feed;
use crate::host::hardening::SMALL_STACK;
use crate::host::logging;
use crate::host::sandbox::{self, Kind};
use crate::process::service_manager::{self, NotifyState};
use crate::protocol::events::Event;

/// A stop may take so long, for a disk that does not answer: less than the
/// service manager gives it (`TimeoutStopSec=`).
const STOP: Duration = Duration::from_secs(50);
/// The same where a thread stands still that no disk keeps.
const STOP_STANDING: Duration = Duration::from_secs(10);

static HELD: OnceLock<Arc<HeldRequests>> = OnceLock::new();
static STOPPING: OnceLock<Instant> = OnceLock::new();

/// From now on the process is to stop. It ends within a bound, whatever its
/// threads wait for; what is in flight then stays in the front-end's record.
pub(crate) fn stopping() {
    STOPPING.get_or_init(Instant::now);
}

/// From now on it is told when these begin to be held, and when none is.
pub(crate) fn look_at(held: Arc<HeldRequests>) {
    HELD.get_or_init(|| held);
}

/// Starts the thread, for the life of the process.
///
/// # Errors
/// The host refuses a thread or a signal's handler.
pub(crate) fn start(feed: Feed<Event>) -> io::Result<()> {
    pulse::catch_strikes()?;
    // Where it is told too rarely, it ends the process.
    let interval = service_manager::watchdog_enabled().map(|limit| limit / 4);
    thread::Builder::new()
        .name("watch".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(move || {
            sandbox::enter(Kind::Watch);
            watch(interval, &feed);
        })?;
    Ok(())
}

fn watch(interval: Option<Duration>, feed: &Feed<Event>) {
    let mut watch = Watch::default();
    let mut last = Instant::now();
    let mut told: Option<Instant> = None;
    let mut held = Held::default();
    loop {
        let next = watch.next();
        let next = interval.map_or(next, |interval| next.min(interval));
        thread::sleep(next);
        let now = Instant::now();
        for change in watch.look(now - last, next) {
            say(&change);
            feed.tell(event(change));
        }
        last = now;
        held.look(feed);
        let due = interval.filter(|&interval| told.is_none_or(|at| now - at >= interval));
        if due.is_some() && !stands() {
            service_manager::tell(&NotifyState::Watchdog);
            told = Some(now);
        }
        if let Some(time) = STOPPING.get().map(Instant::elapsed)
            && (time >= STOP || (time >= STOP_STANDING && stands()))
        {
            leave(time);
        }
    }
}

/// A thread that is to come round does not.
pub(crate) fn stands() -> bool {
    pulse::standing().iter().any(|one| one.doing.must_turn())
}

fn leave(time: Duration) -> ! {
    let standing = pulse::standing();
    let who: Vec<_> = standing
        .iter()
        .map(|one| {
            format!(
                "thread {} stands still {}",
                one.thread,
                one.doing.describe()
            )
        })
        .collect();
    let why = if who.is_empty() {
        "the disk does not answer".to_owned()
    } else {
        who.join(", ")
    };
    log::error!(
        "not stopped after {} s ({why}): leaving at once, and what is in flight to the next process",
        time.as_secs()
    );
    logging::finish();
    std::process::exit(1);
}

fn event(change: Change) -> Event {
    match change {
        Change::Stands(one) => Event::ThreadStands {
            thread: one.thread,
            seconds: one.time.as_secs(),
            doing: one.doing.describe().to_owned(),
        },
        Change::GoesOn(one) => Event::ThreadGoesOn {
            thread: one.thread,
            seconds: one.time.as_secs(),
        },
    }
}

fn say(change: &Change) {
    match change {
        Change::Stands(one) => log::warn!(
            "thread {} stands still for {} s by now: {}",
            one.thread,
            one.time.as_secs(),
            one.doing.describe()
        ),
        Change::GoesOn(one) => log::info!(
            "thread {} goes on after {} s",
            one.thread,
            one.time.as_secs()
        ),
    }
}

/// What was told of requests that are held.
#[derive(Debug, Default)]
struct Held {
    since: Option<Instant>,
    ever: u64,
}

impl Held {
    fn look(&mut self, feed: &Feed<Event>) {
        let Some(requests) = HELD.get() else { return };
        let counts = requests.counts();
        let some = counts.ever != self.ever || counts.now > 0;
        self.ever = counts.ever;
        if some && self.since.is_none() {
            self.since = Some(Instant::now());
            let reason = reason(counts.why);
            log::warn!("requests are held, and the guest waits: {reason}");
            feed.tell(Event::RequestsHeld { reason });
        }
        if counts.now == 0
            && let Some(since) = self.since.take()
        {
            let seconds = since.elapsed().as_secs();
            log::info!("no request is held any more, after {seconds} s");
            feed.tell(Event::RequestsReleased { seconds });
        }
    }
}

/// Why, and what to do about it.
fn reason(errno: i32) -> String {
    match errno {
        libc::ENOSPC | libc::EDQUOT => {
            "the image's file system is full: make room, and they go on by themselves".to_owned()
        }
        _ => format!(
            "{}: they go on when the disk works again, or at extentctl retry",
            io::Error::from_raw_os_error(errno)
        ),
    }
}
