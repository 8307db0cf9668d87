//! Where requests go now, and how whoever decides that is doing.

use std::time::Duration;

/// The shortest break time of leases with which the path is used: a worker notices within a second that somebody asks
/// for the file, whatever the guard does, and what it has in flight has the rest to end.
pub const SHORTEST_BREAK: Duration = Duration::from_secs(5);

/// Where requests go, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Situation {
    /// The disk path is in use.
    pub on_disk: bool,
    /// One sentence, for operators.
    pub reason: String,
    /// How often the disk path was entered.
    pub entries: u64,
}

/// How the guard is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuardState {
    /// Milliseconds since it last looked at the lease; it does at least every second while
    /// the path is in use, and need not otherwise.
    pub turned_ms_ago: u64,
    /// The path is in use and it has not looked for 5 s. Workers look too.
    pub late: bool,
}
