//! What the process was told to do, checked.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vhost_backend::PollTime;

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
    /// Open for reading only, and offer RO.
    pub read_only: bool,
    /// Queues offered, 1 to `MAX_QUEUES`.
    pub queues: u16,
    /// Largest ring in entries: a power of two, `MIN_QUEUE_SIZE` to
    /// `MAX_QUEUE_SIZE`.
    pub queue_size: u16,
    /// Worker threads, 1 to `queues`.
    pub threads: usize,
    /// CPUs for the workers in turn; empty: not pinned.
    pub cpus: Vec<usize>,
    /// How requests reach the image.
    pub io_path: IoPath,
    /// Bytes of memory that the map of the image's extents may take.
    pub map_budget: u64,
    /// Use guest memory as registered buffers.
    pub pin_guest_memory: bool,
    /// How long a worker looks for work before it sleeps.
    pub poll: PollTime,
    /// Bytes of memory for pinned parts of the map, besides.
    pub pin_reserve: u64,
    /// Swap-grade mode, and how strictly.
    pub swap: Option<Swap>,
    /// The answer to GET_ID, padded with NUL.
    pub serial: [u8; 20],
    /// `blk_size` in bytes; `None`: the medium's.
    pub logical_block_size: Option<u32>,
    /// Keep other users of the image away.
    pub lock: bool,
    /// Where `extentctl` connects to.
    pub control_path: Option<PathBuf>,
    /// Where metrics are told over HTTP.
    pub metrics_listen: Option<SocketAddr>,
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

/// How requests reach the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoPath {
    /// The fastest way that is safe.
    Auto,
    /// Straight to the block device, or not at all.
    Disk,
    /// Direct I/O on the file.
    File,
}

/// Swap-grade mode: the disk is fit to swap on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The process does not start unless every property holds.
    Demanded,
    /// It goes on, and shows what does not hold.
    BestEffort,
}

impl Swap {
    /// As it is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Demanded => "demanded",
            Self::BestEffort => "best-effort",
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
    /// The file system would be in the way.
    #[error(
        "--swap and --io-path file exclude each other: leave --io-path out, or give --swap=best-effort"
    )]
    SwapByFile,
}
