//! What signals ask for: SIGTERM and SIGINT stop in good order, and at once if
//! asked again later; SIGUSR2 hands over to a new binary; SIGHUP looks at the
//! image's size. Others that would end the process by default are told and do
//! nothing, but for those that debuggers and crashes need.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::hardening::SMALL_STACK;
use crate::host::logging;
use crate::host::sandbox::{self, Kind};
use crate::host::sys;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To end in good order.
    Stop,
    /// To become another binary.
    Handover,
    /// To see whether the image has another size.
    Reread,
}

/// Timers, terminals and limits of other programs' kind: a stray one must not
/// end a disk.
const STRAY: [libc::c_int; 8] = [
    libc::SIGUSR1,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
];

/// A second signal within this time is the first one's echo: timeout(1), shells
/// and service managers signal a process, and then the group it is in.
const ECHO: Duration = Duration::from_millis(500);

type Act = Box<dyn Fn(Wish) + Send + Sync>;

/// Signals that wait for whoever watches.
pub(crate) struct Blocked(File);

/// The signals are blocked in this thread and in all it starts, and a thread
/// waits for them.
pub(crate) struct Signals {
    act: Arc<OnceLock<Act>>,
}

impl Signals {
    /// Blocks them, in this thread and in all that it will start.
    ///
    /// # Errors
    /// What signalfd(2) says.
    pub(crate) fn block() -> io::Result<Blocked> {
        // A write beyond the limit fails with EFBIG, and is told as that.
        sys::ignore_signal(libc::SIGXFSZ)?;
        let asked = [libc::SIGTERM, libc::SIGINT, libc::SIGUSR2, libc::SIGHUP];
        let source = sys::signal_descriptor(&[&asked[..], &STRAY].concat())?;
        Ok(Blocked(source))
    }

    /// Starts the thread that waits for them. Until
    /// [`on_wish`](Self::on_wish) a signal that stops ends the process with
    /// status 0, and others ask for what is about to be done anyway.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(crate) fn watch(Blocked(mut source): Blocked) -> io::Result<Self> {
        let act = Arc::new(OnceLock::<Act>::new());
        let shared = Arc::clone(&act);
        thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(move || {
                sandbox::enter(Kind::Signals);
                follow(&mut source, &shared);
            })?;
        Ok(Self { act })
    }

    /// From now on `act` does what signals ask for. It is asked to stop once;
    /// a second signal that stops, unless it follows at once, ends the process
    /// with status 1.
    pub(crate) fn on_wish(&self, act: impl Fn(Wish) + Send + Sync + 'static) {
        if self.act.set(Box::new(act)).is_err() {
            log::warn!("signals already have somebody who acts");
        }
    }
}

/// Carries signals out for the life of the process.
fn follow(source: &mut File, act: &OnceLock<Act>) {
    let mut stopping: Option<Instant> = None;
    loop {
        let (name, wish) = next(source);
        let Some(wish) = wish else {
            log::warn!("{name}: nothing is done");
            continue;
        };
        match (act.get(), wish) {
            (None, Wish::Stop) => leave(0),
            // A process and its group may be told of one and the same wish.
            (Some(_), Wish::Stop) if stopping.is_some_and(|since| since.elapsed() < ECHO) => {
                log::info!("{name}: stopping already; once more leaves at once");
            }
            (Some(_), Wish::Stop) if stopping.is_some() => {
                log::error!("{name} while stopping: leaving at once");
                leave(1);
            }
            (Some(act), wish) if stopping.is_none() => {
                log::info!("{name}: {}", wish.describe());
                stopping = (wish == Wish::Stop).then(Instant::now);
                act(wish);
            }
            _ => log::info!("{name}: not now"),
        }
    }
}

/// Ends the process, whoever reads its log.
fn leave(status: i32) -> ! {
    logging::finish();
    std::process::exit(status);
}

impl Wish {
    fn describe(self) -> &'static str {
        match self {
            Self::Stop => "stopping",
            Self::Handover => "handing over to a new binary",
            Self::Reread => "looking at the image's size",
        }
    }
}

/// Waits for a signal; its name, and what it asks for, if that is anything.
fn next(source: &mut File) -> (&'static str, Option<Wish>) {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    if let Err(error) = source.read_exact(&mut info) {
        // Without signals nobody could stop the process in good order.
        log::error!("signals cannot be read ({error}): stopping");
        return ("no signals", Some(Wish::Stop));
    }
    match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
        libc::SIGUSR2 => ("SIGUSR2", Some(Wish::Handover)),
        libc::SIGHUP => ("SIGHUP", Some(Wish::Reread)),
        libc::SIGINT => ("SIGINT", Some(Wish::Stop)),
        libc::SIGTERM => ("SIGTERM", Some(Wish::Stop)),
        libc::SIGXCPU => (
            "SIGXCPU, the limit on CPU time is near (LimitCPU=, ulimit -t)",
            None,
        ),
        libc::SIGUSR1 => ("SIGUSR1", None),
        _ => ("a stray signal", None),
    }
}
