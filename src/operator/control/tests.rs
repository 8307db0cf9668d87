use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};

use serde_json::Value;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// More bytes than a socket takes before they are read.
const LONG: usize = 1 << 20;
const MAP: &str = r#"{"command":"map","range":{"start":0,"end":null},"most":1}"#;

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
            Request::Resize { bytes } => Answer::Error(format!("{bytes} is odd")),
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
    start(listener, Arc::clone(&fake)).unwrap();
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

fn line(reader: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
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
        Answer::Error("1 is odd".into())
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
        "{{\"command\":\"advise\",\"advice\":\"pin\",\"range\":{{\"start\":0,\"end\":null}}}}"
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
    assert_eq!(line(&mut reader), "{\"result\":{\"ended\":true}}\n");
}

#[test]
fn the_lines_are_as_documented_and_a_bad_one_does_not_end_the_connection() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    for bad in [
        "",
        "info",
        "{}",
        "{\"command\":\"dance\"}",
        "{\"command\":\"resize\"}",
        "{\"command\":\"resize\",\"bytes\":-1}",
        "{\"command\":\"info\",\"x\":1}",
        "{\"command\":\"advise\",\"advice\":\"pin\"}",
        "{\"command\":\"advise\",\"advice\":\"hope\",\"range\":{\"start\":0,\"end\":1}}",
        "{\"command\":\"map\",\"range\":{\"start\":-1},\"most\":1}",
        "{\"command\":\"io-path\",\"path\":\"raw\"}",
        "[[[",
        "\u{0}",
    ] {
        writeln!(writer, "{bad}").unwrap();
        let answer = line(&mut reader);
        assert!(
            answer.starts_with("{\"error\":\"not a request: ") && answer.ends_with("\"}\n"),
            "{bad}: {answer}"
        );
    }
    assert_eq!(*rig.fake.seen.lock().unwrap(), []);
    writeln!(
        writer,
        "{{\"command\":\"info\"}}\n{{\"command\":\"resize\",\"bytes\":512}}"
    )
    .unwrap();
    assert_eq!(line(&mut reader), "{\"result\":{\"pid\":7}}\n");
    assert_eq!(line(&mut reader), "{\"result\":null}\n");
}

#[test]
fn a_line_without_end_is_not_collected_for_ever() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    // The connection may be shut before all of it is sent.
    let _ = writer.write_all(&vec![b' '; 1 << 20]);
    assert_eq!(
        line(&mut reader),
        "{\"error\":\"a request is longer than 4096 bytes\"}\n"
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
                let _ = writer.write_all(b"{\"command\":");
            }
            assert_answered(&rig);
            (reader, writer)
        })
        .collect();
    // The one before the last is still among them.
    let (mut reader, mut writer) = connect(&rig);
    assert_answered(&rig);
    writeln!(writer, "{{\"command\":\"info\"}}").unwrap();
    assert_eq!(line(&mut reader), "{\"result\":{\"pid\":7}}\n");
}

#[test]
fn a_hundred_clients_at_once_all_have_their_answers() {
    let rig = rig();
    let mut clients: Vec<_> = (0..100).map(|_| connect(&rig)).collect();
    for (_, writer) in &mut clients {
        writeln!(writer, "{{\"command\":\"info\"}}").unwrap();
    }
    for (reader, _) in &mut clients {
        assert_eq!(line(reader), "{\"result\":{\"pid\":7}}\n");
    }
}

#[test]
fn who_does_not_read_keeps_nobody_waiting_and_little_memory() {
    let rig = rig();
    let mut deaf: Vec<_> = (0..40).map(|_| connect(&rig)).collect();
    for (_, writer) in &mut deaf {
        writeln!(writer, "{MAP}").unwrap();
    }
    assert_answered(&rig);
    // Together they may not keep 40 answers waiting: the first have gone.
    let mut whole = 0;
    for (reader, _) in &mut deaf {
        let mut answer = String::new();
        let read = reader.read_line(&mut answer);
        whole += usize::from(read.is_ok() && answer.ends_with('\n'));
    }
    let most = BOUNDS.answers / LONG;
    assert!((1..=most + 8).contains(&whole), "{whole} of at most {most}");
    assert_answered(&rig);
}

#[test]
fn requests_that_hang_leave_room_for_those_that_need_no_file() {
    let rig = rig();
    let gate = rig.fake.gate.lock().unwrap();
    let mut stuck: Vec<_> = (0..UNDER_WAY_EACH + 5).map(|_| connect(&rig)).collect();
    for (_, writer) in &mut stuck {
        writeln!(writer, "{{\"command\":\"selftest\"}}").unwrap();
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
        assert_eq!(line(reader), "{\"result\":null}\n");
    }
}

#[test]
fn a_client_may_send_all_its_requests_at_once_and_end_its_half() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    let request = "{\"command\":\"info\"}\n";
    writer.write_all(request.repeat(50).as_bytes()).unwrap();
    // The last one has no end.
    writer.write_all(request.trim_end().as_bytes()).unwrap();
    writer.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..51 {
        assert_eq!(line(&mut reader), "{\"result\":{\"pid\":7}}\n");
    }
    assert_eq!(line(&mut reader), "");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    for byte in b"{\"command\":\"info\"}\n" {
        writer.write_all(&[*byte]).unwrap();
        assert_answered(&rig);
    }
    assert_eq!(line(&mut reader), "{\"result\":{\"pid\":7}}\n");
}

#[test]
fn what_is_no_text_or_too_deep_is_refused_in_one_line() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    let deep = "[".repeat(4000).into_bytes();
    let inside = format!("{{\"command\":\"info\",\"x\":{}", "[".repeat(4000));
    for bad in [
        &b"\xff\xfe"[..],
        b"\0\0\0",
        &deep,
        inside.as_bytes(),
        b"\x1b]0;x\x07",
    ] {
        writer.write_all(bad).unwrap();
        writer.write_all(b"\n").unwrap();
        let answer = line(&mut reader);
        assert!(
            answer.starts_with("{\"error\":\"not a request: "),
            "{answer}"
        );
        assert!(!answer.trim_end().contains(char::is_control), "{answer:?}");
    }
    assert_answered(&rig);
}
