//! A metrics port that is asked for something else, slowly or not at all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use super::messages::noise;
use crate::suite::site::Site;
use crate::suite::{Case, case};

fn connect(site: &Site) -> TcpStream {
    let stream = TcpStream::connect(site.metrics.unwrap()).unwrap();
    stream.set_read_timeout(Some(front_end::limit())).unwrap();
    stream.set_write_timeout(Some(front_end::limit())).unwrap();
    stream
}

/// What comes back, with what was sent ended or not.
fn exchange(site: &Site, request: &[u8], end: bool) -> String {
    let mut stream = connect(site);
    let _ = stream.write_all(request);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A right question is answered.
fn scrape(site: &Site) {
    let answer = exchange(site, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"));
}

fn row(name: &'static str, requests: fn() -> Vec<Vec<u8>>) -> Case {
    case(name, move |site: &Site| {
        for request in requests() {
            let answer = exchange(site, &request, true);
            assert!(!answer.contains(" 200 "), "{answer}");
        }
        scrape(site);
    })
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn cases() -> Vec<Case> {
    vec![
        row("a scrape is no HTTP", || {
            vec![
                vec![],
                b"\r\n\r\n".to_vec(),
                vec![0; 4096],
                noise(6, 4096),
                vec![0xff; 100],
            ]
        }),
        row("a scrape asks for something else", || {
            texts(&[
                "GET / HTTP/1.1\r\n\r\n",
                "GET /../../etc/passwd HTTP/1.1\r\n\r\n",
                "GET //metrics HTTP/1.1\r\n\r\n",
                "GET /metrics%00 HTTP/1.1\r\n\r\n",
                "POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                "CONNECT localhost:22 HTTP/1.1\r\n\r\n",
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ])
        }),
        row("the head of a scrape is too long", || {
            let long = |count| format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(count));
            vec![long(8192).into_bytes(), long(100_000).into_bytes()]
        }),
        case("a scrape comes byte by byte", |site| {
            let mut stream = connect(site);
            for byte in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" {
                stream.write_all(&[*byte]).unwrap();
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("# EOF\n"), "{answer}");
        }),
        case("scrapes go before they are answered", |site| {
            for _ in 0..site.rounds(200) {
                let _ = connect(site).write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            }
            scrape(site);
        }),
        case(
            "twenty half scrapes keep a whole one waiting for no longer than they live",
            |site| {
                let half = |_| {
                    let mut stream = connect(site);
                    stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
                    stream
                };
                let all: Vec<_> = (0..20).map(half).collect();
                drop(all);
                scrape(site);
            },
        ),
        case("a scrape is pipelined a thousand times", |site| {
            let many = "GET /metrics HTTP/1.1\r\n\r\n".repeat(1000);
            exchange(site, many.as_bytes(), true);
            scrape(site);
        }),
    ]
}
