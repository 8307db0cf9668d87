use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;

use super::*;
use crate::host::feed::feed;

mod greeting;

const PATIENCE: Duration = Duration::from_secs(20);

/// More bytes than a socket takes before they are read.
const LONG: usize = 1 << 20;
const MAP: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"map","params":{"range":{"start":0,"end":null},"most":1}}"#;
const INFO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"info"}"#;
const HAS_INFO: &str = "{\"jsonrpc\":\"2.0\",\"result\":{\"pid\":7},\"id\":1}\n";

/// Remembers what it was asked, refuses odd sizes, and takes as long for
/// advice as the test does to hang up.
#[derive(Default)]
struct Fake {
    seen: Mutex<Vec<Request>>,
    slow: Mutex<Option<mpsc::Receiver<()>>>,
    gate: Mutex<()>,
}

impl Controlled for Fake {
    type Done = Value;

    fn carry_out(&self, request: Request, _: Caller) -> Answer {
        self.seen.lock().unwrap().push(request.clone());
        match request {
            Request::Info {} => Answer::Result(serde_json::json!({ "pid": 7 })),
            Request::Resize { bytes } if bytes % 512 == 0 => Answer::Result(Value::Null),
            Request::Resize { bytes } => {
                Answer::Error(Failure::new(Code::Refused, format!("{bytes} is odd")))
            }
            Request::Map { .. } => Answer::Result(Value::String("x".repeat(LONG))),
            Request::Selftest {} => {
                // Ends when the test lets it.
                drop(self.gate.lock().unwrap());
                Answer::Result(Value::Null)
            }
            _ => {
                let slow = self.slow.lock().unwrap().take();
                // Ends when the test drops its end.
                let ended = slow.map(|slow| slow.recv().is_err());
                Answer::Result(serde_json::json!({ "ended": ended }))
            }
        }
    }
}

struct Rig {
    fake: Arc<Fake>,
    path: PathBuf,
    _file: SocketFile,
    _directory: tempfile::TempDir,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let (listener, file) = bind(&path).unwrap();
    let fake = Arc::new(Fake::default());
    let (_, events) = feed(1).unwrap();
    start(listener, Arc::clone(&fake), events).unwrap();
    Rig {
        fake,
        path,
        _file: file,
        _directory: directory,
    }
}

