//! Swap-grade mode: what is done for it at the start, and whether each of its
//! properties holds, as the kernel tells.

pub mod prepare;
pub(crate) mod progress;
mod properties;

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;

use self::prepare::PrepareError;
use self::progress::{Display, percent};
use self::properties::{Counters, major_faults};
use crate::disk::Disk;
use crate::host::allocations::{self};
use crate::host::hardening::{self, Shortfall};
use crate::host::switches;
use crate::options::config::Swap;
use crate::options::size;
use crate::protocol::info::{Properties, Property, Selftest, SwapInfo};

/// How long a self-test watches the counters.
const WATCH: Duration = Duration::from_secs(1);
/// How long a manager is to wait for the next sign of life, in microseconds.
const PATIENCE: u32 = 120_000_000;

/// Why the process cannot be swap-grade.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The image.
    #[error("--swap: {0}")]
    Image(#[from] PrepareError),
    /// Privileges are missing.
    #[error("--swap: {}; or give --swap=best-effort to go on without", list(.0))]
    Host(Vec<Shortfall>),
    /// A thread or /proc.
    #[error("--swap: cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
}

fn list(shortfalls: &[Shortfall]) -> String {
    let lines: Vec<String> = shortfalls.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// The mode of a process that runs in it.
#[derive(Debug)]
pub(crate) struct SwapMode {
    grade: Swap,
    baseline: Counters,
}

/// Takes what every later thread inherits. To be called before there is one.
///
/// # Errors
/// Privileges are missing, and `Swap::Demanded` was asked for.
pub(crate) fn protect(grade: Swap) -> Result<(), SwapError> {
    settle(grade, hardening::protect())
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> SwapError {
    move |source| SwapError::System { what, source }
}

fn settle(grade: Swap, shortfalls: Vec<Shortfall>) -> Result<(), SwapError> {
    if grade == Swap::Demanded && !shortfalls.is_empty() {
        return Err(SwapError::Host(shortfalls));
    }
    for shortfall in shortfalls {
        log::warn!("not swap-grade: {shortfall}");
    }
    Ok(())
}

/// Prepares the image and shows how far that is. An image that somebody else has must have been
/// prepared before. To be called when signals are blocked.
///
/// # Errors
/// It cannot be prepared, and `Swap::Demanded` was asked for.
pub(crate) fn prepare(grade: Swap, image: &Path) -> Result<(), SwapError> {
    if switches::left_out("prepare") {
        return Ok(());
    }
    let mut display = Display::new(image, |line| log::info!("{line}"));
    let mut told = None;
    let result = prepare::prepare(image, None, &mut |progress| {
        display.show(progress);
        let percent = percent(progress);
        if told.replace(percent) != Some(percent) {
            tell_manager(&format!("preparing the image: {percent} %"));
        }
        ControlFlow::Continue(())
    });
    drop(display);
    if let Err(PrepareError::InUse { .. }) = &result {
        return prepared_by_others(grade, image);
    }
    for warning in result.iter().flat_map(prepare::Prepared::warnings) {
        log::warn!("{}: {warning}", image.display());
    }
    match result {
        Ok(prepared) if prepared.changed > 0 => {
            log::info!(
                "{} of the image were prepared",
                size::display(prepared.changed)
            );
        }
        Ok(_) => {}
        Err(error) if grade == Swap::Demanded => return Err(error.into()),
        Err(error) => log::warn!("not swap-grade: {error}"),
    }
    Ok(())
}

/// Somebody else has the image, as the source of a migration has, and nobody
/// can prepare it meanwhile: it has to be so already.
fn prepared_by_others(grade: Swap, image: &Path) -> Result<(), SwapError> {
    match prepare::find_prepared(image) {
        Ok(()) => Ok(()),
        Err(error) if grade == Swap::Demanded => Err(error.into()),
        Err(error) => {
            log::warn!("not swap-grade: {error}");
            Ok(())
        }
    }
}

fn tell_manager(status: &str) {
    let states = [
        NotifyState::Status(status),
        NotifyState::ExtendTimeoutUsec(PATIENCE),
    ];
    if let Err(error) = sd_notify::notify(&states) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

impl SwapMode {
    /// Locks all memory, now that every thread, pool and ring is there.
    ///
    /// # Errors
    /// The host does not allow it, and `Swap::Demanded` was asked for.
    pub(crate) fn seal(grade: Swap) -> Result<Self, SwapError> {
        hardening::trim();
        settle(grade, hardening::lock_memory().err().into_iter().collect())?;
        let baseline = Counters::now().map_err(system("read /proc/self/stat"))?;
        Ok(Self { grade, baseline })
    }

    /// Each property by its name.
    pub(crate) fn properties(&self, disk: &Disk) -> Vec<(&'static str, Property)> {
        vec![
            ("extents_written", properties::extents_written(disk)),
            ("cow_fork_empty", properties::cow_fork_empty(disk)),
            ("map_pinned", properties::map_pinned(disk)),
            ("lease_held", properties::lease_held(disk)),
            (
                "memory_locked",
                properties::memory_locked().unwrap_or_else(|error| Property::unknown(&error)),
            ),
            ("no_major_faults", self.no_major_faults()),
            ("no_allocations", self.no_allocations()),
            (
                "io_flusher",
                properties::io_flusher().unwrap_or_else(|error| Property::unknown(&error)),
            ),
            ("oom_protected", properties::oom_protected()),
            ("no_discard", properties::no_discard(disk)),
        ]
    }

    /// The mode and its properties, for operators.
    pub(crate) fn describe(&self, disk: &Disk) -> SwapInfo {
        let properties = Properties::new(self.properties(disk));
        SwapInfo {
            mode: self.grade.into(),
            holds: properties.all_held(),
            worker_allocations: allocations::counts().by_workers,
            properties,
        }
    }

    /// Looks at each property, at data by both ways, and at the counters for a
    /// second.
    pub(crate) fn selftest(&self, disk: &Disk) -> Selftest {
        let before = Counters::now();
        let mut properties = self.properties(disk);
        properties.push(("paths_agree", properties::paths_agree(disk)));
        properties.push(("map_true", properties::map_true(disk)));
        std::thread::sleep(WATCH);
        properties.push(("counters_flat", properties::counters_flat(before)));
        let properties = Properties::new(properties);
        Selftest {
            holds: properties.all_held(),
            properties,
        }
    }

    fn no_major_faults(&self) -> Property {
        match major_faults() {
            Ok(now) => {
                let since = now - self.baseline.major_faults;
                Property::new(
                    since == 0,
                    format!(
                        "{since} since the start, guest memory that the host has swapped out included"
                    ),
                )
            }
            Err(error) => Property::unknown(&error),
        }
    }

    fn no_allocations(&self) -> Property {
        let since = allocations::counts().in_requests - self.baseline.allocations.in_requests;
        Property::new(since == 0, format!("{since} in requests since the start"))
    }
}
