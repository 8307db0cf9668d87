//! Snapshots kept elsewhere: read by others over NBD, written as backups,
//! restored, cloned. On real XFS and btrfs on loop devices, with nbdinfo,
//! nbdcopy and qemu-img as judges. `EXTENTD_TEST_BACKUPS` is how many rounds a
//! disk at work has.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod client;
mod rig;

mod files;
mod hostile;
mod images;
mod judges;
mod model;
mod refusals;
mod rounds;
