//! Several disks at one moment: all are held still, or none.

use std::path::PathBuf;

use extentd::protocol::Request;
use extentd::protocol::done::Quiesced;
use serde_json::Value;

use crate::ask::{LONG_PATIENCE, PATIENCE, ask, understand};
use crate::disks::at_once;
use crate::status::Failure;

/// They go on by themselves after so many milliseconds.
const HOLD_MS: u64 = 60_000;

/// A disk, and the number of its hold.
pub type Held = (PathBuf, u64);

/// The number in an answer to `quiesce`.
///
/// # Errors
/// There is none.
pub fn number(answer: &Value) -> Result<u64, Failure> {
    understand::<Quiesced>(answer).map(|held| held.hold)
}

/// Lets disks go on that are still held so; what each says.
pub fn release(held: &[Held]) -> Vec<Result<Value, Failure>> {
    at_once(held, |(path, hold)| {
        ask(path, &Request::Resume { hold: Some(*hold) }, PATIENCE)
    })
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
        match result.and_then(|answer| number(&answer)) {
            // Who could not be held is not told to go on: somebody else may hold it.
            Ok(hold) => held.push((path.clone(), hold)),
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
