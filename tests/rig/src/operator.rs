//! What an operator asks a process, over its control socket.

use std::path::Path;
use std::time::{Duration, Instant};

use extentd::operator::control::{self, Answer, Request};
use front_end::limit;
use serde_json::Value;

/// A call as a line without its end, for what no [`Request`] can say.
pub fn call(method: &str, params: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}}}")
}

/// The answer to a request that must not be refused.
pub fn ask(control: &Path, request: &Request) -> Value {
    match control::ask(control, request, limit()).unwrap() {
        Answer::Result(value) => value,
        Answer::Error(error) => panic!("{request:?} is refused: {error}"),
    }
}

/// What `extentctl info` would print.
pub fn info(control: &Path) -> Value {
    ask(control, &Request::Info {})
}

/// Asks for [`info`] until it is as wanted; there is no event for it.
pub fn wait_info(control: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let info = info(control);
        if wanted(&info) {
            return info;
        }
        assert!(
            start.elapsed() < limit(),
            "waited in vain for {what}: {info:#}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until requests go by the `disk` or by the `file`.
pub fn wait_path(control: &Path, way: &str) {
    wait_info(control, way, |info| info["disk"]["path"] == way);
}
