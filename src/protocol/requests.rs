//! What may be asked of a disk.

use std::fmt;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::events::EventKind;
use super::limits::{self, LimitNumbers};
use crate::options::byte_range::ByteRange;
use crate::options::config::{IoPath, LogLevel, OnError};
use crate::options::limit;

/// What may be asked of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    tag = "method",
    content = "params",
    rename_all = "kebab-case",
    deny_unknown_fields
)]
#[non_exhaustive]
pub enum Request {
    /// What is served, how, and to whom.
    Info {},
    /// Whether the disk is swap-grade, watched for a second.
    Selftest {},
    /// Change the size of the disk; the guest is told.
    Resize {
        /// The new size in bytes.
        bytes: u64,
    },
    /// The counters since the start, and the state now.
    Stats {},
    /// Say what the map should have in memory.
    Advise {
        /// What is said.
        advice: Advice,
        /// About what.
        range: ByteRange,
    },
    /// The extents of the image.
    Map {
        /// Of this range.
        range: ByteRange,
        /// Most extents in the answer, 1 to 4096.
        most: u32,
    },
    /// Which windows of the map are looked up by requests, watched for a while.
    Heat {
        /// Of this range.
        range: ByteRange,
        /// How long, in milliseconds, at most 10000; 0: since it was watched
        /// before, or since the windows were loaded.
        during_ms: u32,
    },
    /// How much is logged, after it was changed if another level is given.
    LogLevel {
        /// From now on this is, until it ends; null or left out: as it is.
        #[serde(default)]
        level: Option<LogLevel>,
    },
    /// Choose how requests may reach the image.
    IoPath {
        /// The way.
        path: IoPath,
    },
    /// Choose what becomes of requests that the host fails, if there is
    /// something to choose; what is in force.
    OnError {
        /// Where the image's file system has no room; null: as it is.
        #[serde(default)]
        enospc: Option<OnError>,
        /// Where the disk under the image fails; null: as it is.
        #[serde(default)]
        io_error: Option<OnError>,
    },
    /// Have all requests that are held tried again now.
    Retry {},
    /// Hold the disk still: nothing is fetched, and the answer comes when
    /// nothing is in flight. It goes on when it is told to, or by itself.
    Quiesce {
        /// When it goes on by itself, from now.
        #[serde(default = "hold_ms")]
        hold_ms: u64,
        /// How long requests in flight may take to end; then it is refused,
        /// and the disk goes on.
        #[serde(default = "within_ms")]
        within_ms: u64,
        /// Make what was written stable as well.
        #[serde(default)]
        sync: bool,
    },
    /// Let a disk go on that is held still.
    Resume {
        /// Only if this hold is the one that holds it, by the number that
        /// `quiesce` has answered; null: whichever does.
        #[serde(default)]
        hold: Option<u64>,
    },
    /// Keep the image as it is now: a file of that name in the folder of
    /// --snapshot-dir, which shares its blocks with the image.
    Snapshot {
        /// Its name there.
        name: String,
        /// How long requests in flight may take to end; then it is refused.
        #[serde(default = "within_ms")]
        within_ms: u64,
    },
    /// Give up the snapshot that is being made.
    SnapshotCancel {},
    /// What is in the folder of --snapshot-dir.
    Snapshots {},
    /// Give the image blocks of its own for those that it shares with other
    /// files, while it is served. Answered when that has begun.
    Unshare {
        /// Most bytes that are copied a second, at least 1; null: as many as
        /// leave as much time to the guest.
        #[serde(default)]
        rate: Option<u64>,
    },
    /// End that; what is done stays done.
    UnshareCancel {},
    /// The options that are in force, as on a command line.
    Options {},
    /// Change limits on requests and bytes per second, if there is something
    /// to change; those in force.
    Limits {
        /// The new ones.
        #[serde(default, deserialize_with = "limits::known")]
        set: LimitNumbers,
    },
}

/// How long a disk is held where nothing else is said.
pub const HOLD_MS: u64 = 10_000;
/// How long is waited for requests in flight where nothing else is said.
pub const WITHIN_MS: u64 = 5_000;

fn hold_ms() -> u64 {
    HOLD_MS
}

fn within_ms() -> u64 {
    WITHIN_MS
}

