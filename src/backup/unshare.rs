//! Gives an image that nobody uses blocks of its own, piece by piece.

use std::ops::{ControlFlow, Range};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mapping::{ExtentSource, Fiemap, Kind};

use super::error::BackupError;
use super::progress::Watch;
use crate::disk::at_rest::AtRest;
use crate::host::sys;

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
    let mut shared: Vec<Range<u64>> = Vec::new();
    let told = extents.fill(0..size, &mut |extent| {
        // What is not told exactly is tried as well.
        if matches!(extent.kind, Kind::Shared | Kind::Opaque(_)) {
            let range = extent.range();
            match shared.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => shared.push(range),
            }
        }
        ControlFlow::Continue(())
    });
    told.map_err(|error| BackupError::Extents(path.to_owned(), error))?;
    let total = shared.iter().map(|range| range.end - range.start).sum();
    let begun = Instant::now();
    let mut done = 0_u64;
    // Backwards, as where it is served: XFS looks each time for the first that is shared.
    for range in shared.into_iter().rev() {
        let mut end = range.end;
        while end > range.start {
            if wait(begun, due(done, rate), &mut || watch(done, total)).is_break() {
                return Err(BackupError::Stopped(
                    path.to_owned(),
                    "what was unshared stays so",
                ));
            }
            let at = ((end - 1) / PIECE * PIECE).max(range.start);
            unshare_piece(&image, at, end - at)?;
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

/// When so many bytes may be done, after the start.
fn due(done: u64, rate: Option<u64>) -> Duration {
    let Some(rate) = rate else {
        return Duration::ZERO;
    };
    let ns = u128::from(done) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
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

fn unshare_piece(image: &AtRest, at: u64, length: u64) -> Result<(), BackupError> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mode = libc::FALLOC_FL_UNSHARE_RANGE;
    let done = sys::fallocate(image.file.as_raw_fd(), mode, number(at), number(length));
    done.map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => BackupError::NoUnshare(image.path.clone(), error),
        _ => BackupError::host(&image.path, "give it blocks of its own")(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_at_their_rate() {
        assert_eq!(due(1 << 30, None), Duration::ZERO);
        assert_eq!(due(0, Some(10)), Duration::ZERO);
        assert_eq!(due(25, Some(10)), Duration::from_millis(2500));
        assert_eq!(due(u64::MAX, Some(1)), Duration::from_nanos(u64::MAX));
    }

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
