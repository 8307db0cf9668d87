//! Whether file systems answer that are needed for a start. One of FUSE or NFS
//! whose server is gone keeps whoever asks it waiting for ever.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::fs::statfs;

use crate::host::hardening::SMALL_STACK;

/// When it is said what is waited for.
const TELL: Duration = Duration::from_secs(3);
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A file system that does not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "{option} {path}: its file system has not answered for {seconds} s: see whether its server (FUSE, NFS) is alive, or give another path",
    path = path.display(),
    seconds = LIMIT.as_secs()
)]
pub struct NoAnswer {
    /// With its dashes.
    pub option: &'static str,
    /// As given.
    pub path: PathBuf,
}

/// Asks the file systems of these paths, one after the other. What is wrong
/// with a path that is answered for is said by whoever uses it.
///
/// # Errors
/// One does not answer in time; a thread of ours still waits for it.
pub(crate) fn all(places: Vec<(&'static str, PathBuf)>) -> Result<(), NoAnswer> {
    let asked = places.clone();
    let (sender, answers) = mpsc::channel();
    let ask = move || {
        for (_, path) in asked {
            knock(&path);
            if sender.send(()).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new()
        .name("reach".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(ask);
    let Ok(thread) = thread else {
        // Others will say that there is no thread to be had.
        return Ok(());
    };
    for (option, path) in places {
        let mut answer = answers.recv_timeout(TELL);
        if let Err(RecvTimeoutError::Timeout) = answer {
            log::warn!("{option} {}: waiting for its file system", path.display());
            answer = answers.recv_timeout(LIMIT - TELL);
        }
        if let Err(RecvTimeoutError::Timeout) = answer {
            return Err(NoAnswer { option, path });
        }
    }
    // It has nothing to do any more.
    let _ = thread.join();
    Ok(())
}

/// Has the file system of a path say something, that of its folder where there
/// is no such path yet. What it says does not matter.
fn knock(path: &Path) {
    if statfs(path).is_err() {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let _ = statfs(folder.unwrap_or(Path::new(".")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_answers_as_well() {
        let places = ["/", "/nowhere/at/all", "name", "", "/dev/null"];
        let places = places.map(|path| ("--blk-file", PathBuf::from(path)));
        assert!(all(places.to_vec()).is_ok());
    }
}
