//! Follows advice about ranges of the disk: what an operator says about what
//! the map should have in memory.

use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use mapping::{Access, DiskPath, Error, Stats};

use super::shown_map::ShownMap;
use crate::disk::Disk;
use crate::protocol::Advice;

/// Why advice was not taken: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdviceError {
    /// No request looks the map up now, so nothing can be said about its use.
    #[error(
        "requests go by the file ({0}), and only on the disk path do they use the map: populate loads it to be shown"
    )]
    NotInUse(String),
    /// There are no extents to know.
    #[error("the image is a block device: each byte is in its place, and there is nothing to load")]
    BlockDevice,
    /// The filler has enough to do.
    #[error("too much advice waits already: try again later, or populate")]
    Busy,
    /// Nothing is set aside for pins, or too little is left.
    #[error(
        "the extents of this range take up to {needed} bytes of memory, but {left} of the {reserve} bytes of --pin-reserve are left: start extentd with a larger --pin-reserve"
    )]
    Reserve {
        /// Bytes that the pin takes at most.
        needed: u64,
        /// Bytes not used by other pins.
        left: u64,
        /// As given.
        reserve: u64,
    },
    /// No more fits.
    #[error(
        "the extents of this range do not fit in --map-budget: what is loaded stays; give a smaller range, or start extentd with a larger --map-budget"
    )]
    Budget,
    /// The file system has none to tell, or cannot now.
    #[error("the image's file system tells no extents: {0}")]
    NoExtents(std::io::Error),
    /// The map refuses.
    #[error("{0}")]
    Map(Error),
}

/// What became of advice.
pub(super) struct Followed {
    /// For people.
    pub(super) done: &'static str,
    /// Requests look up the map that was loaded.
    pub(super) in_use: bool,
    /// How often the file system was asked for extents meanwhile.
    pub(super) calls: u64,
    /// How long it took.
    pub(super) time: Duration,
    /// What is in memory now.
    pub(super) stats: Stats,
}

/// Follows advice about `range`, which lies within the disk. Blocks until all
/// is loaded for [`Advice::Pin`] and [`Advice::Populate`], and for
/// [`Advice::Willneed`] where requests go by the file.
///
/// # Errors
/// Why it cannot be followed.
pub(super) fn follow(
    disk: &Disk,
    shown: &ShownMap,
    advice: Advice,
    range: Range<u64>,
) -> Result<Followed, AdviceError> {
    let begun = Instant::now();
    let path = disk.disk_path();
    let enabled = path.is_ok_and(|path| path.map().enabled());
    if enabled {
        shown.clear();
    }
    let loads = matches!(advice, Advice::Willneed | Advice::Populate);
    let (done, calls) = match path {
        Ok(path) if enabled || !loads => {
            if advice == Advice::Dontneed {
                shown.dontneed(range.clone()).map_err(AdviceError::Map)?;
            }
            let calls = || path.filler().source().calls();
            let before = calls();
            let done = on_path(path, advice, range)?;
            (done, calls().saturating_sub(before))
        }
        _ => to_be_shown(disk, shown, advice, range)?,
    };
    let stats = match path {
        Ok(path) if enabled => path.stats(),
        // What is pinned is forgotten while the path is not in use.
        _ => shown.stats().unwrap_or_default(),
    };
    Ok(Followed {
        done,
        in_use: enabled,
        calls,
        time: begun.elapsed(),
        stats,
    })
}

/// What can be done where requests go by the file; and how often the file
/// system was asked.
fn to_be_shown(
    disk: &Disk,
    shown: &ShownMap,
    advice: Advice,
    range: Range<u64>,
) -> Result<(&'static str, u64), AdviceError> {
    if disk.is_block_device() {
        return Err(AdviceError::BlockDevice);
    }
    match advice {
        Advice::Willneed | Advice::Populate => {
            let calls = shown.populate(disk, range).map_err(|error| match error {
                Error::Source(error) => AdviceError::NoExtents(error),
                Error::Budget => AdviceError::Budget,
                other => AdviceError::Map(other),
            })?;
            let done = "loaded to be shown, as requests go by the file";
            Ok((done, calls))
        }
        Advice::Dontneed => {
            shown.dontneed(range).map_err(AdviceError::Map)?;
            Ok(("whole windows are dropped", 0))
        }
        Advice::Unpin => Ok(("nothing is pinned", 0)),
        Advice::Pin | Advice::Sequential | Advice::Random | Advice::Normal => {
            Err(AdviceError::NotInUse(disk.describe().path_reason))
        }
    }
}

fn on_path(
    path: &DiskPath,
    advice: Advice,
    range: Range<u64>,
) -> Result<&'static str, AdviceError> {
    let filler = path.filler();
    let map = |error| told(path, error);
    Ok(match advice {
        Advice::Willneed => {
            if !filler.willneed(range).map_err(map)? {
                return Err(AdviceError::Busy);
            }
            "being loaded"
        }
        Advice::Populate => {
            let mut goes_on = |_| ControlFlow::Continue(());
            filler.populate_with(range, &mut goes_on).map_err(map)?;
            "loaded"
        }
        Advice::Dontneed => {
            // The extents stay where they are, so nobody needs to have forgotten them.
            let _ = filler.dontneed(range).map_err(map)?;
            "whole windows that were not pinned are dropped"
        }
        Advice::Pin => {
            filler.pin(range).map_err(map)?;
            "loaded and pinned"
        }
        Advice::Unpin => {
            filler.unpin(range).map_err(map)?;
            "may be evicted"
        }
        Advice::Sequential => {
            filler.access(range, Access::Sequential).map_err(map)?;
            "will be loaded far ahead of its use"
        }
        Advice::Random => {
            filler.access(range, Access::Random).map_err(map)?;
            "will not be loaded ahead of its use"
        }
        Advice::Normal => {
            filler.access(range, Access::Normal).map_err(map)?;
            "will be loaded ahead where it is used in order"
        }
    })
}

fn told(path: &DiskPath, error: Error) -> AdviceError {
    match error {
        Error::Disabled => AdviceError::NotInUse(path.situation().reason),
        Error::Budget => AdviceError::Budget,
        Error::Reserve {
            needed,
            left,
            reserve,
        } => AdviceError::Reserve {
            needed,
            left,
            reserve,
        },
        other => AdviceError::Map(other),
    }
}
