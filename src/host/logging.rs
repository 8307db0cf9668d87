//! The log: lines on standard error, written by a thread of its own, and the
//! last words of a process that panics.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, Write};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use rustix::event::{PollFd, PollFlags};

use crate::host::allocations;
use crate::host::hardening::SMALL_STACK;
use crate::host::journal;
use crate::host::log_budget::Kind;
use crate::host::log_queue::Queue;
use crate::host::switches;
use crate::host::sys;

/// How long the end of the process waits for its last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

static QUEUE: LazyLock<Queue> = LazyLock::new(Queue::default);

/// The thread that writes has been started.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// The level that was chosen, as a number; 0 as long as none was.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// Which records are shown where no level was chosen: what `RUST_LOG` says,
/// `info` without it.
static FILTER: LazyLock<env_logger::Logger> = LazyLock::new(|| {
    let env = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(env).build()
});

/// The program that logs; extentd, if nothing else is said.
static NAME: OnceLock<&str> = OnceLock::new();

/// Each line of the log begins with this name of a program.
pub fn name(name: &'static str) {
    // The first one stays.
    let _ = NAME.set(name);
}

/// A record as a line, which carries no time: a service manager adds it, a
/// terminal needs none.
struct Shown<'a>(&'a Record<'a>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0.args();
        let name = NAME.get().copied().unwrap_or("extentd");
        f.write_str(journal::mark(self.0.level()))?;
        match self.0.level() {
            Level::Info => write!(f, "{name}: {message}"),
            Level::Warn => write!(f, "{name}: warning: {message}"),
            Level::Error => write!(f, "{name}: error: {message}"),
            Level::Debug | Level::Trace => write!(f, "{name}: {}: {message}", self.0.target()),
        }
    }
}

/// The record is to be seen.
fn matches(record: &Record<'_>) -> bool {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => FILTER.matches(record),
        chosen => record.level() as usize <= chosen,
    }
}

struct Queued;

impl Log for Queued {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if matches(record) {
            QUEUE.put_limited(
                Kind::of(record.metadata()),
                format_args!("{}", Shown(record)),
            );
        }
    }

    fn flush(&self) {}
}

/// The negative control of tests: whoever logs writes.
struct Direct;

impl Log for Direct {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if matches(record) {
            let _ = Stderr.write_all(format!("{}\n", Shown(record)).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Standard error without the lock that the standard library has on it, which
/// a thread that waits for a full pipe would hold.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = rustix::stdio::stderr();
        loop {
            match rustix::io::write(stderr, bytes) {
                // Whoever shares it has made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    rustix::event::poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same for a while: what it takes no more of in time fails.
struct StderrUntil(Instant);

impl Write for StderrUntil {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = rustix::stdio::stderr();
        let left = self.0.saturating_duration_since(Instant::now());
        let left = left.try_into().ok();
        // A pipe that can be written to has room for a line.
        match rustix::event::poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], left.as_ref())? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(rustix::io::write(stderr, bytes)?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the log to standard error; `RUST_LOG` sets how much, `info` without
/// it. Lines wait until `start` is called.
pub fn init() {
    journal::find();
    log::set_max_level(FILTER.filter());
    QUEUE.be_patient(true);
    let set = if switches::left_out("log") {
        log::set_logger(&Direct)
    } else {
        log::set_logger(&Queued)
    };
    if set.is_err() {
        log::warn!("the log was set up already");
    }
}

/// From now on records of this level and graver ones are shown, whatever
/// `RUST_LOG` says; `None`: as it says.
pub fn show(level: Option<LevelFilter>) {
    CHOSEN.store(level.map_or(0, |level| level as usize), Ordering::Relaxed);
    log::set_max_level(level.unwrap_or_else(|| FILTER.filter()));
}

/// The level that was chosen; `None`: what `RUST_LOG` says decides.
pub(crate) fn shown() -> Option<LevelFilter> {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => None,
        chosen => LevelFilter::iter().find(|level| *level as usize == chosen),
    }
}

/// Starts the thread that writes the log, so that no other ever waits for
/// whoever reads it. To be called when the signals are blocked that the
/// process watches for. `begun` is its first act.
///
/// # Errors
/// The host refuses a thread.
pub(crate) fn start(begun: fn()) -> io::Result<()> {
    if WRITTEN.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(move || {
            begun();
            // Writing to a terminal from the background must not stop the
            // process (`stty tostop`).
            if let Err(error) = sys::block_signals(&[libc::SIGTTOU]) {
                log::debug!("SIGTTOU is not blocked: {error}");
            }
            QUEUE.write_all(Stderr)
        })
        .inspect_err(|_| WRITTEN.store(false, Ordering::Release))?;
    Ok(())
}

/// From now on no thread waits for another one that logs, and there is a limit
/// for all lines. To be called before anybody is served.
pub(crate) fn wait_no_more() {
    QUEUE.be_patient(false);
}

/// A line that is shown whole, whatever `RUST_LOG` says.
pub fn tell(line: &str) {
    QUEUE.put_whole(&format!("{}{line}", journal::mark(Level::Error)));
}

/// A line that is shown whatever `RUST_LOG` says, also from a signal handler:
/// nothing is allocated or waited for.
pub(crate) fn tell_at_once(line: fmt::Arguments<'_>) {
    QUEUE.put(format_args!("{}{line}", journal::mark(Level::Error)));
}

/// Waits for the last lines, but not for ever.
pub fn finish() {
    match start(|| ()) {
        Ok(()) => QUEUE.drain(LAST_WORDS),
        // Nobody else can write them.
        Err(_) => QUEUE.write_rest(StderrUntil(Instant::now() + LAST_WORDS)),
    }
}

/// From now on a panic ends the process, whatever thread it is in and whoever
/// reads the log: a worker that unwound would let fences pass while its raw
/// I/O is in flight. The record of requests in flight carries them over.
/// `resolve` names the functions of a backtrace, where one is wanted
/// (`RUST_BACKTRACE`): the thread itself may not be able to open what they are
/// read from.
pub fn end_on_panic(resolve: fn(Backtrace) -> Option<String>) {
    if switches::left_out("abort") {
        return;
    }
    std::panic::set_hook(Box::new(move |info| {
        // A thread has no memory for its own beginning.
        let begins = |place: &Location<'_>| place.file().ends_with("stack_overflow.rs");
        if info.location().is_some_and(begins) {
            allocations::tell_no_memory();
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let said = info.to_string().replace('\n', " ");
        tell(&format!("extentd: error: thread {name}: {said}"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured
            && let Some(named) = resolve(backtrace)
        {
            for line in named.lines() {
                QUEUE.put(format_args!("{line}"));
            }
        }
        finish();
        std::process::abort();
    }));
}
