//! The process `extentd`: it opens an image, offers it through
//! [`vhost_backend`], and is looked after by signals and a control socket.
//! The library exists for its programs: `extentd`, `extentctl` and `extentd-nbd`.
#![warn(unreachable_pub)]

pub mod backup;
mod block_io;
pub mod disk;
mod engine;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod nbd;
pub mod operator;
pub mod options;
pub mod process;
pub mod protocol;
pub mod swap;
