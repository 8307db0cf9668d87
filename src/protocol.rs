//! What is said on the control socket: requests and answers as both ends have
//! them. `extentd` serializes the answers, `extentctl` reads the same structs.
//!
//! One JSON request per line, one JSON answer per line. Requests are the
//! variants of [`Request`], such as `{"command":"info"}` and
//! `{"command":"advise","advice":"pin","range":{"start":0,"end":null}}`.
//! Answers are `{"result":...}` or `{"error":"one line"}`; after either the
//! connection takes the next request.
//!
//! A request with an unknown key is refused, as it might ask for something
//! else than is done. Unknown keys and words of an answer are borne: extentd
//! may be newer than who asks it. Keys that end in `_bytes` are sizes.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub mod done;
pub mod extents;
pub mod info;
pub mod limits;
pub mod requests;
pub mod statistics;
pub mod words;

pub use self::requests::{Advice, Request};

/// One answer; of any form where it is only passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T = Value> {
    /// Done.
    Result(T),
    /// Not done: one line for people.
    Error(String),
}
