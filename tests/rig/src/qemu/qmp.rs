//! QEMU's machine protocol: one JSON object a line.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use front_end::LIMIT;
use serde_json::{Value, json};

/// A connection to a QEMU; anything else than an answer or event within the limit is a failure.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes the greeting of a QEMU that connected and leaves its negotiation mode.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: VecDeque::new(),
        };
        let greeting = qmp.read();
        assert!(greeting.get("QMP").is_some(), "not a greeting: {greeting}");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Runs a command that must succeed and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut message = self.read();
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else {
                assert!(
                    message.get("return").is_some(),
                    "{command} {arguments}: {message}"
                );
                return message["return"].take();
            }
        }
    }

    /// The next event of that name; others that came before it are dropped.
    pub fn wait_event(&mut self, name: &str) -> Value {
        loop {
            let message = self.next_event();
            if message["event"] == name {
                return message;
            }
        }
    }

    /// Takes the device `id` away. A guest may refuse for now, as one that uses the memory it is to
    /// give back; it is asked again then.
    pub fn unplug(&mut self, id: &str) {
        loop {
            self.execute("device_del", &json!({ "id": id }));
            loop {
                let event = self.next_event();
                if event["data"]["device"] != id {
                    continue;
                }
                match event["event"].as_str() {
                    Some("DEVICE_DELETED") => return,
                    Some("DEVICE_UNPLUG_GUEST_ERROR") => break,
                    _ => {}
                }
            }
        }
    }

    fn next_event(&mut self) -> Value {
        self.events.pop_front().unwrap_or_else(|| self.read())
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("QEMU is silent");
        assert!(!line.is_empty(), "QEMU ended");
        serde_json::from_str(&line).unwrap()
    }
}
