//! How a command ended, as its exit status tells.

use std::process::ExitCode;

/// Why a command failed. The larger number is told where several disks fail
/// in several ways; 2 is a wrong command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// extentd refuses, or something else went wrong.
    Failed = 1,
    /// Nobody answers there.
    Silent = 3,
    /// The extentd that was watched has gone.
    Gone = 4,
    /// A signal has ended it: as of a shell for SIGINT.
    Interrupted = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(match status {
            Status::Failed => 1,
            Status::Silent => 3,
            Status::Gone => 4,
            Status::Interrupted => 130,
        })
    }
}

/// What is said of a failure: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: Status,
    pub line: String,
}

impl Failure {
    pub fn new(status: Status, line: impl Into<String>) -> Self {
        Self {
            status,
            line: line.into(),
        }
    }
}

impl From<String> for Failure {
    fn from(line: String) -> Self {
        Self::new(Status::Failed, line)
    }
}
