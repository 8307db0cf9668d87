//! The control socket: any bytes in any pieces. After the greeting each line has one answer, or
//! none where it only notifies; that is one line that no terminal obeys, with the ids as they were
//! sent, and what is a request comes back as it was understood.
#![no_main]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use extentd::fuzzing::{LINE_BYTES, control_socket};
use extentd::protocol::requests::OfConnection;
use extentd::protocol::rpc::{self, Call, Form, Line, Method};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Bytes(&'a [u8]),
    /// Words that lead further than chance does.
    Word(u8),
    Number(u64),
    Many(u8, u16),
}

const WORDS: [&str; 29] = [
    "\n",
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"info\"}\n",
    "{\"jsonrpc\":\"2.0\",\"method\":\"stats\"}\n",
    "{\"jsonrpc\":\"2.0\",\"id\":",
    "{\"command\":\"info\"}\n",
    "{\"command\":\"resize\",\"bytes\":",
    "\"method\":\"resize\",\"params\":{\"bytes\":",
    "\"method\":\"advise\",\"params\":{\"advice\":\"pin\",\"range\":",
    "\"method\":\"map\",\"params\":{\"most\":1,\"range\":",
    "\"method\":\"io-path\",\"params\":{\"path\":\"auto\"}",
    "\"method\":\"rpc.discover\"",
    "\"method\":\"selftest\"",
    "\"method\":\"subscribe\",\"params\":{\"kinds\":",
    "{\"start\":0,\"end\":null}",
    "{\"start\":",
    ",\"end\":",
    "}",
    "}}\n",
    "[",
    "]",
    "]\n",
    "\"",
    "\\u0000",
    "\\ud800",
    ",",
    ":",
    "null",
    "-1",
    "1e999",
];

fn bytes(pieces: &[Piece<'_>]) -> Vec<Vec<u8>> {
    let piece = |piece: &Piece<'_>| match *piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        Piece::Word(number) => WORDS[usize::from(number) % WORDS.len()].into(),
        Piece::Number(number) => number.to_string().into(),
        Piece::Many(byte, count) => vec![byte; usize::from(count) % 5000],
    };
    pieces.iter().take(64).map(piece).collect()
}

/// The lines that have to be answered, up to one that is too long, and whether the connection
/// stays at the end, as somebody has subscribed.
fn expected(all: &[u8]) -> (Vec<Option<Line>>, bool) {
    let mut answers = Vec::new();
    let mut stays = false;
    for line in all.split_inclusive(|&byte| byte == b'\n') {
        if line.len() > LINE_BYTES || (line.len() == LINE_BYTES && !line.ends_with(b"\n")) {
            answers.push(None);
            stays = false;
            break;
        }
        let line = rpc::read(line);
        for call in &line.calls {
            if let Ok(Method::Connection(OfConnection::Subscribe { kinds })) = &call.method {
                stays = kinds.as_ref().is_none_or(|kinds| !kinds.is_empty());
            }
        }
        if line.calls.iter().any(|call| call.id.is_some()) {
            answers.push(Some(line));
        }
    }
    (answers, stays)
}

/// So begins a greeting.
const HELLO: &[u8] = b"{\"jsonrpc\":\"2.0\",\"method\":\"hello\",";

/// An answer in 0.1.0's form says what was asked.
fn check_command(answer: &str, call: &Call) {
    let whole: Value = serde_json::from_str(answer).unwrap();
    assert_eq!(whole.as_object().unwrap().len(), 1, "{answer}");
    match &call.method {
        Ok(Method::Disk(request)) => {
            assert_eq!(whole["result"][0], serde_json::to_value(request).unwrap());
        }
        Ok(Method::Connection(_)) => panic!("{answer}: that is not in this form"),
        Err(failure) => assert_eq!(whole["error"], failure.message, "{answer}"),
    }
}

