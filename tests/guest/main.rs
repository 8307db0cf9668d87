//! Real Linux guests under QEMU, emulated without KVM, with their disks served by the real process.
//!
//! Each test boots one guest (about 3 s) and drives it over a serial port. They need what
//! `qemu-scripts/setup.sh` installs and skip with a reason where that is missing. `EXTENTD` names
//! another binary to test, `EXTENTD_TEST_DIR` the folder for the images.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod daemon;
mod host;
mod pattern;

mod defaults;
mod downtime;
mod features;
mod filesystem;
mod firmware;
mod full;
mod hotplug;
mod killed;
mod load;
mod migration;
mod restart;
mod snapshots;
mod swap;
mod whole;
