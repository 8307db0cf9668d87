//! Several disks at one moment: all are held still, something is done, and all go
//! on.

use std::path::PathBuf;
use std::thread;

use extentd::protocol::Request;

use crate::ask::{LONG_PATIENCE, PATIENCE, ask};
use crate::status::Failure;

/// They go on by themselves after so many milliseconds.
const HOLD_MS: u64 = 60_000;

/// Holds all disks still while `act` is carried out.
///
/// # Errors
/// Not all can be held: then nothing is done. Or `act` failed, or one of them
/// went on before it was done.
pub fn at_one_moment(
    paths: &[PathBuf],
    within_ms: u64,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let quiesce = Request::Quiesce {
        hold_ms: HOLD_MS,
        within_ms,
        sync: false,
    };
    let each = |request: &Request, patience| -> Vec<Result<(), Failure>> {
        thread::scope(|scope| {
            let asked: Vec<_> = paths
                .iter()
                .map(|path| scope.spawn(move || ask(path, request, patience).map(drop)))
                .collect();
            let joined = asked.into_iter().map(|one| match one.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        })
    };
    let held = each(&quiesce, LONG_PATIENCE);
    let done = match held.iter().find_map(|one| one.as_ref().err()) {
        None => act(),
        Some(failure) => Err(failure.clone()),
    };
    // Who could not be held is not told to go on: somebody else may hold it.
    let resumed = paths.iter().zip(&held).filter(|(_, held)| held.is_ok());
    let resumed: Vec<_> = resumed
        .map(|(path, _)| ask(path, &Request::Resume {}, PATIENCE))
        .collect();
    done?;
    match resumed.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(failure) => {
            let line = format!(
                "they are not of one moment: a disk went on before: {}",
                failure.line
            );
            Err(Failure { line, ..failure })
        }
    }
}
