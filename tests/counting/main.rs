//! Costs that do not depend on how fast the machine is: system calls, wake-ups,
//! allocations and instructions per request. Each has a ceiling a little above
//! what was measured; who raises one says why.
//!
//! The environment variable `EXTENTD` names another binary to count.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod allocations;
mod footprint;
mod generator;
mod instructions;
mod served;
mod system_calls;
