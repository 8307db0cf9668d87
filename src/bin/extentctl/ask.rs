//! Asks an extentd, and says what to look at where nobody answers.

use std::io;
use std::path::Path;
use std::time::Duration;

use extentd::protocol::client::Client;
use extentd::protocol::events::EventKind;
use extentd::protocol::{Answer, Request};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::status::{Failure, Status};

/// A resize of a block device may have to wait for its disk.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Pinning reads the extents of the whole range before it answers.
pub const LONG_PATIENCE: Duration = Duration::from_secs(3600);

/// The answer to a request.
///
/// # Errors
/// It is refused, or nobody answers.
pub fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Value, Failure> {
    let answer = Client::connect(path, patience).and_then(|mut client| client.call(request));
    understood(path, answer)
}

/// A connection on which events are told.
///
/// # Errors
/// As [`ask`].
pub fn subscribe(path: &Path, kinds: Option<Vec<EventKind>>) -> Result<Client, Failure> {
    let failed = |error| nobody(path, &error);
    let mut client = Client::connect(path, PATIENCE).map_err(failed)?;
    let answer = client.subscribe(kinds);
    understood(path, answer)?;
    Ok(client)
}

/// An answer as the struct that it is.
///
/// # Errors
/// It is none.
pub fn understand<T: DeserializeOwned>(answer: &Value) -> Result<T, Failure> {
    let understood = T::deserialize(answer);
    understood.map_err(|error| format!("the answer is not understood: {error}").into())
}

fn understood(path: &Path, answer: io::Result<Answer>) -> Result<Value, Failure> {
    match answer {
        Ok(Answer::Result(result)) => Ok(result),
        Ok(Answer::Error(failure)) => Err(failure.message.into()),
        Err(error) => Err(nobody(path, &error)),
    }
}

/// There is no answer.
pub fn nobody(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ": is extentd running with this --control-path?"
        }
        io::ErrorKind::PermissionDenied => ": be the user that runs extentd",
        io::ErrorKind::InvalidInput => {
            ": a socket's path has less than 108 bytes: give a shorter one"
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ": this must be the --control-path of an extentd, not its --socket-path"
        }
        // Whoever else listens there may also close in good order, and so does an extentd
        // that ends.
        io::ErrorKind::UnexpectedEof => {
            ": try again; this must be the --control-path of an extentd, not its --socket-path"
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ": extentd does not answer: see whether it is stopped or its file system hangs"
        }
        _ => "",
    };
    let line = format!("--control-path {}: {error}{hint}", path.display());
    Failure::new(Status::Silent, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_one_clear_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let error = ask(&path, &Request::Info {}, PATIENCE).unwrap_err();
        assert!(
            error.line.starts_with("--control-path /")
                && error
                    .line
                    .ends_with("is extentd running with this --control-path?"),
            "{error:?}"
        );
        assert_eq!(
            (error.status, error.line.lines().count()),
            (Status::Silent, 1)
        );
    }
}
