//! What fuzz targets need of the inside (feature `fuzzing`).
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::host::feed::feed;
use crate::operator::control::{self, Answer, Caller, Controlled, Request};
use crate::operator::metrics_listener;
use crate::options::args::Args;
use crate::options::config::Config;
use crate::options::usage;

pub use crate::operator::control::LINE_BYTES;

/// Answers with what it was asked, written anew.
struct Echo;

impl Controlled for Echo {
    type Done = Value;

    fn carry_out(&self, request: Request, _: Caller) -> Answer {
        match request.change() {
            Some(change) => Answer::Result(json!([request, change])),
            None => Answer::Result(json!([request])),
        }
    }
}

/// Serves a control socket at `address` whose answers are the requests, each
/// in a list of its own.
pub fn control_socket(address: &SocketAddr) {
    let listener = UnixListener::bind_addr(address).unwrap();
    let (_, events) = feed(1).unwrap();
    control::start(listener, Arc::new(Echo), events).unwrap();
}

/// What an HTTP client is answered that has sent this, and ended its half.
#[must_use]
pub fn http(received: &[u8], text: &str) -> Vec<u8> {
    metrics_listener::answer(received, |_| text.to_owned())
}

/// What a command line, with the program's name, asks for.
///
/// # Errors
/// The line that is said instead; `None` where that is help.
pub fn command_line(words: Vec<OsString>) -> Result<Config, Option<String>> {
    let args: Args = usage::read_in_one_line(words)?;
    args.into_config(&[])
        .map_err(|error| Some(error.to_string()))
}
