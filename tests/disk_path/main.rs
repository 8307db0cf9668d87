//! The way past the file system, proved from outside: the real process on
//! images in real file systems, while others use the host's files, fill its
//! disk, crash it, or kill the process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../../mapping/tests/common/mod.rs"]
mod common;

mod break_time;
mod client;
mod crash;
mod disturb;
mod image;
mod killed;
mod length;
mod model;
mod promises;
mod random;
mod refusals;
mod rig;
mod stopped;
mod storm;
mod stress;
