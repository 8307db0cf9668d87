//! Several disks at one moment: all are held still, or none.

use std::path::PathBuf;

use extentd::protocol::Request;
use serde_json::Value;

use crate::ask::{LONG_PATIENCE, PATIENCE, ask};
use crate::disks::at_once;
use crate::status::Failure;

/// They go on by themselves after so many milliseconds.
const HOLD_MS: u64 = 60_000;

/// Lets disks go on; what each says.
pub fn release(paths: &[PathBuf]) -> Vec<Result<Value, Failure>> {
    at_once(paths, |path| ask(path, &Request::Resume {}, PATIENCE))
}

/// Holds all disks still while `act` is carried out; what that returns, and a
/// failure if one of them went on before it was done.
///
/// # Errors
/// Not all can be held: then nothing is done.
pub fn at_one_moment<T>(
    paths: &[PathBuf],
    within_ms: u64,
    act: impl FnOnce() -> T,
) -> Result<(T, Option<Failure>), Failure> {
    let quiesce = Request::Quiesce {
        hold_ms: HOLD_MS,
        within_ms,
        sync: false,
    };
    let (mut held, mut failed) = (Vec::new(), None);
    let asked = at_once(paths, |path| ask(path, &quiesce, LONG_PATIENCE));
    for (path, result) in paths.iter().zip(asked) {
        match result {
            // Who could not be held is not told to go on: somebody else may hold it.
            Ok(_) => held.push(path.clone()),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    let done = failed.map_or_else(|| Ok(act()), Err);
    let resumed = release(&held);
    let early = resumed.into_iter().find_map(Result::err).map(|failure| {
        let line = format!(
            "they are not of one moment: a disk went on before: {}",
            failure.line
        );
        Failure { line, ..failure }
    });
    Ok((done?, early))
}
