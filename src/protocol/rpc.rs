//! JSON-RPC 2.0 as the control socket speaks it: what a line asks for, and what
//! is answered.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::command;
use super::failure::{Code, Failure};
pub use super::method::Method;
use super::method::{method, reason};

/// Most calls of one batch.
pub const MOST_IN_BATCH: usize = 16;

const VERSION: &str = "2.0";

/// A call of a line.
#[derive(Debug)]
pub struct Call {
    /// As it was sent; `None` if nothing is to be answered.
    pub id: Option<Box<RawValue>>,
    /// What is asked for.
    pub method: Result<Method, Failure>,
}

/// What a line is.
#[derive(Debug)]
pub struct Line {
    /// What it asks for, in order.
    pub calls: Vec<Call>,
    /// How it is said, and how it is answered.
    pub form: Form,
}

/// How a line is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As one call.
    Call,
    /// As a list of calls. The answers are one list.
    Batch,
    /// As one [`command`] of 0.1.0.
    Command,
}

impl Form {
    /// The answer to a call of such a line.
    pub(crate) fn response<T: Serialize>(
        self,
        id: &RawValue,
        answer: Result<&T, &Failure>,
    ) -> String {
        match self {
            Form::Call | Form::Batch => response(id, answer),
            Form::Command => command::response(answer),
        }
    }
}

/// Understands a line. What cannot be understood is a call that failed.
pub fn read(line: &[u8]) -> Line {
    let one = |call| Line {
        calls: vec![call],
        form: Form::Call,
    };
    let whole: &RawValue = match serde_json::from_slice(line) {
        Ok(whole) => whole,
        Err(error) => return one(failed(Code::NotJson, format!("not JSON: {error}"))),
    };
    if !whole.get().starts_with('[') {
        if let Some(method) = command::read(whole) {
            let id = Some(RawValue::NULL.to_owned());
            return Line {
                calls: vec![Call { id, method }],
                form: Form::Command,
            };
        }
        return one(call(whole));
    }
    match serde_json::from_str::<Vec<&RawValue>>(whole.get()) {
        Ok(calls) if (1..=MOST_IN_BATCH).contains(&calls.len()) => Line {
            calls: calls.into_iter().map(call).collect(),
            form: Form::Batch,
        },
        Ok(_) => one(failed(
            Code::NotARequest,
            format!("a batch has 1 to {MOST_IN_BATCH} requests"),
        )),
        Err(error) => one(failed(Code::NotJson, format!("not JSON: {error}"))),
    }
}

fn failed(code: Code, message: String) -> Call {
    Call {
        id: Some(RawValue::NULL.to_owned()),
        method: Err(Failure::new(code, message)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "given")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "given")]
    id: Option<&'a RawValue>,
}

/// Also null is something.
fn given<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The id alone, where the rest is no request.
#[derive(Deserialize)]
struct Id<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// A text, a number or null.
fn is_id(id: &RawValue) -> bool {
    !id.get().starts_with(['{', '[', 't', 'f'])
}

fn call(text: &RawValue) -> Call {
    let not_a_request = |reason: String| {
        let id = serde_json::from_str::<Id<'_>>(text.get());
        let id = id.ok().and_then(|found| found.id).filter(|id| is_id(id));
        Call {
            id: Some(id.unwrap_or(RawValue::NULL).to_owned()),
            method: Err(Failure::new(Code::NotARequest, reason)),
        }
    };
    let envelope: Envelope<'_> = match serde_json::from_str(text.get()) {
        Ok(envelope) if text.get().starts_with('{') => envelope,
        Ok(_) => return not_a_request("a request is an object".to_owned()),
        Err(error) => return not_a_request(format!("not a request: {}", reason(&error))),
    };
    if envelope.jsonrpc != VERSION {
        return not_a_request(format!("\"jsonrpc\" must be {VERSION:?}"));
    }
    if !envelope.id.is_none_or(is_id) {
        return not_a_request("\"id\" must be a text, a number or null".to_owned());
    }
    Call {
        id: envelope.id.map(ToOwned::to_owned),
        method: method(&envelope.method, envelope.params.map(RawValue::get)),
    }
}

#[derive(Serialize)]
struct Response<'a, T> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
    id: &'a RawValue,
}

/// The answer to the call of this id.
fn response<T: Serialize>(id: &RawValue, answer: Result<&T, &Failure>) -> String {
    fn failed<'a>(failure: &'a Failure, id: &'a RawValue) -> Response<'a, ()> {
        Response {
            jsonrpc: VERSION,
            result: None,
            error: Some(failure),
            id,
        }
    }
    let written = match answer {
        Ok(result) => serde_json::to_string(&Response {
            jsonrpc: VERSION,
            result: Some(result),
            error: None,
            id,
        }),
        Err(failure) => serde_json::to_string(&failed(failure, id)),
    };
    written.unwrap_or_else(|error| {
        log::warn!("control socket: an answer cannot be written: {error}");
        let failure = Failure::new(Code::Internal, Code::Internal.meaning());
        serde_json::to_string(&failed(&failure, id)).unwrap_or_default()
    })
}

/// A failure of which nobody knows what it answers.
pub(crate) fn response_to_nothing(failure: &Failure) -> String {
    response::<()>(RawValue::NULL, Err(failure))
}

/// What is told without being asked.
pub(crate) fn notification(method: &str, params: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Notification<'a, T> {
        jsonrpc: &'static str,
        method: &'a str,
        params: &'a T,
    }
    let notification = Notification {
        jsonrpc: VERSION,
        method,
        params,
    };
    // All that is told is plain structs, whose keys are texts.
    serde_json::to_string(&notification).unwrap_or_default()
}
