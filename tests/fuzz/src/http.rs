//! HTTP heads: one answer, whole and with the right length; the metrics only to who asked for
//! them.
#![no_main]

use arbitrary::Arbitrary;
use extentd::fuzzing::http;
use libfuzzer_sys::fuzz_target;

const BODY: &str = "up 1\n# EOF\n";

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Bytes(&'a [u8]),
    Word(u8),
}

const WORDS: [&str; 12] = [
    "GET ",
    "HEAD ",
    "POST ",
    "/metrics",
    "?a=b",
    " HTTP/1.1",
    " HTTP/1.0",
    "\r\n",
    "\r\n\r\n",
    "Host: x",
    "\n",
    " ",
];

fuzz_target!(|pieces: Vec<Piece<'_>>| {
    let piece = |piece: &Piece<'_>| match *piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        Piece::Word(number) => WORDS[usize::from(number) % WORDS.len()].into(),
    };
    let received: Vec<u8> = pieces.iter().flat_map(piece).collect();
    let answer = String::from_utf8(http(&received, BODY)).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.unwrap().parse().unwrap();
    let without = received.starts_with(b"HEAD ");
    assert_eq!(body.len(), if without { 0 } else { length });
    // The same, from the other end: what a request for the metrics looks like.
    let first = received.split(|&byte| byte == b'\r').next().unwrap_or(&[]);
    let asked = std::str::from_utf8(first).is_ok_and(|first| {
        let words: Vec<&str> = first.split(' ').collect();
        matches!(words[..], ["GET" | "HEAD", target, version]
            if target.split('?').next() == Some("/metrics") && version.starts_with("HTTP/1."))
    });
    if head.starts_with("HTTP/1.1 200 ") {
        assert!(asked && length == BODY.len(), "{head}");
    } else {
        assert!(
            head.starts_with("HTTP/1.1 40") && !body.contains("EOF"),
            "{head}"
        );
    }
});
