//! SIGTERM and SIGINT: stop in good order, and at once if asked again.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::hardening::SMALL_STACK;
use crate::sys;

type Stop = Box<dyn Fn() + Send + Sync>;

/// The signals are blocked in this thread and in all it starts, and a thread
/// waits for them.
pub struct Signals {
    stop: Arc<OnceLock<Stop>>,
}

impl Signals {
    /// To be called before any other thread is started. Until
    /// [`on_stop`](Self::on_stop) a signal ends the process with status 0.
    ///
    /// # Errors
    /// What signalfd(2) or the start of a thread says.
    pub fn watch() -> io::Result<Self> {
        let mut source = sys::signal_descriptor(&[libc::SIGTERM, libc::SIGINT])?;
        let stop = Arc::new(OnceLock::<Stop>::new());
        let shared = Arc::clone(&stop);
        thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(SMALL_STACK)
            .spawn(move || {
                let first = next(&mut source);
                match shared.get() {
                    None => std::process::exit(0),
                    Some(stop) => {
                        log::info!("{first}: stopping");
                        stop();
                    }
                }
                let second = next(&mut source);
                log::error!("{second} while stopping: leaving at once");
                std::process::exit(1);
            })?;
        Ok(Self { stop })
    }

    /// From now on the first signal runs `stop`, and a second one ends the
    /// process at once with status 1.
    pub fn on_stop(&self, stop: impl Fn() + Send + Sync + 'static) {
        if self.stop.set(Box::new(stop)).is_err() {
            log::warn!("signals already have something to stop");
        }
    }
}

/// Waits for a signal; its name.
fn next(source: &mut File) -> &'static str {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    if let Err(error) = source.read_exact(&mut info) {
        // Without signals nobody could stop the process in good order.
        log::error!("signals cannot be read ({error}): stopping");
        return "no signals";
    }
    match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
        libc::SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}
