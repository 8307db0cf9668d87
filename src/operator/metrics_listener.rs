//! Metrics over HTTP, on one thread that waits for no client. It knows GET and
//! HEAD of `/metrics`, and ends each connection after one answer.

use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use super::clients::{Bounds, Client};
use super::events::Subscription;
use super::serving::{self, Greeting, Heard, Service};

use crate::host::sandbox::{self, Kind};

/// Longest request head in bytes.
const HEAD_BYTES: usize = 8 << 10;

const BOUNDS: Bounds = Bounds {
    all: 128,
    each: 64,
    request: HEAD_BYTES,
    answers: 4 << 20,
    asking: Duration::from_secs(5),
    taking: Duration::from_secs(5),
    leaving: Duration::from_secs(1),
    greeting: Duration::ZERO,
};

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers with what `text` tells, on a thread of its own, for the life of
/// the process.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn start(
    listener: TcpListener,
    text: impl Fn() -> String + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let metrics = Metrics { listener, text };
    thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            sandbox::enter(Kind::Metrics);
            serving::serve(metrics, BOUNDS, "metrics");
        })?;
    Ok(())
}

struct Metrics<F> {
    listener: TcpListener,
    text: F,
}

impl<F: Fn() -> String + Send + 'static> Service for Metrics<F> {
    type Stream = TcpStream;
    type Peer = IpAddr;

    fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, address) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok((stream, party(address.ip())))
    }

    fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn same(one: IpAddr, other: IpAddr) -> bool {
        one == other
    }

    fn greet(&self, _: IpAddr) -> Greeting {
        Greeting::None
    }

    fn hear(&mut self, client: &mut Client<TcpStream, IpAddr>) -> Heard {
        let received = &client.received;
        let whole = received.windows(4).any(|end| end == b"\r\n\r\n");
        if !whole && !client.ended && received.len() < HEAD_BYTES {
            return Heard::More;
        }
        Heard::Last(answer(received, &self.text))
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn news(&self, _: &mut Subscription) -> Vec<u8> {
        Vec::new()
    }

    fn finished(&mut self) -> Vec<(u64, Vec<u8>)> {
        Vec::new()
    }
}

/// Whom an address belongs to: of version 6, one party has all with the same
/// first half.
fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << u64::BITS)).into()
        }
    }
}

/// The answer to a request head.
pub(crate) fn answer(head: &[u8], text: impl Fn() -> String) -> Vec<u8> {
    let (status, kind, body) = match request(head) {
        None => (
            "400 Bad Request",
            TEXT,
            "this is no HTTP request\n".to_owned(),
        ),
        Some(("GET" | "HEAD", "/metrics")) => ("200 OK", OPEN_METRICS, text()),
        Some(("GET" | "HEAD", _)) => (
            "404 Not Found",
            TEXT,
            "there is only /metrics here\n".to_owned(),
        ),
        Some(_) => (
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            TEXT,
            "there is only GET here\n".to_owned(),
        ),
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !head.starts_with(b"HEAD ") {
        answer.push_str(&body);
    }
    answer.into_bytes()
}

/// The method and the path of a request, by its first line: what follows the
/// empty line is not looked at.
fn request(received: &[u8]) -> Option<(&str, &str)> {
    let end = received.windows(4).position(|end| end == b"\r\n\r\n")?;
    let head = std::str::from_utf8(received.get(..end)?).ok()?;
    let first = head.split("\r\n").next()?;
    let mut words = first.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    (words.next().is_none() && version.starts_with("HTTP/1.")).then_some((method, path))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn listening() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        start(listener, || "up 1\n# EOF\n".to_owned()).unwrap();
        address
    }

    fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn metrics_are_told_and_nothing_else() {
        let address = listening();
        let whole = "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
                     Content-Length: 11\r\nConnection: close\r\n\r\nup 1\n# EOF\n";
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(exchange(address, get("/metrics").as_bytes()), whole);
        assert_eq!(exchange(address, get("/metrics?a=b").as_bytes()), whole);
        assert_eq!(
            exchange(address, b"HEAD /metrics HTTP/1.0\r\n\r\n"),
            whole.split_inclusive("\r\n\r\n").next().unwrap()
        );
        for (request, status) in [
            (get("/"), "404"),
            (get("/metrics/"), "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n".into(), "405"),
            (String::new(), "400"),
            ("GET /metrics\r\n\r\n".into(), "400"),
            ("GET /metrics HTTP/1.1\r\n".into(), "400"),
            ("GET  /metrics HTTP/1.1\r\n\r\n".into(), "400"),
            ("\r\n\r\n".into(), "400"),
        ] {
            let answer = exchange(address, request.as_bytes());
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:?}: {answer}"
            );
        }
    }

    #[test]
    fn a_request_without_end_is_not_collected_for_ever() {
        let address = listening();
        let mut request = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        request.resize(HEAD_BYTES, b'x');
        assert!(exchange(address, &request).starts_with("HTTP/1.1 400 "));
    }

    const GET: &[u8] = b"GET /metrics HTTP/1.1\r\n\r\n";

    fn assert_scraped(address: SocketAddr) {
        let answer = exchange(address, GET);
        assert!(answer.ends_with("up 1\n# EOF\n"), "{answer}");
    }

    #[test]
    fn half_requests_of_many_keep_nobody_waiting() {
        let address = listening();
        let mut held = Vec::new();
        for _ in 0..BOUNDS.all + 20 {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /metrics HT").unwrap();
            held.push(stream);
            // Far less than any of them is given.
            assert_scraped(address);
        }
    }

    #[test]
    fn who_never_reads_or_sends_more_than_a_request_harms_nobody() {
        let address = listening();
        let mut held = Vec::new();
        for more in [&b""[..], GET, &[b'x'; 100_000]] {
            for _ in 0..20 {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(GET).unwrap();
                // It may be left before it has sent all.
                let _ = stream.write_all(more);
                held.push(stream);
            }
            assert_scraped(address);
        }
        // What is sent behind a request does not cost its answer.
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&GET.repeat(300)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("up 1\n# EOF\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1);
    }

    #[test]
    fn a_request_may_come_byte_by_byte_between_others() {
        let address = listening();
        let mut slow = TcpStream::connect(address).unwrap();
        for byte in GET {
            slow.write_all(&[*byte]).unwrap();
            assert_scraped(address);
        }
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[test]
    fn addresses_of_one_party_count_together() {
        let one = |text: &str| party(text.parse().unwrap());
        assert_eq!(one("2001:db8::1"), one("2001:db8::ffff:1"));
        assert_ne!(one("2001:db8::1"), one("2001:db8:0:1::1"));
        assert_eq!(one("::ffff:10.0.0.1"), one("10.0.0.1"));
        assert_ne!(one("10.0.0.1"), one("10.0.0.2"));
    }
}
