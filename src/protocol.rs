//! What is said on the control socket: JSON-RPC 2.0, one object or batch a
//! line. `extentd` serializes the answers, `extentctl` reads the same structs;
//! docs/control.md is for those who write clients of their own.
//!
//! A request with an unknown key is refused, as it might ask for something
//! else than is done. Unknown keys and words of an answer are borne: extentd
//! may be newer than who asks it. Keys that end in `_bytes` are sizes.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use serde_json::Value;

pub mod client;
pub mod command;
pub mod done;
pub mod events;
pub mod extents;
pub mod failure;
pub mod hello;
pub mod info;
pub mod limits;
mod method;
pub mod requests;
pub mod rpc;
pub mod schema;
pub mod statistics;
pub mod words;

pub use self::failure::{Code, Failure};
pub use self::requests::{Advice, Request};

/// One answer; of any form where it is only passed on.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer<T = Value> {
    /// Done.
    Result(T),
    /// Not done.
    Error(Failure),
}
