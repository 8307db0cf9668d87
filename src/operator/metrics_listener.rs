//! Metrics over HTTP, on one thread that waits for no client. Each connection
//! ends after one answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use super::clients::{Bounds, Client};
use super::http::{self, Asked, HEAD_BYTES};
use super::http_socket::{Listener, Party, Stream};
use super::metrics::Format;
use super::serving::{self, Heard, Service};

use crate::host::sandbox::{self, Kind};

/// What clients may have.
pub(super) const BOUNDS: Bounds = Bounds {
    all: 128,
    each: 64,
    request: HEAD_BYTES,
    answers: 4 << 20,
    asking: Duration::from_secs(5),
    taking: Duration::from_secs(5),
    leaving: Duration::from_secs(1),
    greeting: Duration::ZERO,
};

/// Answers with what `text` tells, on a thread of its own, for the life of
/// the process.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn start(
    listener: Listener,
    text: impl Fn(Format) -> String + Send + 'static,
) -> io::Result<()> {
    listener.never_wait()?;
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
    listener: Listener,
    text: F,
}

impl<F: Fn(Format) -> String + Send + 'static> Service for Metrics<F> {
    type Stream = Stream;
    type Peer = Party;

    const ONE_ANSWER: bool = true;

    fn accept(&self) -> io::Result<(Stream, Party)> {
        self.listener.accept()
    }

    fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn same(one: Party, other: Party) -> bool {
        one == other
    }

    fn hear(&mut self, client: &mut Client<Stream, Party>) -> Heard {
        let received = &client.received;
        if !client.ended && !http::is_whole(received) {
            return Heard::More;
        }
        Heard::Last(answer(received, &self.text))
    }
}

/// The answer to a request head.
pub(crate) fn answer(head: &[u8], text: impl Fn(Format) -> String) -> Vec<u8> {
    match http::read(head) {
        Asked::Metrics(form) => form.answer(&text(form.format)),
        Asked::Other(answer) => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn listening() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        start(Listener::Tcp(listener), |_| "up 1\n# EOF\n".to_owned()).unwrap();
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
    fn a_socket_in_the_file_system_does_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let listener = UnixListener::bind(&path).unwrap();
        start(Listener::Unix(listener), |format| format!("{format:?}\n")).unwrap();
        // Nobody who keeps silent keeps others out.
        let silent: Vec<_> = (0..BOUNDS.each + 9)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        for (accept, format) in [
            ("", "OpenMetrics\n"),
            ("Accept: text/plain\r\n", "Prometheus\n"),
        ] {
            let mut stream = UnixStream::connect(&path).unwrap();
            write!(stream, "GET /metrics HTTP/1.1\r\n{accept}\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with(format), "{answer}");
        }
        drop(silent);
    }
}
