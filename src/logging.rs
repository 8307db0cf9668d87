//! The log: lines on standard error.

use std::fmt;
use std::io::{self, Write};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use log::{Level, Log, Metadata, Record};

use crate::hardening::SMALL_STACK;
use crate::log_queue::Queue;

/// How long the end of the process waits for its last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Which records are shown: what `RUST_LOG` says, `info` without it.
static FILTER: LazyLock<env_logger::Logger> = LazyLock::new(|| {
    let env = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(env).build()
});

/// A record as a line, which carries no time: a service manager adds it, a
/// terminal needs none.
struct Shown<'a>(&'a Record<'a>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0.args();
        match self.0.level() {
            Level::Info => write!(f, "extentd: {message}"),
            Level::Warn => write!(f, "extentd: warning: {message}"),
            Level::Error => write!(f, "extentd: error: {message}"),
            Level::Debug | Level::Trace => write!(f, "extentd: {}: {message}", self.0.target()),
        }
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        FILTER.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !FILTER.matches(record) {
            return;
        }
        match QUEUE.get() {
            Some(queue) => queue.put(format_args!("{}", Shown(record))),
            None => {
                // In one piece, as others may write there too. Where it is
                // closed, nobody wants to see it.
                let line = format!("{}\n", Shown(record));
                let _ = io::stderr().write_all(line.as_bytes());
            }
        }
    }

    fn flush(&self) {}
}

/// Sends the log to standard error; `RUST_LOG` sets how much, `info` without
/// it.
pub fn init() {
    log::set_max_level(FILTER.filter());
    if log::set_logger(&Stderr).is_err() {
        log::warn!("the log was set up already");
    }
}

/// From now on a thread of its own writes the log, so that no other ever
/// waits for whoever reads it.
///
/// # Errors
/// The host refuses a thread.
pub fn use_queue() -> io::Result<()> {
    let queue = QUEUE.get_or_init(Queue::default);
    std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(move || queue.write_all(io::stderr()))?;
    Ok(())
}

/// Waits for the last lines, but not for ever.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(LAST_WORDS);
    }
}
