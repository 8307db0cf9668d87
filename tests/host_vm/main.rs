//! The process on a host of its own: a virtual machine in which the tests are root with every
//! capability, with memory control groups (version 2), swap, device mapper and disks of any kind.
//! No guest runs in it;
//! `extentd-load` is the front-end.
//!
//! They need what `qemu-scripts/setup.sh --tests` installs and skip with a reason where that is
//! missing.
//! `EXTENTD_TEST_DIR` names the folder for the disks of the machine.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod boot;
mod layers;
mod loaded;
mod machine;
mod served;
mod stress;

mod crypt_cost;
mod failing;
mod groups;
mod guest_memory;
mod hanging;
mod inside;
mod journalled;
mod killer;
mod latency;
mod mapped;
mod polled;
mod pressure;
mod privileges;
mod properties;
mod smoke;
mod snapshot_unit;
mod stacks;
mod system;
mod units;
mod volumes;
