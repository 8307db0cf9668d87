//! Limits on requests and bytes per second, of real processes: they are kept,
//! shared, changed, and in nobody's way. `EXTENTD_TEST_LIMITS=long` measures
//! every rate at every depth, for ten seconds each.
//!
//! What is used is counted by the process itself, over the time that it tells,
//! and is never more than the limit allows, whatever else the machine does.
//! That it is not less is asked for where the machine gave the process its
//! CPU time (`rates.rs`).

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod rig;

mod ends;
mod fairness;
mod groups;
mod live;
mod rates;
mod refusals;
