//! What the process gives up once it has started: system calls that a kind of
//! thread does not need (seccomp), files that it does not open (landlock),
//! and capabilities. Each thread enters by itself, as its first act or when it
//! has what it needs; those that it starts are in what it is in.
//!
//! Whatever the kernel does not have is gone without, with one line; nothing
//! of it is needed to serve a disk.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::set_no_new_privs;

#[cfg(feature = "test-switches")]
use crate::host::switches;

mod capabilities;
mod denied;
mod files;
mod filters;
mod kind;
mod lists;
#[cfg(feature = "test-switches")]
mod tries;

pub(crate) use self::capabilities::Needs;
use self::files::Files;
use self::filters::Filters;
pub(crate) use self::kind::Kind;

/// What is to be left, decided before there is a second thread.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The image, by a path that leads to it.
    pub image: PathBuf,
    /// A folder in which operators have files made.
    pub folder: Option<PathBuf>,
    /// What the threads' capabilities are for.
    pub needs: Needs,
    /// The process was handed over by one that has given up what no start
    /// needs.
    pub begun: bool,
}

/// What is in force, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InForce {
    /// System calls are filtered.
    pub seccomp: bool,
    /// Version of landlock's interface, 0 without.
    pub landlock: u32,
    /// Capabilities are dropped.
    pub capabilities: bool,
    /// Calls that were denied so far.
    pub denied: u64,
}

struct Sandbox {
    filters: Option<Filters>,
    files: Option<Files>,
    needs: Needs,
    capabilities: AtomicBool,
}

static SANDBOX: OnceLock<Sandbox> = OnceLock::new();

/// Gives up what no start needs, and makes ready what threads
/// [`enter`]. To be called before there is a second thread.
pub(crate) fn begin(plan: &Plan) {
    if let Err(error) = set_no_new_privs(true) {
        log::warn!("sandbox: new privileges cannot be renounced: {error}");
    }
    let filters = Filters::compile(plan.folder.is_some())
        .and_then(|filters| {
            denied::watch().map_err(filters::Unfit::from)?;
            if !plan.begun {
                filters.begin()?;
            }
            Ok(filters)
        })
        .map_err(|error| log::warn!("sandbox: system calls are not filtered: {error}"))
        .ok();
    let files = Files::prepare(&plan.image, plan.folder.as_deref())
        .map_err(|error| log::warn!("sandbox: files are not restricted (landlock): {error}"))
        .ok();
    capabilities::bound(&plan.needs);
    let sandbox = Sandbox {
        filters,
        files,
        needs: plan.needs,
        capabilities: AtomicBool::new(true),
    };
    if SANDBOX.set(sandbox).is_err() {
        log::warn!("sandbox: it was begun already");
    }
}

/// Leaves this thread what its kind needs; nothing changes without
/// [`begin`].
pub(crate) fn enter(kind: Kind) {
    let Some(sandbox) = SANDBOX.get() else {
        return;
    };
    if let Some(files) = &sandbox.files
        && let Err(error) = files.enter(kind)
    {
        log::warn!("sandbox: files are not restricted for {kind:?} (landlock): {error}");
    }
    if let Err(error) = capabilities::reduce(kind, &sandbox.needs) {
        // Once: it is the same for all.
        if sandbox.capabilities.swap(false, Ordering::Relaxed) {
            log::warn!(
                "sandbox: capabilities are kept: {error}: allow capset(2) (SystemCallFilter=capset in the unit)"
            );
        }
    }
    if let Some(filters) = &sandbox.filters
        && let Err(error) = filters.enter(kind)
    {
        log::warn!("sandbox: system calls are not filtered for {kind:?}: {error}");
    }
    #[cfg(feature = "test-switches")]
    if switches::tries() {
        tries::all(kind);
    }
}

/// What is in force; `None` without [`begin`].
pub(crate) fn in_force() -> Option<InForce> {
    let sandbox = SANDBOX.get()?;
    Some(InForce {
        seccomp: sandbox.filters.is_some(),
        landlock: sandbox.files.as_ref().map_or(0, Files::version),
        capabilities: sandbox.capabilities.load(Ordering::Relaxed),
        denied: denied::count(),
    })
}
