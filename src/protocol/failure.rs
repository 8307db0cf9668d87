//! Why something was not done, by kinds that programs can tell apart.

use serde::{Deserialize, Serialize};

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The line is no JSON.
    NotJson,
    /// It is, but no request.
    NotARequest,
    /// There is no such method.
    NoSuchMethod,
    /// The method does not take these parameters.
    WrongParams,
    /// The answer cannot be written.
    Internal,
    /// The disk or its host does not allow it now.
    Refused,
    /// Another user than the one that may ask.
    NotPermitted,
    /// There is no thread for it: later there may be.
    Busy,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 8] = [
        Code::NotJson,
        Code::NotARequest,
        Code::NoSuchMethod,
        Code::WrongParams,
        Code::Internal,
        Code::Refused,
        Code::NotPermitted,
        Code::Busy,
    ];

    /// As it is sent. Those below zero are JSON-RPC's.
    pub const fn number(self) -> i64 {
        match self {
            Code::NotJson => -32700,
            Code::NotARequest => -32600,
            Code::NoSuchMethod => -32601,
            Code::WrongParams => -32602,
            Code::Internal => -32603,
            Code::Refused => 1,
            Code::NotPermitted => 2,
            Code::Busy => 3,
        }
    }

    /// What it means.
    pub const fn meaning(self) -> &'static str {
        match self {
            Code::NotJson => "the line is no JSON",
            Code::NotARequest => "no request",
            Code::NoSuchMethod => "no such method",
            Code::WrongParams => "the method does not take these parameters",
            Code::Internal => "the answer cannot be written",
            Code::Refused => "the disk or its host does not allow it now",
            Code::NotPermitted => "only the user that runs extentd may ask, and root",
            Code::Busy => "no thread for it: try again later",
        }
    }
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Of which kind: [`Code::number`], or one that is not known here.
    pub code: i64,
    /// One line for people.
    pub message: String,
}

impl Failure {
    /// Of this kind.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code: code.number(),
            message: message.into(),
        }
    }
}