fn connect(rig: &Rig) -> (BufReader<UnixStream>, UnixStream) {
    let stream = UnixStream::connect(&rig.path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (BufReader::new(stream.try_clone().unwrap()), stream)
}

/// The next line that is no greeting.
fn line(reader: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    loop {
        reader.read_line(&mut line).unwrap();
        if !line.starts_with("{\"jsonrpc\":\"2.0\",\"method\":\"hello\",") {
            return line;
        }
        line.clear();
    }
}

#[test]
fn only_the_owner_may_connect() {
    let rig = rig();
    assert_eq!(
        std::fs::metadata(&rig.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn requests_are_carried_out_and_answered() {
    let rig = rig();
    let info = ask(&rig.path, &Request::Info {}, PATIENCE).unwrap();
    assert_eq!(info, Answer::Result(serde_json::json!({ "pid": 7 })));
    assert_eq!(
        ask(&rig.path, &Request::Resize { bytes: 1024 }, PATIENCE).unwrap(),
        Answer::Result(Value::Null)
    );
    assert_eq!(
        ask(&rig.path, &Request::Resize { bytes: 1 }, PATIENCE).unwrap(),
        Answer::Error(Failure {
            code: 1,
            message: "1 is odd".into()
        })
    );
    assert_eq!(
        *rig.fake.seen.lock().unwrap(),
        [
            Request::Info {},
            Request::Resize { bytes: 1024 },
            Request::Resize { bytes: 1 }
        ]
    );
}

#[test]
fn a_slow_request_keeps_nobody_else_waiting() {
    let rig = rig();
    let (slow, waits) = mpsc::channel();
    *rig.fake.slow.lock().unwrap() = Some(waits);
    let (mut reader, mut writer) = connect(&rig);
    writeln!(
        writer,
        r#"{{"jsonrpc":"2.0","id":"x","method":"advise","params":{{"advice":"pin","range":{{"start":0,"end":null}}}}}}"#
    )
    .unwrap();
    let start = std::time::Instant::now();
    while rig.fake.seen.lock().unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(
        ask(&rig.path, &Request::Info {}, PATIENCE).unwrap(),
        Answer::Result(serde_json::json!({ "pid": 7 }))
    );
    drop(slow);
    assert_eq!(
        line(&mut reader),
        "{\"jsonrpc\":\"2.0\",\"result\":{\"ended\":true},\"id\":\"x\"}\n"
    );
}

/// A line, and what is answered.
fn exchange(rig: &Rig, said: &str) -> String {
    let (mut reader, mut writer) = connect(rig);
    // Whoever answers nothing to the first has answered the second first.
    writeln!(writer, "{said}\n{INFO}").unwrap();
    let answer = line(&mut reader);
    if answer == HAS_INFO {
        return String::new();
    }
    assert_eq!(line(&mut reader), HAS_INFO, "the line fails alone: {said}");
    answer
}

#[test]
fn a_bad_line_fails_alone_with_the_code_for_it() {
    let rig = rig();
    for (code, id, bad) in [
        (-32700, "null", ""),
        (-32700, "null", "info"),
        (-32700, "null", "[[["),
        (-32700, "null", "\u{0}"),
        (
            -32700,
            "null",
            "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"id\":1",
        ),
        (-32600, "null", "{}"),
        (-32600, "null", "1"),
        (-32600, "null", "\"info\""),
        (-32600, "null", "[]"),
        (-32600, "null", "{\"command\":7}"),
        (-32600, "7", "{\"method\":\"info\",\"id\":7}"),
        (
            -32600,
            "7",
            "{\"jsonrpc\":\"1.0\",\"method\":\"info\",\"id\":7}",
        ),
        (-32600, "7", "{\"jsonrpc\":\"2.0\",\"method\":1,\"id\":7}"),
        (
            -32600,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"id\":7,\"x\":1}",
        ),
        (
            -32600,
            "null",
            "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"id\":[7]}",
        ),
        (
            -32600,
            "null",
            "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"id\":1,\"id\":2}",
        ),
        (
            -32601,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"dance\",\"id\":7}",
        ),
        (
            -32602,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"resize\",\"id\":7}",
        ),
        (
            -32602,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"params\":1,\"id\":7}",
        ),
        (
            -32602,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"params\":{\"x\":1},\"id\":7}",
        ),
        (
            -32602,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"resize\",\"params\":[1],\"id\":7}",
        ),
        (
            -32602,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"resize\",\"params\":{\"bytes\":-1},\"id\":7}",
        ),
        (
            -32602,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"io-path\",\"params\":{\"path\":\"raw\"},\"id\":7}",
        ),
        (
            1,
            "7",
            "{\"jsonrpc\":\"2.0\",\"method\":\"resize\",\"params\":{\"bytes\":1},\"id\":7}",
        ),
    ] {
        let answer = exchange(&rig, bad);
        let start = format!("{{\"jsonrpc\":\"2.0\",\"error\":{{\"code\":{code},\"message\":\"");
        let end = format!("\"}},\"id\":{id}}}\n");
        assert!(
            answer.starts_with(&start) && answer.ends_with(&end),
            "{bad}: {answer}"
        );
    }
    let seen = rig.fake.seen.lock().unwrap();
    let other = seen.iter().find(|one| !matches!(one, Request::Info {}));
    assert_eq!(other, Some(&Request::Resize { bytes: 1 }));
}

#[test]
fn an_id_is_echoed_as_it_was_sent_and_without_one_nothing_is() {
    let rig = rig();
    for id in [
        "0",
        "-1.50e2",
        "18446744073709551616",
        "\"\\u0041\u{e4}\"",
        "null",
    ] {
        let call =
            format!("{{\"id\" : {id},\"method\":\"info\",\"jsonrpc\":\"2.0\",\"params\":{{}}}}");
        let expected = HAS_INFO.replace(":1}", &format!(":{id}}}"));
        // It is the same line where it is the same id.
        let (mut reader, mut writer) = connect(&rig);
        writeln!(writer, "{call}").unwrap();
        assert_eq!(line(&mut reader), expected);
    }
    for notified in [
        "{\"jsonrpc\":\"2.0\",\"method\":\"resize\",\"params\":{\"bytes\":512}}",
        "{\"jsonrpc\":\"2.0\",\"method\":\"dance\"}",
        "{\"jsonrpc\":\"2.0\",\"method\":\"resize\"}",
        "[{\"jsonrpc\":\"2.0\",\"method\":\"resize\",\"params\":{\"bytes\":1024}}]",
    ] {
        assert_eq!(exchange(&rig, notified), "", "{notified}");
    }
    let seen = rig.fake.seen.lock().unwrap();
    for bytes in [512, 1024] {
        assert!(seen.contains(&Request::Resize { bytes }), "it was done");
    }
}

#[test]
fn a_batch_is_answered_in_one_list_and_has_a_limit() {
    let rig = rig();
    let call = |id: usize| INFO.replace(":1,", &format!(":{id},"));
    let batch = [
        call(5),
        "{\"jsonrpc\":\"2.0\",\"method\":\"info\"}".into(),
        "7".into(),
        call(6),
    ];
    let answer: Value =
        serde_json::from_str(&exchange(&rig, &format!("[{}]", batch.join(",")))).unwrap();
    assert_eq!(answer[0]["id"], 5);
    assert_eq!(answer[1]["error"]["code"], -32600);
    assert_eq!(answer[2]["result"]["pid"], 7);
    assert_eq!(answer.as_array().unwrap().len(), 3);
    for (count, error) in [(16, false), (17, true)] {
        let all: Vec<String> = (0..count).map(call).collect();
        let answer = exchange(&rig, &format!("[{}]", all.join(",")));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"] == -32600, error, "{answer}");
    }
}

#[test]
fn the_methods_are_told() {
    let rig = rig();
    let answer = exchange(&rig, &INFO.replace("info", "rpc.discover"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["result"], *schema::document());
}

#[test]
fn a_line_without_end_is_not_collected_for_ever() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    // The connection may be shut before all of it is sent.
    let _ = writer.write_all(&vec![b' '; 1 << 20]);
    assert_eq!(
        line(&mut reader),
        "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32600,\"message\":\"a line is longer than 4096 bytes\"},\"id\":null}\n"
    );
    let end = reader.read_line(&mut String::new());
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert_answered(&rig);
}

/// A correct client has its answer.
fn assert_answered(rig: &Rig) {
    assert_eq!(
        ask(&rig.path, &Request::Info {}, PATIENCE).unwrap(),
        Answer::Result(serde_json::json!({ "pid": 7 }))
    );
}

#[test]
fn silent_clients_give_way_and_those_that_are_served_stay() {
    let rig = rig();
    let _silent: Vec<_> = (0..BOUNDS.all + 20)
        .map(|number| {
            let (reader, mut writer) = connect(&rig);
            if number % 2 == 0 {
                // It may have had to go already.
                let _ = writer.write_all(b"{\"method\":");
            }
            assert_answered(&rig);
            (reader, writer)
        })
        .collect();
    // The one before the last is still among them.
    let (mut reader, mut writer) = connect(&rig);
    assert_answered(&rig);
    writeln!(writer, "{INFO}").unwrap();
    assert_eq!(line(&mut reader), HAS_INFO);
}

#[test]
fn a_hundred_clients_at_once_all_have_their_answers() {
    let rig = rig();
    let mut clients: Vec<_> = (0..100).map(|_| connect(&rig)).collect();
    for (_, writer) in &mut clients {
        writeln!(writer, "{INFO}").unwrap();
    }
    for (reader, _) in &mut clients {
        assert_eq!(line(reader), HAS_INFO);
    }
}

#[test]
fn who_does_not_read_keeps_nobody_waiting_and_little_memory() {
    let rig = rig();
    let mut deaf: Vec<_> = (0..40).map(|_| connect(&rig)).collect();
    for (_, writer) in &mut deaf {
        writeln!(writer, "{MAP}").unwrap();
    }
    // Together they may not keep 40 answers waiting: all but so many go.
    let most = BOUNDS.answers / LONG;
    let begun = std::time::Instant::now();
    let gone = |(_, writer): &(_, UnixStream)| {
        let mut there = [PollFd::new(writer, PollFlags::RDHUP)];
        rustix::event::poll(&mut there, Some(&Timespec::default())).unwrap() > 0
    };
    while deaf.iter().filter(|one| gone(one)).count() < deaf.len() - most {
        assert!(begun.elapsed() < PATIENCE);
        assert_answered(&rig);
    }
    let mut whole = 0;
    for (reader, _) in &mut deaf {
        let mut answer = String::new();
        let mut read = || reader.read_line(&mut answer);
        // The greeting, and the answer.
        let read = read().and_then(|_| read());
        whole += usize::from(read.is_ok() && answer.ends_with('\n'));
    }
    assert!((1..=most).contains(&whole), "{whole} of at most {most}");
    assert_answered(&rig);
}

#[test]
fn requests_that_hang_leave_room_for_those_that_need_no_file() {
    let rig = rig();
    let gate = rig.fake.gate.lock().unwrap();
    let mut stuck: Vec<_> = (0..UNDER_WAY_EACH + 5).map(|_| connect(&rig)).collect();
    for (_, writer) in &mut stuck {
        writeln!(writer, "{}", INFO.replace("info", "selftest")).unwrap();
    }
    assert_answered(&rig);
    let begun = || {
        let seen = rig.fake.seen.lock().unwrap();
        let tests = seen.iter().filter(|one| **one == Request::Selftest {});
        tests.count()
    };
    while begun() < UNDER_WAY_EACH {
        assert_answered(&rig);
    }
    // No user has all places.
    assert_eq!(begun(), UNDER_WAY_EACH);
    // One that leaves meanwhile is no harm.
    stuck.pop();
    drop(gate);
    for (reader, _) in &mut stuck {
        assert_eq!(line(reader), HAS_INFO.replace("{\"pid\":7}", "null"));
    }
}

#[test]
fn a_client_may_send_all_its_requests_at_once_and_end_its_half() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    let request = format!("{INFO}\n");
    writer.write_all(request.repeat(50).as_bytes()).unwrap();
    // The last one has no end.
    writer.write_all(request.trim_end().as_bytes()).unwrap();
    writer.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..51 {
        assert_eq!(line(&mut reader), HAS_INFO);
    }
    assert_eq!(line(&mut reader), "");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    for byte in format!("{INFO}\n").as_bytes() {
        writer.write_all(&[*byte]).unwrap();
        assert_answered(&rig);
    }
    assert_eq!(line(&mut reader), HAS_INFO);
}

#[test]
fn what_is_no_text_or_too_deep_is_refused_in_one_line() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    let deep = "[".repeat(4000).into_bytes();
    let inside = format!("{{\"jsonrpc\":\"2.0\",\"method\":{}", "[".repeat(4000));
    let within = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"map\",\"params\":{}{}}}",
        "[".repeat(1900),
        "]".repeat(1900)
    );
    for bad in [
        &b"\xff\xfe"[..],
        b"\0\0\0",
        &deep,
        inside.as_bytes(),
        within.as_bytes(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\\u001b]0;x\\u0007\"}",
        b"\x1b]0;x\x07",
    ] {
        writer.write_all(bad).unwrap();
        writer.write_all(b"\n").unwrap();
        let answer = line(&mut reader);
        assert!(
            answer.starts_with("{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32"),
            "{answer}"
        );
        assert!(!answer.trim_end().contains(char::is_control), "{answer:?}");
    }
    assert_answered(&rig);
}
