//! What a front-end and its guest see when the real process is killed,
//! replaced or given another image size, and when the image's disk fails.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod devices;
mod faults;
mod held;
mod kept;
mod kills;
mod resize;
mod upgrade;
