//! Where extents come from.

pub(crate) mod extent;
pub(crate) mod fiemap;

use std::io;
use std::ops::{ControlFlow, Range};

use self::extent::{DISK_LIMIT, Extent, Kind};

/// Takes extents as a source finds them. `Break` asks the source to stop early, without an error.
pub type Sink<'a> = dyn FnMut(Extent) -> ControlFlow<()> + 'a;

/// Something that can tell the extents of a file.
///
/// Called on helper threads only (the [`Filler`](crate::Filler)'s, or that of a caller who populates):
/// it may block, even for ever (a frozen file system), without anybody else noticing.
pub trait ExtentSource: Send + Sync + 'static {
    /// Hands the extents that overlap `range` (bytes of the file) to `sink`: ascending, not overlapping,
    /// clipped to `range`. What lies between them is a hole.
    ///
    /// # Errors
    /// Whatever the system said. The extents handed out before the error are used.
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()>;

    /// Called before each `fill` that will be published: `false` if the disk cannot be believed for
    /// `range` right now, because a cache holds data for it. The range is then tried again later.
    ///
    /// # Errors
    /// Whatever the system said; treated like `false`.
    fn settle(&self, range: Range<u64>) -> io::Result<bool> {
        let _ = range;
        Ok(true)
    }

    /// How many extents overlap `range`, not counting holes; an upper bound will do.
    ///
    /// # Errors
    /// As [`ExtentSource::fill`].
    fn count(&self, range: Range<u64>) -> io::Result<u64> {
        let mut count = 0;
        self.fill(range, &mut |_| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }
}

/// The source of a block device: every byte lies at its own offset.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    size: u64,
}

impl Identity {
    /// A device of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Identity {
        Identity {
            size: size.min(DISK_LIMIT - 1),
        }
    }
}

impl ExtentSource for Identity {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let whole = Extent {
            start: 0,
            len: self.size,
            disk: 0,
            kind: Kind::Written,
        };
        if let Some(extent) = whole.clip(&range) {
            let _stop = sink(extent);
        }
        Ok(())
    }

    fn count(&self, _range: Range<u64>) -> io::Result<u64> {
        Ok(1)
    }
}
