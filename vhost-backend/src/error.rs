//! What can go wrong: for the process that runs a server, and inside a
//! session.

use std::io;

use crate::memory::MemoryError;
use crate::memory::backing::SharedError;
use crate::memory::inflight::InflightError;
use crate::sys;

/// Why a server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is outside its limits; the text names it.
    #[error("{0}")]
    Options(&'static str),
    /// The host refuses something the server cannot work without.
    #[error("cannot {what}: {}", of_host(source))]
    Os {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// A worker thread could not start, or its I/O could not be opened.
    #[error("cannot start worker {worker}: {}", of_thread(source))]
    Worker {
        /// Which one, from 0.
        worker: usize,
        /// What the host says.
        source: io::Error,
    },
}

/// What the host says, or which limit that means.
pub(crate) fn of_host(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => OPEN_FILES.to_owned(),
        Some(libc::ENFILE) => {
            "the host's limit on open files is reached (sysctl fs.file-max)".to_owned()
        }
        Some(libc::ENOMEM) => MEMORY.to_owned(),
        _ => error.to_string(),
    }
}

/// The same of the start of a thread, which fails so for a task or its stack.
fn of_thread(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAGAIN) if sys::memory_is_limited() => format!(
            "the limit on tasks is reached, or {MEMORY}; for tasks: TasksMax=, pids.max, ulimit -u"
        ),
        Some(libc::EAGAIN) => {
            "the limit on tasks is reached: raise it (TasksMax=, pids.max, ulimit -u)".to_owned()
        }
        _ => of_host(error),
    }
}

/// For whoever has no memory.
const MEMORY: &str =
    "there is no memory left: raise the limit on it (LimitDATA=, LimitAS=, ulimit -d, ulimit -v)";

/// For whoever has run into it.
pub(crate) const OPEN_FILES: &str =
    "the limit on open files is reached: raise it (LimitNOFILE=, ulimit -n)";

impl Error {
    /// Names what was tried, for `map_err`.
    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what, source }
    }
}

/// Why a state is not taken, or not given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("it goes through a pipe only")]
    NotAPipe,
    #[error("there is no room for the state in the pipe")]
    Full,
    #[error("the state did not come within 10 s, or not whole")]
    Late,
    #[error("this is no state of this program's disks")]
    Foreign,
    #[error("the state is of a disk of {0} sectors, and this one has {1}")]
    Capacity(u64, u64),
    #[error("the state is of a disk with another serial: give the same --serial")]
    Serial,
    #[error("the state has {0} rings, and this disk {1}")]
    Rings(usize, usize),
    #[error("rings are running")]
    Running,
    #[error(
        "requests are held, and would be lost with the record that they are left in: make room, or have errors reported (extentctl on-error)"
    )]
    Held,
    #[error("no state was asked for, or it was refused before")]
    Nothing,
    #[error("{0}")]
    Host(#[from] io::Error),
}

/// Why one message of the front-end is refused. The connection lives on
/// (VU-6).
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no queue {0}: give a larger --num-queues, or the front-end fewer queues")]
    NoSuchQueue(u32),
    #[error(
        "{0} is not a ring size this device accepts: sizes are powers of two up to {1}; give a larger --queue-size, or leave it out"
    )]
    RingSize(u32, u16),
    #[error(
        "queue {1} would be a ring of {0} entries, and all rings together would have more than 262144: give the front-end smaller rings or fewer queues, or --queue-size"
    )]
    Entries(u16, u32),
    #[error("{0} is not a ring index")]
    RingIndex(u32),
    #[error("a ring does not lie in guest memory, aligned")]
    RingOutside,
    #[error("a ring or its record of requests in flight cannot be used as it is")]
    RingUnusable,
    #[error("a running ring lies in this memory")]
    RingInside,
    #[error("a ring cannot change its size while it runs")]
    RingRuns,
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("protocol features {0:#x} were not offered")]
    ProtocolFeatures(u64),
    #[error("not in the writable part of the configuration")]
    ConfigReadOnly,
    #[error("not a value the configuration can hold")]
    ConfigValue,
    #[error("request {0} is unknown, malformed or was not negotiated")]
    Request(u32),
    #[error("{0} is not an event file descriptor")]
    NotAnEvent(&'static str),
    #[error("memory {0}")]
    Backing(SharedError),
    #[error("a descriptor that came with it is of a kind that is not taken here")]
    Descriptor,
    #[error("no descriptor came with it")]
    NoFile,
    #[error("the log of dirty pages {0}")]
    Log(SharedError),
    #[error("the state of the disk: {0}")]
    State(#[from] StateError),
    #[error("{0}")]
    Inflight(#[from] InflightError),
    #[error("{}", of_host(.0))]
    Host(io::Error),
    #[error("{0}")]
    Memory(#[from] MemoryError),
}
