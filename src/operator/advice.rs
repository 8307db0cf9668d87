//! Follows advice about ranges of the disk: what an operator says about what
//! the map should have in memory.

use std::ops::Range;

use mapping::{Access, DiskPath, Error};

use crate::protocol::Advice;

/// Why advice was not taken: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdviceError {
    /// Nothing can be loaded now.
    #[error("the disk path is not in use ({0}), and only then is the map loaded")]
    NotInUse(String),
    /// The filler has enough to do.
    #[error("too much advice waits already: try again later")]
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
    /// The map refuses.
    #[error("{0}")]
    Map(Error),
}

/// Follows advice about `range`, which lies within the disk; what was done.
/// Blocks until all is loaded for [`Advice::Pin`].
///
/// # Errors
/// Why it cannot be followed.
pub(crate) fn follow(
    path: &DiskPath,
    advice: Advice,
    range: Range<u64>,
) -> Result<&'static str, AdviceError> {
    let filler = path.filler();
    let map = |error| told(path, error);
    Ok(match advice {
        Advice::Willneed => {
            if !path.map().enabled() {
                return Err(AdviceError::NotInUse(path.situation().reason));
            }
            if !filler.willneed(range).map_err(map)? {
                return Err(AdviceError::Busy);
            }
            "being loaded"
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
