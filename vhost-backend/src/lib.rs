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

pub mod device;

mod admission;
mod back_channel;
mod chain;
mod channel;
mod command;
mod config_space;
mod crash;
mod descriptor;
mod dirty;
mod disk;
mod epochs;
mod error;
// Fuzz targets use less of it than the tests.
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code))]
mod fake;
mod features;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod image;
mod inflight;
mod listener;
mod memory;
mod options;
mod poller;
mod queue;
mod request;
mod requests;
mod ring;
mod server;
mod session;
mod shared;
mod sigbus;
mod spin;
mod status;
mod sys;
mod vring;
mod watch;
mod worker;
mod workers;

pub use device::{
    Completion, Device, DiscardLimits, DiskInfo, HostRegion, IoChannel, Op, Status, Tag, Topology,
    WriteZeroesLimits,
};
pub use error::Error;
pub use listener::Endpoint;
pub use options::{Options, PollTime};
pub use server::{Handle, Server};
pub use status::SessionStatus;
