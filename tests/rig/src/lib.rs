//! What several suites of tests share. What only one of them uses is in its own folder.
//!
//! All of it is for tests: it panics where something is not as it has to be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

#[cfg(feature = "programs")]
pub mod asker;
#[cfg(feature = "programs")]
pub mod attached;
pub mod devices;
pub mod file_systems;
pub mod files;
pub mod held;
pub mod image;
#[cfg(feature = "programs")]
pub mod lanes;
#[cfg(feature = "programs")]
pub mod manual;
pub mod model;
#[cfg(feature = "programs")]
pub mod operator;
#[cfg(feature = "programs")]
pub mod place;
pub mod plain;
pub mod pressure;
#[cfg(feature = "programs")]
pub mod process;
pub mod program;
#[cfg(feature = "programs")]
pub mod qemu;
pub mod random;
pub mod scratch;
#[cfg(feature = "programs")]
pub mod service_manager;
pub mod small_image;
