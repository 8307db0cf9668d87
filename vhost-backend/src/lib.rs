//! vhost-user sessions, split virtqueues and virtio-blk requests, for a disk
//! back-end that brings its own I/O.
//!
//! This crate speaks to the front-end (QEMU, cloud-hypervisor, ...) and to
//! the guest's driver; it knows no files. The process that uses it brings a
//! [`Device`], which describes a disk and opens one [`IoChannel`] for each
//! worker thread. Data flows down as [`Op`]s on pieces of guest memory,
//! completions come up.
//!
//! Offsets and lengths are bytes unless a name says `sectors`, which are
//! always 512 bytes (virtio 1.2, 5.2).
#![warn(unreachable_pub)]

pub mod device;

mod aside;
mod command;
mod crash;
mod error;
mod held;
mod limits;
mod memory;
mod meter;
mod options;
mod peer;
mod probes;
mod queue;
mod session;
mod status;
mod sys;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;
mod worker;

pub use device::{
    Completion, Device, DiscardLimits, DiskInfo, GivenBack, HostRegion, IoChannel, Op, OpKind,
    Status, Tag, Topology, WriteZeroesLimits,
};
pub use error::Error;
pub use held::{HeldCounts, HeldRequests};
pub use limits::{
    GroupError, HoldError, LEAST_BURST_MS, LimitKey, LimitValues, Limited, Limits, Waits,
};
pub use memory::copy::{Unreachable, copy, zero};
#[cfg(feature = "test-switches")]
#[doc(hidden)]
pub use memory::dirty::leave_pages_unmarked;
pub use meter::{Activity, BOUNDS, BUCKETS, Meters, QueueActivity, SAMPLED, Stage, Times};
pub use options::{Options, PollTime};
pub use peer::Peer;
pub use session::keeping::Shelf;
pub use session::listener::Endpoint;
pub use session::parcel::companion;
pub use session::server::{Handle, Server, Visit};
pub use status::{Awaited, Connected, SessionStatus};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use testing::fuzzing;
