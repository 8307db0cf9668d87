//! Swap-grade mode on real file systems: preparation, every property read back
//! from the kernel, and a guest that swaps on it.
//!
//! They need root and loop devices and skip with a reason where these are
//! missing. Some measures need CAP_SYS_RESOURCE; where the tests have it not,
//! that they are refused is what is tested.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod served;

mod ablation;
mod fallback;
mod fragments;
mod handing_over;
mod io_path;
mod preparation;
mod properties;
mod read_back;
mod refusals;
mod room;