/// What may be asked of the connection itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    tag = "method",
    content = "params",
    rename_all = "kebab-case",
    deny_unknown_fields
)]
#[non_exhaustive]
pub enum OfConnection {
    /// This description of all methods.
    #[serde(rename = "rpc.discover")]
    Discover {},
    /// Tell events from now on, between the answers: notifications named
    /// `event`.
    Subscribe {
        /// Which kinds; null or left out: all. An empty list ends it.
        #[serde(default)]
        kinds: Option<Vec<EventKind>>,
    },
}

impl Request {
    /// Whether it is answered from memory, whatever the image's file system
    /// does.
    pub(crate) fn is_brief(&self) -> bool {
        matches!(
            self,
            Request::Info {}
                | Request::Stats {}
                | Request::Limits { .. }
                | Request::OnError { .. }
                | Request::Retry {}
                | Request::Options {}
                | Request::LogLevel { .. }
                | Request::Resume { .. }
                | Request::SnapshotCancel {}
                | Request::UnshareCancel {}
        )
    }

    /// What it changes, as the log tells it; `None` if nothing.
    pub(crate) fn change(&self) -> Option<String> {
        match self {
            Request::Info {}
            | Request::Selftest {}
            | Request::Stats {}
            | Request::Options {}
            | Request::Snapshots {}
            | Request::Heat { .. }
            | Request::LogLevel { level: None }
            | Request::Map { .. } => None,
            Request::LogLevel { level: Some(level) } => Some(format!("log-level {level}")),
            Request::Resize { bytes } => Some(format!("resize to {bytes} bytes")),
            Request::Advise { advice, range } => {
                let end = range.end.map_or_else(String::new, |end| end.to_string());
                Some(format!("advise {advice} {}..{end}", range.start))
            }
            Request::IoPath { path } => {
                let path = path.to_possible_value();
                let name = path.as_ref().map_or("", |path| path.get_name());
                Some(format!("io-path {name}"))
            }
            Request::OnError { enospc, io_error } => {
                let one = |name: &str, what: &Option<OnError>| {
                    what.map(|what| format!(" {name}={}", what.as_str()))
                };
                let all = [one("enospc", enospc), one("io-error", io_error)];
                let text: String = all.into_iter().flatten().collect();
                (!text.is_empty()).then(|| format!("on-error{text}"))
            }
            Request::Retry {} => Some("retry".to_owned()),
            Request::Quiesce { hold_ms, .. } => Some(format!("quiesce for {hold_ms} ms")),
            Request::Resume { hold } => {
                let which = hold.map_or_else(String::new, |hold| format!(" hold {hold}"));
                Some(format!("resume{which}"))
            }
            Request::Snapshot { name, .. } => Some(format!("snapshot {name:?}")),
            Request::SnapshotCancel {} => Some("snapshot-cancel".to_owned()),
            Request::Unshare { rate } => {
                let most = rate.map_or_else(String::new, |rate| format!(" with {rate} bytes/s"));
                Some(format!("unshare{most}"))
            }
            Request::UnshareCancel {} => Some("unshare-cancel".to_owned()),
            Request::Limits { set } => {
                let set = set.given();
                (!set.is_empty()).then(|| format!("limits {}", limit::display(&set)))
            }
        }
    }
}

/// What may be said about a range.
// After the "badvise()" of the 2008 thread; the lines of the values are help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// Load it soon, as far as the budget reaches
    Willneed,
    /// Load it now, as far as the budget reaches
    Populate,
    /// Drop what is loaded and not pinned
    Dontneed,
    /// Load it now and keep it, out of --pin-reserve
    Pin,
    /// Let it be evicted again
    Unpin,
    /// It will be used in order: load far ahead
    Sequential,
    /// It will be used without order: never load ahead
    Random,
    /// Nothing is known of its use any more
    Normal,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Advice::Willneed => "willneed",
            Advice::Populate => "populate",
            Advice::Dontneed => "dontneed",
            Advice::Pin => "pin",
            Advice::Unpin => "unpin",
            Advice::Sequential => "sequential",
            Advice::Random => "random",
            Advice::Normal => "normal",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_written_as_it_is_typed_and_sent() {
        for advice in Advice::value_variants() {
            let name = advice.to_string();
            assert_eq!(Advice::from_str(&name, false).as_ref(), Ok(advice));
            assert_eq!(serde_json::to_value(advice).unwrap(), name);
        }
    }
}
