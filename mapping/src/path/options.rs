//! What a disk path is opened with.

use super::away::Away;
use crate::Config;

/// Whether the whole map is to be pinned and every extent fixed, so that no request needs the file system: for what
/// is swapped on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The path is not taken otherwise.
    Demanded,
    /// The path is taken as well if that is not possible, and a line in the log says so.
    BestEffort,
}

impl Swap {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Swap::Demanded => "demanded",
            Swap::BestEffort => "best-effort",
        }
    }
}

/// How a [`DiskPath`](super::DiskPath) is to be; made from the default, which is a path for reading and writing.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub(super) read_only: bool,
    pub(super) grain: u64,
    pub(super) budget: u64,
    pub(super) pin_reserve: u64,
    pub(super) swap: Option<Swap>,
    pub(super) tell: fn(&Away<'_>) -> String,
}

impl Default for Options {
    fn default() -> Options {
        let config = Config::default();
        Options {
            read_only: false,
            grain: config.grain,
            budget: config.budget,
            pin_reserve: config.pin_reserve,
            swap: None,
            tell: |away| away.to_string(),
        }
    }
}

impl Options {
    /// The file is open for reading only: others may read it meanwhile, where no file can share its blocks.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Options {
        self.read_only = read_only;
        self
    }

    /// Bytes of a block of the file system, a power of two of at least 4096: changes by the file are kept apart from
    /// raw I/O in whole ones.
    #[must_use]
    pub fn grain(mut self, bytes: u64) -> Options {
        self.grain = bytes;
        self
    }

    /// Most bytes of memory that extents may take which are not pinned.
    #[must_use]
    pub fn budget(mut self, bytes: u64) -> Options {
        self.budget = bytes;
        self
    }

    /// Most bytes of memory that pinned extents may take.
    #[must_use]
    pub fn pin_reserve(mut self, bytes: u64) -> Options {
        self.pin_reserve = bytes;
        self
    }

    /// Pins all of the map while the path is in use; memory for it is set aside at once.
    #[must_use]
    pub fn swap(mut self, swap: Option<Swap>) -> Options {
        self.swap = swap;
        self
    }

    /// How the reason why the path is not in use is worded, in the log and in
    /// [`Situation`](super::Situation).
    #[must_use]
    pub fn tell(mut self, tell: fn(&Away<'_>) -> String) -> Options {
        self.tell = tell;
        self
    }
}
