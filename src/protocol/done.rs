//! Answers to what changes something.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::requests::Advice;
use super::words::{Named, Way};
use crate::options::config::{LogLevel, OnError};

/// The disk has another size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Resized {
    /// The capacity that the guest sees, in bytes.
    pub size_bytes: u64,
}

/// Advice was followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Advised {
    /// As it was given.
    pub advice: Advice,
    /// The first byte of the range.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
    /// What was done, for people.
    pub done: String,
    /// Requests look up the map that it was for; where they go by the file it
    /// is another one, which is shown only.
    pub in_use: bool,
    /// How often the file system was asked for extents meanwhile.
    pub fiemap_calls: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Windows of the map that are in memory now.
    pub resident_windows: u64,
    /// Entries of it that have a place or a reason; holes are what lies between them.
    pub resident_extents: u64,
    /// Bytes of memory of their extents.
    pub resident_bytes: u64,
    /// Those of them that are pinned.
    pub pinned_bytes: u64,
}

/// The way of requests, after another was chosen or the same again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct PathNow {
    /// Where requests go now.
    pub path: Named<Way>,
    /// Why: one sentence.
    pub path_reason: String,
}

/// What becomes of requests that the host fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct OnErrorNow {
    /// Where the image's file system has no room.
    pub on_enospc: OnError,
    /// Where the disk under the image fails.
    pub on_io_error: OnError,
    /// Requests that are held now.
    pub held_requests: u64,
}

impl OnErrorNow {
    pub(crate) fn new((on_enospc, on_io_error): (OnError, OnError), held_requests: u64) -> Self {
        Self {
            on_enospc,
            on_io_error,
            held_requests,
        }
    }
}

/// Requests that are held are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Retried {
    /// So many.
    pub requests: u64,
}

impl Retried {
    pub(crate) fn new(requests: u64) -> Self {
        Self { requests }
    }
}

/// An image was prepared to be swapped on. Nobody is asked for this one:
/// `extentctl prepare --json` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ImagePrepared {
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// Bytes that had to be written or unshared for it.
    pub changed_bytes: u64,
    /// Extents it has now.
    pub extents: u64,
}

/// The answer to `log-level`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct LogLevelNow {
    /// Records of this level and graver ones are shown; `None`: what
    /// `RUST_LOG` says decides.
    pub level: Option<LogLevel>,
}

/// The answer to `options`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct OptionsNow {
    /// Values by the names of options, without dashes; what has no value and
    /// is given is `true`.
    pub options: BTreeMap<String, String>,
}

/// The answer to `quiesce`: nothing is in flight, and nothing is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Quiesced {
    /// The number of this hold, for `resume`.
    #[serde(default)]
    pub hold: u64,
    /// How long requests in flight took to end.
    pub drained_ms: u64,
    /// When the disk goes on by itself, from now.
    pub left_ms: u64,
    /// What was written is stable.
    pub synced: bool,
}

/// The answer to `resume`: the disk goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Resumed {}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its name in the folder; what of it is not UTF-8 is replaced.
    pub name: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// When it was taken, in milliseconds since 1970.
    pub taken_ms: u64,
}

/// A snapshot was taken, and survives a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct SnapshotTaken {
    /// What is there now.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// How long requests in flight took to end, in microseconds.
    pub drained_us: u64,
    /// How long all requests waited in all, in microseconds.
    pub paused_us: u64,
    /// How long it took until it was whole and stable, in microseconds.
    pub took_us: u64,
    /// Requests that waited afterwards, each for what it was to change to be
    /// cloned.
    pub waited_requests: u64,
    /// The longest that one of them did, in microseconds.
    pub longest_wait_us: u64,
    /// Pieces of the image that were cloned because a request waited.
    pub demanded_clones: u64,
    /// Those that were cloned before one did.
    pub other_clones: u64,
}

/// A snapshot that is being made: its moment is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct SnapshotInMaking {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Bytes of that which are cloned.
    pub cloned_bytes: u64,
    /// Requests that have waited for what they were to change to be cloned.
    pub waited_requests: u64,
    /// For how long it has been made, in milliseconds.
    pub since_ms: u64,
}

/// The answer to `snapshot-cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct SnapshotCancelled {
    /// Of the one that there will not be.
    pub name: String,
}

/// The answer to `snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct SnapshotList {
    /// By name.
    pub snapshots: Vec<Snapshot>,
    /// The one that is being made, if there is one.
    pub making: Option<SnapshotInMaking>,
}

/// How blocks that the image shares become its own: under way, or as it has
/// ended last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Unsharing {
    /// It goes on.
    pub running: bool,
    /// Bytes that were shared when it began.
    pub shared_bytes: u64,
    /// Bytes that were copied since, and are the image's own.
    pub unshared_bytes: u64,
    /// Bytes that were shared still when it had ended; null before.
    pub left_bytes: Option<u64>,
    /// Most bytes a second; null: as many as leave as much time to the guest.
    pub rate: Option<u64>,
    /// What it waits for; null if for nothing.
    pub waits: Option<String>,
    /// The longest that a piece has kept requests waiting, in microseconds.
    pub longest_piece_us: u64,
    /// For how long it goes on, or went on, in milliseconds.
    pub since_ms: u64,
    /// Why it has ended early; null if it has not.
    pub error: Option<String>,
}

/// The answer to `unshare-cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct UnshareCancelled {
    /// Bytes that are the image's own by it, and stay so.
    pub unshared_bytes: u64,
}
