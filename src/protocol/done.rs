//! Answers to what changes something.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::requests::Advice;
use super::words::{Named, Way};
use crate::options::config::OnError;

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
    /// Windows of the map that are in memory now.
    pub resident_windows: u64,
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
