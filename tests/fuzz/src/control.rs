//! The control socket: any bytes in any pieces. Each line has one answer, which is one line that
//! no terminal obeys; what is a request comes back as it was understood.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use extentd::fuzzing::{LINE_BYTES, control_socket};
use extentd::protocol::Request;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Bytes(&'a [u8]),
    /// Words that lead further than chance does.
    Word(u8),
    Number(u64),
    Many(u8, u16),
}

const WORDS: [&str; 24] = [
    "\n",
    "{\"command\":\"info\"}\n",
    "{\"command\":\"stats\"}\n",
    "{\"command\":\"selftest\"}",
    "{\"command\":\"resize\",\"bytes\":",
    "{\"command\":\"advise\",\"advice\":\"pin\",\"range\":",
    "{\"command\":\"map\",\"most\":1,\"range\":",
    "{\"command\":\"io-path\",\"path\":\"auto\"}",
    "{\"start\":0,\"end\":null}",
    "{\"start\":",
    ",\"end\":",
    ",\"most\":",
    "}",
    "}}\n",
    "[",
    "]",
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

/// What has to be answered: a request or nothing for each line, up to one that is too long.
fn expected(all: &[u8]) -> Vec<Option<Request>> {
    let mut answers = Vec::new();
    for line in all.split_inclusive(|&byte| byte == b'\n') {
        if line.len() > LINE_BYTES || (line.len() == LINE_BYTES && !line.ends_with(b"\n")) {
            answers.push(None);
            break;
        }
        answers.push(serde_json::from_slice(line).ok());
    }
    answers
}

static SOCKET: LazyLock<SocketAddr> = LazyLock::new(|| {
    let name = format!("extentd-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    control_socket(&address);
    address
});

/// As [`bytes`], sent by one who reads as well, and all answers.
fn converse(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = UnixStream::connect_addr(&SOCKET).unwrap();
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut answers = Vec::new();
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
    let answers = converse(&pieces);
    let expected = expected(&pieces.concat());
    let mut lines = answers.split_inclusive(|&byte| byte == b'\n');
    for request in &expected {
        let line = lines.next().expect("an answer is missing");
        assert!(line.ends_with(b"\n"), "half an answer");
        let text = std::str::from_utf8(&line[..line.len() - 1]).unwrap();
        assert!(!text.contains(|c: char| c < ' '), "{text:?}");
        let answer: Value = serde_json::from_str(text).unwrap();
        match request {
            Some(request) => {
                let echo = serde_json::to_value(request).unwrap();
                assert_eq!(answer["result"][0], echo);
            }
            None => assert!(answer["error"].is_string(), "{answer}"),
        }
    }
    assert_eq!(lines.next(), None, "an answer too many");
    settle();
});
