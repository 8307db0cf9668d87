//! Gives an image that nobody uses blocks of its own, piece by piece.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mapping::{ExtentSource, Fiemap, Kind, sharing};

use super::error::BackupError;
use super::progress::Watch;
use crate::disk::at_rest::AtRest;
use crate::disk::unsharing::time_for;

/// Bytes that are copied at once: as long is waited for an answer to a wish to
/// stop.
const PIECE: u64 = 4 << 20;
/// How often a wish to stop is asked for while it is too early for the next
/// piece.
const NAP: Duration = Duration::from_millis(50);

/// What was done, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unshared {
    /// Of the image.
    pub size: u64,
    /// That have a place of their own now.
    pub unshared: u64,
}

/// Ends the sharing of the image at `path`, at most `rate` bytes a second. What
/// is done stays done, however this ends.
///
/// # Errors
/// The image is in use or no file, its file system cannot do that, or
/// somebody has asked to stop.
pub fn unshare(
    path: &Path,
    rate: Option<u64>,
    watch: &mut Watch<'_>,
) -> Result<Unshared, BackupError> {
    let image = AtRest::open_to_change(path)?;
    let size = image.size()?;
    let extents = Fiemap::new(Arc::clone(&image.file));
    let mut shared = Vec::new();
    let told = extents.fill(0..size, &mut |extent| {
        // What is not told exactly is tried as well.
        if matches!(extent.kind, Kind::Shared | Kind::Opaque(_)) {
            sharing::append(&mut shared, extent.range());
        }
        ControlFlow::Continue(())
    });
    told.map_err(|error| BackupError::Extents(path.to_owned(), error))?;
    let total = shared.iter().map(|range| range.end - range.start).sum();
    let begun = Instant::now();
    let mut done = 0_u64;
    // The last one first, as sharing::append says.
    for range in shared.into_iter().rev() {
        let mut end = range.end;
        while end > range.start {
            if wait(begun, time_for(done, rate), &mut || watch(done, total)).is_break() {
                return Err(BackupError::Stopped(
                    path.to_owned(),
                    "what was unshared stays so",
                ));
            }
            let at = ((end - 1) / PIECE * PIECE).max(range.start);
            unshare_piece(&image, &(at..end))?;
            done += end - at;
            end = at;
        }
    }
    let stable = image.file.sync_all();
    stable.map_err(BackupError::host(path, "make it stable"))?;
    Ok(Unshared {
        size,
        unshared: done,
    })
}

/// Until it is time, or somebody asks to stop.
fn wait(
    begun: Instant,
    due: Duration,
    ask: &mut dyn FnMut() -> ControlFlow<()>,
) -> ControlFlow<()> {
    loop {
        ask()?;
        let left = due.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return ControlFlow::Continue(());
        }
        std::thread::sleep(left.min(NAP));
    }
}

fn unshare_piece(image: &AtRest, piece: &Range<u64>) -> Result<(), BackupError> {
    let done = sharing::unshare(&image.file, piece);
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => BackupError::NoUnshare(image.path.clone(), error),
        _ => BackupError::host(&image.path, "give it blocks of its own")(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_to_stop_does_not_wait_for_the_time() {
        let begun = Instant::now();
        let mut asked = 0;
        let ended = wait(begun, Duration::from_secs(3600), &mut || {
            asked += 1;
            if asked == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(ended.is_break());
    }
}
