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

pub use device::{
    Completion, Device, DiscardLimits, DiskInfo, IoChannel, Op, Status, Tag, Topology,
    WriteZeroesLimits,
};
