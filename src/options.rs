//! What the process is told: options as they are typed, and the checked
//! configuration made of them.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod address;
pub mod args;
pub mod byte_range;
pub mod config;
pub(crate) mod file;
pub mod limit;
pub mod settings;
pub mod size;
pub mod usage;
