//! A control socket that is not told what it expects. Only the owner can
//! connect; but what it reads may come from elsewhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rig::operator::call;

use super::messages::noise;
use crate::suite::site::Site;
use crate::suite::{Case, case};

fn connect(site: &Site) -> UnixStream {
    let stream = UnixStream::connect(site.control.as_ref().unwrap()).unwrap();
    stream.set_read_timeout(Some(front_end::limit())).unwrap();
    stream.set_write_timeout(Some(front_end::limit())).unwrap();
    stream
}

/// A line that must be answered by a line that is an error, or by the end.
fn refused(site: &Site, line: &[u8]) {
    let mut stream = connect(site);
    // The other side may have had enough before the end.
    let _ = stream
        .write_all(line)
        .and_then(|()| stream.write_all(b"\n"));
    let mut reader = BufReader::new(&stream);
    let [_hello, answer] = [(); 2].map(|()| {
        let mut line = Vec::new();
        let _ = reader.read_until(b'\n', &mut line);
        String::from_utf8_lossy(&line).into_owned()
    });
    assert!(
        answer.is_empty() || answer.contains("\"error\":"),
        "{answer}"
    );
}

fn row(name: &'static str, lines: fn() -> Vec<Vec<u8>>) -> Case {
    case(name, move |site: &Site| {
        for line in lines() {
            refused(site, &line);
        }
        let info = rig::operator::info(site.control.as_ref().unwrap());
        assert!(info["pid"].is_u64());
    })
}