/// An answer says what was asked, and of which id it is.
fn check(answer: &str, call: &Call) {
    let whole: Value = serde_json::from_str(answer).unwrap();
    assert_eq!(whole["jsonrpc"], "2.0");
    let id = call.id.as_ref().unwrap().get();
    assert!(answer.ends_with(&format!(",\"id\":{id}}}")), "{answer}");
    match &call.method {
        Ok(Method::Disk(request)) => {
            assert_eq!(whole["result"][0], serde_json::to_value(request).unwrap());
        }
        Ok(Method::Connection(_)) => assert!(whole["result"].is_object(), "{answer}"),
        Err(failure) => {
            assert_eq!(whole["error"], serde_json::to_value(failure).unwrap());
            assert!(failure.code < 0, "{answer}");
        }
    }
}

static SOCKET: LazyLock<SocketAddr> = LazyLock::new(|| {
    let name = format!("extentd-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    control_socket(&address);
    address
});

/// As [`bytes`], sent by one who reads as well, and all answers: so many lines where the connection
/// stays, or else all up to the end. A greeting is one more than `unless_greeted`.
fn converse(pieces: &[Vec<u8>], stays: Option<usize>, unless_greeted: usize) -> Vec<u8> {
    let mut stream = UnixStream::connect_addr(&SOCKET).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut answers = Vec::new();
            if let Some(count) = stays {
                for _ in 0..count {
                    reader.read_until(b'\n', &mut answers).unwrap();
                }
                if count == unless_greeted && answers.starts_with(HELLO) {
                    reader.read_until(b'\n', &mut answers).unwrap();
                }
                return answers;
            }
            // Reset where it was left before all was sent.
            let _ = reader.read_to_end(&mut answers);
            answers
        });
        for piece in pieces {
            if stream.write_all(piece).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        reading.join().unwrap()
    })
}

/// Until no thread is left that has carried a request out: what one has while it ends, a look for
/// leaks would take for lost.
fn settle() {
    let ends = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")));
        names.flatten().any(|name| name.trim() == "control-conn")
    };
    while ends() {
        std::thread::yield_now();
    }
}

fuzz_target!(|pieces: Vec<Piece<'_>>| {
    let pieces = bytes(&pieces);
    let whole = pieces.concat();
    let (expected, stays) = expected(&whole);
    // Who begins in 0.1.0's form is greeted only where it was slow.
    let first = whole.split_inclusive(|&byte| byte == b'\n').next();
    let may_lack = first.is_some_and(|line| rpc::read(line).form == Form::Command);
    let greeted = usize::from(!may_lack);
    let answers = converse(
        &pieces,
        stays.then_some(expected.len() + greeted),
        expected.len(),
    );
    let mut lines = answers.split_inclusive(|&byte| byte == b'\n').peekable();
    if lines.peek().is_some_and(|line| line.starts_with(HELLO)) {
        lines.next();
    } else {
        assert!(may_lack, "no greeting");
    }
    let mut next = || {
        let line = lines.next()?;
        assert!(line.ends_with(b"\n"), "half an answer");
        let text = std::str::from_utf8(&line[..line.len() - 1]).unwrap();
        assert!(!text.contains(|c: char| c < ' '), "{text:?}");
        Some(text)
    };
    for line in &expected {
        let text = next().expect("an answer is missing");
        let Some(line) = line else {
            assert!(text.contains("\"error\":{\"code\":-32600,"), "{text}");
            continue;
        };
        let calls: Vec<&Call> = line.calls.iter().filter(|call| call.id.is_some()).collect();
        if line.form == Form::Command {
            check_command(text, calls[0]);
        } else if line.form == Form::Batch {
            let answers: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            assert_eq!(answers.len(), calls.len(), "{text}");
            for (answer, call) in answers.into_iter().zip(calls) {
                check(answer.get(), call);
            }
        } else {
            check(text, calls[0]);
        }
    }
    assert_eq!(next(), None, "an answer too many");
    settle();
});
