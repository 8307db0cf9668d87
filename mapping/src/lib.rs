//! A lazily built map from the offsets of a file to the offsets of the disk under its file system.
//!
//! It costs nothing to start, loads what is touched and a little ahead, forgets what it is told to forget,
//! and can be pinned whole. It knows nothing of who asks: a disk server, a swap daemon, a backup tool.
//!
//! - [`Map`] holds what is known, in windows; a [`Reader`] per thread looks offsets up without locks.
//! - [`Filler`] loads what readers miss on a thread of its own, from an [`ExtentSource`]: [`Fiemap`] for
//!   files, [`Identity`] for block devices.
//! - [`Map::hold`] takes a range away while it changes; a [`Fence`] tells when nobody uses what was known.
//! - [`device`] finds the block device under a file and says why it may not be used; [`lease`] tells when
//!   somebody else wants the file; [`flush`] whether its syncs reach the medium, [`sharing`] what is left of blocks that were shared.
//!
//! All offsets and sizes are bytes.

mod admission;
mod advise;
mod config;
pub mod device;
mod error;
mod extent;
mod fiemap;
mod filler;
pub mod flush;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hold;
pub mod lease;
mod load;
mod map;
mod proof;
mod quiesce;
mod reader;
mod refusal;
mod residency;
mod shared;
pub mod sharing;
mod slab;
mod source;
mod stream;
mod sync;
mod sys;
mod table;
mod wish;

pub use advise::Progress;
pub use config::Config;
pub use error::Error;
pub use extent::{Extent, Kind, Reason};
pub use fiemap::{Fiemap, SyncPolicy};
pub use filler::Filler;
pub use hold::Hold;
pub use map::{Map, Stats};
pub use quiesce::{Fence, MAX_READERS};
pub use reader::{Lookup, Mark, Reader};
pub use source::{ExtentSource, Identity, Sink};
pub use stream::Access;

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
