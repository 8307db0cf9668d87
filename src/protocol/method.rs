//! What calls ask for, in whatever form they come.

use super::failure::{Code, Failure};
use super::requests::{OfConnection, Request};
use super::schema;

/// What is asked of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Of the disk.
    Disk(Request),
    /// Of the connection.
    Connection(OfConnection),
}

/// Understands a name and its parameters, an object.
pub(super) fn method(name: &str, params: Option<&str>) -> Result<Method, Failure> {
    let params = params.unwrap_or("{}");
    if !params.starts_with('{') {
        return Err(Failure::new(
            Code::WrongParams,
            "parameters have names here: \"params\" must be an object",
        ));
    }
    let wrong = |error: serde_json::Error| {
        let reason = reason(&error);
        Failure::new(Code::WrongParams, format!("{name}: {reason}"))
    };
    // The names are ours: they need no escape.
    let whole = || format!("{{\"method\":\"{name}\",\"params\":{params}}}");
    if schema::is_of_disk(name) {
        let request = serde_json::from_str(&whole()).map_err(wrong)?;
        Ok(Method::Disk(request))
    } else if schema::is_of_connection(name) {
        let request = serde_json::from_str(&whole()).map_err(wrong)?;
        Ok(Method::Connection(request))
    } else {
        Err(Failure::new(
            Code::NoSuchMethod,
            format!("no method {name:?}: rpc.discover tells which there are"),
        ))
    }
}

/// Without the place, which is one in a text that nobody has sent.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
