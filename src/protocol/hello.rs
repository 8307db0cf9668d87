//! The greeting, by which a client knows what it talks to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of what is said: one more when something is no longer as it was.
/// What is only added does not change it.
pub const PROTOCOL: u32 = 1;
/// The notification that greets who connects.
pub const HELLO: &str = "hello";

/// The first line on a connection: who is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Hello {
    /// The version of what is said here.
    pub protocol: u32,
    /// Who says it: "extentd".
    pub program: String,
    /// The version of that.
    pub version: String,
}

impl Hello {
    /// Of this program.
    pub(crate) fn own() -> Self {
        Self {
            protocol: PROTOCOL,
            program: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
