//! What the process was told to do, checked.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::ValueEnum;
pub use mapping::path::Swap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vhost_backend::LimitKey;

use crate::options::address::Address;

/// Most queues of a disk, and what is offered by default: front-ends ask for
/// one for each of their virtual CPUs.
pub(crate) const MAX_QUEUES: u16 = 256;
/// Smallest value of `--queue-size`, in entries.
pub(crate) const MIN_QUEUE_SIZE: u16 = 16;
/// Largest value of `--queue-size` in entries, and its default: QEMU allows
/// 1024, crosvm asks for this.
pub(crate) const MAX_QUEUE_SIZE: u16 = 32768;

/// Everything about one disk server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the front-end comes from.
    pub socket: Socket,
    /// The image: a regular file or a block device.
    pub image: PathBuf,
    /// How to open and offer it.
    pub disk: DiskOptions,
    /// What front-ends are offered, 1 to `MAX_QUEUES` queues of
    /// `MIN_QUEUE_SIZE` to `MAX_QUEUE_SIZE` entries, and who serves them.
    pub server: vhost_backend::Options,
    /// How much it may be asked.
    pub limits: LimitOptions,
    /// Where `extentctl` connects to.
    pub control_path: Option<PathBuf>,
    /// Where metrics are told over HTTP.
    pub metrics_listen: Option<Address>,
    /// Where snapshots go.
    pub snapshot_dir: Option<PathBuf>,
    /// What is not needed after the start is given up.
    pub sandbox: bool,
}

/// How to open and offer an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// Open for reading only, and offer RO.
    pub read_only: bool,
    /// `blk_size` in bytes; `None`: the medium's for a block device, else 512.
    pub logical_block_size: Option<u32>,
    /// The answer to GET_ID, padded with NUL.
    pub serial: [u8; 20],
    /// Keep other users of the image away.
    pub lock: bool,
    /// How requests may reach the image.
    pub io_path: IoPath,
    /// Bytes of extents that the map may hold.
    pub map_budget: u64,
    /// Use guest memory as registered buffers.
    pub pin_guest_memory: bool,
    /// Bytes of pinned extents that the map may hold besides.
    pub pin_reserve: u64,
    /// Swap-grade mode, and how strictly.
    pub swap: Option<Swap>,
    /// What becomes of requests for which there is no room.
    pub on_enospc: OnError,
    /// What becomes of requests that the disk fails.
    pub on_io_error: OnError,
    /// A device with queues that never interrupt is looked at for the ends of
    /// requests.
    pub may_poll: bool,
}

/// How much a disk may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitOptions {
    /// Those of `--limit`.
    pub values: Vec<(LimitKey, u64)>,
    /// The file of a group that has them together.
    pub group: Option<PathBuf>,
}

/// Where the front-end comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// Listen at this path.
    Path(PathBuf),
    /// Go on at this path with a socket that listens there already.
    Adopted(PathBuf, RawFd),
    /// `--fd`: a listening or connected socket.
    Inherited(RawFd),
    /// LISTEN_FDS: likewise, from a service manager.
    Activated(RawFd),
}

impl Config {
    /// The paths that are needed, with their options.
    pub(crate) fn paths(&self) -> Vec<(&'static str, PathBuf)> {
        let socket = match &self.socket {
            Socket::Path(path) | Socket::Adopted(path, _) => Some(path),
            Socket::Inherited(_) | Socket::Activated(_) => None,
        };
        let metrics = match &self.metrics_listen {
            Some(Address::Unix(path)) => Some(path),
            Some(Address::Tcp(_)) | None => None,
        };
        let all = [
            ("--socket-path", socket),
            ("--blk-file", Some(&self.image)),
            ("--control-path", self.control_path.as_ref()),
            ("--metrics-listen", metrics),
            ("--limit-group", self.limits.group.as_ref()),
            ("--snapshot-dir", self.snapshot_dir.as_ref()),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(option, path)| Some((option, path?.clone())))
            .collect()
    }
}

/// How requests reach the image.
// The lines of the values are help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IoPath {
    /// The fastest way that is safe
    Auto,
    /// Straight to the block device under the image
    Disk,
    /// Direct I/O on the image file
    File,
}

/// What becomes of a request that the host fails.
// The lines of the values are help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// It waits, and is tried again
    Hold,
    /// The guest is told
    Report,
}

impl OnError {
    /// As it is typed.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Report => "report",
        }
    }
}

/// How much is logged. The lines of the values are help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What went wrong
    Error,
    /// And what may
    Warn,
    /// And what happens
    Info,
    /// And what is of use when faults are looked for
    Debug,
    /// And each message
    Trace,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        })
    }
}

impl LogLevel {
    /// The level of a filter, if it lets anything through.
    pub(crate) fn of(filter: log::LevelFilter) -> Option<Self> {
        Self::value_variants()
            .iter()
            .copied()
            .find(|level| log::LevelFilter::from(*level) == filter)
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// What is wrong with a command line whose options are each right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No socket at all.
    #[error(
        "no socket: give --socket-path PATH or --fd N, or start it by systemd socket activation"
    )]
    NoSocket,
    /// More than one disk cannot be served.
    #[error(
        "LISTEN_FDS hands over {0} sockets, but one disk has one: give the unit a single ListenStream="
    )]
    SeveralSockets(usize),
    /// No image.
    #[error("no image: give --blk-file PATH")]
    NoImage,
    /// Front-ends and operators speak different languages.
    #[error("--control-path and --socket-path are both {0}: give extentctl a path of its own")]
    OnePath(PathBuf),
    /// Scrapers speak another one.
    #[error("--metrics-listen and {0} are both {path}: give metrics a path of their own", path = .1.display())]
    MetricsPath(&'static str, PathBuf),
    /// A queue is never split between threads.
    #[error(
        "--threads {threads} is more than the {queues} of --num-queues: a thread without a queue has nothing to do"
    )]
    IdleThreads {
        /// As given.
        threads: u16,
        /// As given.
        queues: u16,
    },
    /// Nobody swaps on a disk that cannot be written.
    #[error("--swap and --read-only exclude each other: a guest writes to what it swaps on")]
    SwapReadOnly,
    /// What is swapped on shares no blocks.
    #[error(
        "--swap and --snapshot-dir exclude each other: a snapshot shares its blocks with the image, and then writes need room: leave one of them out"
    )]
    SwapSnapshots,
    /// It would mean nothing.
    #[error("--limit {0}: there is no {1} that this is the burst of: give both")]
    BurstAlone(&'static str, &'static str),
    /// One of them would be forgotten.
    #[error("--limit: {0} is given twice")]
    LimitTwice(&'static str),
    /// The file system would be in the way.
    #[error(
        "--swap and --io-path file exclude each other: leave --io-path out, or give --swap=best-effort"
    )]
    SwapByFile,
}
