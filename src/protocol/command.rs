//! The form that 0.1.0 spoke, for scripts that were written for it:
//! `{"command":"resize","bytes":1048576}`, answered by `{"result":...}` or
//! `{"error":"one line"}`. Methods, parameters and results are those of
//! JSON-RPC; only the envelope is another one.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::failure::{Code, Failure};
use super::method::{Method, method};

#[derive(Deserialize)]
struct Command {
    command: String,
    #[serde(flatten)]
    params: Map<String, Value>,
}

/// What a line in this form asks for; `None` where it is in another one.
pub(super) fn read(text: &RawValue) -> Option<Result<Method, Failure>> {
    let Command { command, params } = serde_json::from_str(text.get()).ok()?;
    if params.contains_key("jsonrpc") {
        return None;
    }
    let params = Value::Object(params).to_string();
    Some(match method(&command, Some(&params)) {
        // What is told later has no form here.
        Ok(Method::Connection(_)) => Err(Failure::new(
            Code::NoSuchMethod,
            format!("{command}: only in JSON-RPC 2.0"),
        )),
        method => method,
    })
}

/// The answer to it.
pub(super) fn response<T: Serialize>(answer: Result<&T, &Failure>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    enum Answer<'a, T> {
        Result(&'a T),
        Error(&'a str),
    }
    let answer = match answer {
        Ok(done) => Answer::Result(done),
        Err(failure) => Answer::Error(&failure.message),
    };
    serde_json::to_string(&answer).unwrap_or_else(|error| {
        log::warn!("control socket: an answer cannot be written: {error}");
        format!("{{\"error\":\"{}\"}}", Code::Internal.meaning())
    })
}

#[cfg(test)]
mod tests {
    use crate::protocol::requests::Request;

    use super::*;

    fn of(line: &str) -> Option<Result<Method, Failure>> {
        read(serde_json::from_str(line).unwrap())
    }

    #[test]
    fn commands_are_the_methods_with_their_parameters_beside_them() {
        assert_eq!(
            of(r#"{"command":"info"}"#),
            Some(Ok(Method::Disk(Request::Info {})))
        );
        assert_eq!(
            of(r#"{"bytes":18446744073709551615,"command":"resize"}"#),
            Some(Ok(Method::Disk(Request::Resize { bytes: u64::MAX })))
        );
        for (line, code) in [
            (r#"{"command":"info","more":1}"#, Code::WrongParams),
            (r#"{"command":"dance"}"#, Code::NoSuchMethod),
            (r#"{"command":"subscribe"}"#, Code::NoSuchMethod),
        ] {
            let failure = of(line).unwrap().unwrap_err();
            assert_eq!(failure.code, code.number(), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_taken_for_commands() {
        for line in [
            r#"{"jsonrpc":"2.0","method":"info","id":1,"command":"info"}"#,
            r#"{"command":1}"#,
            r#"{"method":"info"}"#,
            r#""command""#,
            r#"["command"]"#,
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn answers_have_one_key() {
        assert_eq!(response(Ok(&7)), r#"{"result":7}"#);
        let failure = Failure::new(Code::Refused, "no");
        assert_eq!(response::<()>(Err(&failure)), r#"{"error":"no"}"#);
    }
}
