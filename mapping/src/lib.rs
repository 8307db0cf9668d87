//! A lazily built map from the offsets of a file to the offsets of the disk under its file system.
//!
//! It costs nothing to start, loads what is touched and a little ahead, forgets what it is told to forget,
//! and can be pinned whole. It knows nothing of who asks: a disk server, a swap daemon, a backup tool.
//!
//! - [`DiskPath`] is the safe whole: a file is read and written by the disk under its file system as long as
//!   nobody else wants it, from any number of threads. Begin there, or with [`path`].
//! - [`Map`] holds what is known, in windows; a [`Reader`] per thread looks offsets up without locks.
//! - [`Filler`] loads what readers miss on a thread of its own, from an [`ExtentSource`]: [`Fiemap`] for
//!   files, [`Identity`] for block devices.
//! - [`Map::hold`] takes a range away while it changes; a [`Fence`] tells when nobody uses what was known.
//! - [`device`] finds the block device under a file and says why it may not be used; [`lease`] tells when
//!   somebody else wants the file; [`flush`] whether its syncs reach the medium, [`sharing`] what is left of blocks
//!   that were shared.
//! - [`difference`] tells where two clones differ, from their extents alone; [`Pending`] keeps changes away from what
//!   is still to be cloned.
//!
//! All offsets and sizes are bytes.
#![warn(unreachable_pub)]

pub mod device;
pub mod difference;
mod error;
mod filler;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod map;
// It is not modelled, and what it shares with its users is not the model's.
#[cfg(not(loom))]
pub mod path;
mod pending;
mod source;
mod sync;
mod sys;
pub mod threads;

pub use device::{flush, lease, sharing};
pub use error::Error;
pub use filler::Filler;
pub use filler::advise::Progress;
pub use filler::stream::Access;
pub use map::config::Config;
pub use map::hold::Hold;
pub use map::quiesce::{Fence, MAX_READERS};
pub use map::reader::{Lookup, Mark, Reader};
pub use map::{Map, Stats};
#[cfg(not(loom))]
pub use path::DiskPath;
pub use pending::Pending;
pub use source::extent::{Extent, Kind, KindName, Reason};
pub use source::fiemap::{Fiemap, SyncPolicy};
pub use source::{ExtentSource, Identity, Sink};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