fn texts(lines: &[&str]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

fn calls(of: &[(&str, &str)]) -> Vec<Vec<u8>> {
    let calls = of.iter().map(|(method, params)| call(method, params));
    calls.map(String::into_bytes).collect()
}

pub fn cases() -> Vec<Case> {
    vec![
        row("a command is no JSON", || {
            texts(&["", "info", "{", "}", "{\"jsonrpc\"", "nul", "\u{0}"])
        }),
        row("a command is another kind of JSON", || {
            texts(&[
                "null",
                "1",
                "[]",
                "\"info\"",
                "{}",
                "[{\"method\":\"info\"}]",
                "{\"jsonrpc\":\"2.0\"}",
                "1e999",
            ])
        }),
        row("a command is not known", || {
            calls(&[("", "{}"), ("stop", "{}"), ("INFO", "{}"), ("rpc.", "{}")])
        }),
        row("a command has keys that nobody knows", || {
            let mut all = calls(&[
                ("info", "{\"more\":1}"),
                ("rpc.discover", "{\"more\":1}"),
                ("resize", "{\"bytes\":4194304,\"force\":true}"),
                ("resize", "{\"bytes\":4194304,\"bytes\":4194304}"),
            ]);
            let info = call("info", "{}");
            all.push(info.replace("\"id\"", "\"force\":1,\"id\"").into());
            all.push(info.replace("\"id\":1", "\"id\":1,\"id\":1").into());
            all
        }),
        row("a command has values of the wrong type", || {
            let mut all = calls(&[
                ("resize", "{\"bytes\":\"4M\"}"),
                ("resize", "{\"bytes\":-1}"),
                ("resize", "{\"bytes\":1.5}"),
                ("resize", "{\"bytes\":1e30}"),
                ("resize", "{}"),
                ("resize", "[4194304]"),
                ("info", "null"),
                ("info", "7"),
                ("map", "{\"range\":[1,0],\"most\":1}"),
                ("map", "{\"range\":\"all\",\"most\":0}"),
                ("map", "{\"range\":\"all\",\"most\":4294967295}"),
                ("map", "{\"range\":\"all\",\"most\":-1}"),
                ("map", "{\"range\":\"9..1\",\"most\":1}"),
                ("advise", "{\"advice\":\"burn\",\"range\":\"all\"}"),
                ("io-path", "{\"path\":\"moon\"}"),
            ]);
            let info = call("info", "{}");
            for id in ["[]", "{}", "true", "{\"id\":1}"] {
                all.push(info.replace("\"id\":1", &format!("\"id\":{id}")).into());
            }
            for version in ["2", "2.0", "\"1.0\"", "null"] {
                all.push(info.replace("\"2.0\"", version).into());
            }
            all.push(info.replace("\"info\"", "{\"info\":{}}").into());
            all
        }),
        row("a disk is to have a size that it cannot have", || {
            calls(&[
                ("resize", "{\"bytes\":0}"),
                ("resize", "{\"bytes\":1}"),
                ("resize", "{\"bytes\":513}"),
                ("resize", "{\"bytes\":18446744073709551615}"),
                ("resize", "{\"bytes\":9223372036854775808}"),
            ])
        }),
        row(
            "a batch has nothing in it, nonsense, or more than may be",
            || {
                let info = call("info", "{}");
                let many = vec![info.as_str(); 40].join(",");
                texts(&["[]", "[1,2,3]", "[[]]", "[{}]", &format!("[{many}]")])
            },
        ),
        row("a command is nested as deep as there is room", || {
            vec![
                vec![b'['; 60_000],
                "{\"a\":".repeat(10_000).into_bytes(),
                [b"{\"jsonrpc\":".to_vec(), vec![b'['; 50_000]].concat(),
                call("map", &["[".repeat(1900), "]".repeat(1900)].concat()).into(),
            ]
        }),
        row("a command is a line without end", || {
            vec![
                vec![b'x'; 65535],
                vec![b'x'; 65536],
                vec![b' '; 1 << 20],
                noise_lines(),
            ]
        }),
        row("a command is no text", || {
            vec![
                vec![0xff; 100],
                b"{\"method\":\"\xc3\x28\"}".to_vec(),
                b"{\"method\":\"\\ud800\"}".to_vec(),
                b"\xef\xbb\xbf{\"method\":\"nothing\"}".to_vec(),
            ]
        }),
        case("a command comes byte by byte", |site| {
            let mut stream = connect(site);
            for byte in format!("{}\n", call("info", "{}")).as_bytes() {
                stream.write_all(&[*byte]).unwrap();
            }
            let mut answer = String::new();
            let mut reader = BufReader::new(&stream);
            for _ in 0..2 {
                reader.read_line(&mut answer).unwrap();
            }
            assert!(answer.contains("\"pid\""), "{answer}");
        }),
        case("answers are not read", |site| {
            let mut stream = connect(site);
            stream
                .set_write_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            let many = format!("{}\n", call("info", "{}")).repeat(100);
            while stream.write_all(many.as_bytes()).is_ok() {}
        }),
        case("operators go in the middle of a command", |site| {
            for _ in 0..site.rounds(200) {
                connect(site).write_all(b"{\"method\":").unwrap();
            }
        }),
        case("a hundred operators connect and say nothing", |site| {
            let all: Vec<_> = (0..100).map(|_| connect(site)).collect();
            drop(all);
        }),
        case("an operator asks a thousand times", |site| {
            let mut stream = connect(site);
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut String::new()).unwrap();
            let stats = format!("{}\n", call("stats", "{}"));
            for _ in 0..site.rounds(1000) {
                stream.write_all(stats.as_bytes()).unwrap();
                let mut answer = String::new();
                reader.read_line(&mut answer).unwrap();
                assert!(answer.contains("result"), "{answer}");
            }
        }),
        case("an operator speaks vhost-user", |site| {
            let mut stream = connect(site);
            stream
                .write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'\n'])
                .unwrap();
            let mut byte = [0];
            let _ = stream.read(&mut byte);
        }),
    ]
}

/// Noise without a line's end in it.
fn noise_lines() -> Vec<u8> {
    noise(4, 60_000)
        .into_iter()
        .filter(|&byte| byte != b'\n')
        .collect()
}
