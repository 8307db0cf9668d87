//! Snapshots of disks that are in use: what is in them, what is not, and what
//! becomes of them and of the disk afterwards. On real XFS and btrfs on loop
//! devices; `EXTENTD_TEST_SNAPSHOTS` is how many are taken under load.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod rig;
mod stamps;
mod vm;

mod ends;
mod load;
mod making;
mod moving;
mod refusals;
mod several;
mod troubles;
mod unsharing;
mod whole_vms;
