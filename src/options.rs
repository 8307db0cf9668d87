//! What the process is told: options as they are typed, and the checked
//! configuration made of them.

pub(crate) mod address;
pub mod args;
pub mod byte_range;
pub mod config;
pub mod size;
pub mod usage;
