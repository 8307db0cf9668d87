//! Metrics over HTTP: one thread, one client at a time, each for a bounded
//! time and with a bounded request. It knows GET and HEAD of `/metrics`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Longest request head in bytes.
const HEAD_BYTES: usize = 8 << 10;
/// Longest that a client may take for its request, and for taking its answer.
const PATIENCE: Duration = Duration::from_secs(2);

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An address from `127.0.0.1:9100`, `[::1]:9100`, or `9100` for loopback.
///
/// # Errors
/// It is something else.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        format!("'{text}' is not ADDRESS:PORT: give for example 127.0.0.1:9100, or 9100 for that")
    })
}

/// Answers with what `text` tells, on a thread of its own, for the life of
/// the process.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn start(
    listener: TcpListener,
    text: impl Fn() -> String + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            loop {
                let served = listener
                    .accept()
                    .map(|(stream, _)| serve(stream, PATIENCE, &text));
                match served {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => log::debug!("metrics client: {error}"),
                    Err(error) => {
                        log::warn!("metrics: {error}");
                        // Out of descriptors: it would fail at once again.
                        thread::sleep(Duration::from_millis(200));
                    }
                }
            }
        })?;
    Ok(())
}

fn serve(mut stream: TcpStream, patience: Duration, text: impl Fn() -> String) -> io::Result<()> {
    let head = read_head(&mut stream, patience)?;
    let (status, kind, body) = match request(&head) {
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
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(answer.as_bytes())
}

/// Reads up to the empty line, for as long as patience lasts in all.
fn read_head(stream: &mut TcpStream, patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut head = vec![0; HEAD_BYTES];
    let mut length = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut head[length..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        length += count;
        let ended = head[..length].windows(4).any(|end| end == b"\r\n\r\n");
        // A full buffer reads nothing more: no request is that long.
        if ended || count == 0 {
            head.truncate(length);
            return Ok(head);
        }
    }
}

/// The method and the path of a whole request head.
fn request(head: &[u8]) -> Option<(&str, &str)> {
    let head = std::str::from_utf8(head).ok()?;
    let (first, _) = head.split_once("\r\n")?;
    let mut words = first.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let whole = head.contains("\r\n\r\n") && words.next().is_none();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    (whole && version.starts_with("HTTP/1.")).then_some((method, path))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn who_says_nothing_is_left() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let error = serve(stream, Duration::from_millis(20), String::new).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
            ),
            "{error}"
        );
    }

    #[test]
    fn a_port_alone_is_loopback() {
        for (text, address) in [
            ("9100", "127.0.0.1:9100"),
            ("[::1]:9100", "[::1]:9100"),
            ("0.0.0.0:1", "0.0.0.0:1"),
        ] {
            assert_eq!(parse_address(text), Ok(address.parse().unwrap()));
        }
        for text in ["", "localhost:9100", "1.2.3.4", "65536", ":9100"] {
            parse_address(text).unwrap_err();
        }
    }
}
