//! Snapshots kept elsewhere: what is written of one and how it is read again,
//! files that are whole or absent, clones, and the end of sharing.

pub mod chain;
pub mod clone;
mod error;
pub mod format;
pub mod progress;
mod reader;
pub mod restore;
pub mod unshare;
mod whole;
pub mod write;

pub use self::error::BackupError;
