//! The answer to `map`: the extents of an image as its file system tells them,
//! with what the map has in memory.

use mapping::KindName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::Named;

/// Most extents of one answer.
pub const MOST: u32 = 4096;

/// One piece of the image, as long as its kind and its place go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Piece {
    /// The first byte, from the start of the image.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where it lies on the device, in bytes; `None` where it has no place.
    pub disk: Option<u64>,
    /// What it is.
    pub kind: Named<KindName>,
    /// Why it is opaque; `None` for other kinds.
    pub reason: Option<String>,
    /// Bytes of it that lie in windows which the map has in memory.
    pub resident: u64,
}

/// The answer to `heat`: which windows of the map were looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Heat {
    /// The capacity that the guest sees, in bytes.
    pub size_bytes: u64,
    /// The size of a window, in bytes.
    pub window_bytes: u64,
    /// Those that were looked up, neighbours joined: start and end in bytes.
    pub used: Vec<(u64, u64)>,
    /// Where to go on, in bytes: what lies from here on is not told.
    pub next: Option<u64>,
}

/// A part of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Page {
    /// The capacity that the guest sees, in bytes.
    pub size_bytes: u64,
    /// In order, without gaps.
    pub extents: Vec<Piece>,
    /// What the map has in memory of this part: start and end in bytes.
    pub resident: Vec<(u64, u64)>,
    /// What is pinned of it, in memory or to be loaded again: start and end in bytes.
    #[serde(default)]
    pub pinned: Vec<(u64, u64)>,
    /// Where to go on, in bytes: what lies from here on is not told.
    pub next: Option<u64>,
}
