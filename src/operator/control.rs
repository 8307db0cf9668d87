//! The control socket: takes requests line by line, and answers each. What is
//! said there is in [`protocol`](crate::protocol).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::host::socket::{self, Access, SocketError, SocketFile};
pub use crate::protocol::{Answer, Request};

/// Most connections at a time.
const CONNECTIONS: usize = 16;
/// Longest request line in bytes, with its end.
const LINE_BYTES: u64 = 64 << 10;
/// A connection that asks for nothing this long is closed, so that forgotten
/// ones do not keep others out.
const IDLE: Duration = Duration::from_secs(300);
/// A client that does not take its answer this long is left.
const ANSWER: Duration = Duration::from_secs(10);

/// What carries out requests; called from several threads.
pub(crate) trait Controlled: Send + Sync + 'static {
    /// What it says when it has done so.
    type Done: Serialize;

    /// Carries out one request.
    fn carry_out(&self, request: Request) -> Answer<Self::Done>;
}

/// Binds the control socket (mode 0600).
///
/// # Errors
/// As [`socket::bind`].
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    socket::bind(path, Access::Owner, "--control-path")
}

/// Serves the control socket on a thread of its own, for the life of the
/// process.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn start(listener: UnixListener, target: Arc<impl Controlled>) -> io::Result<()> {
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || accept(&listener, &target))?;
    Ok(())
}

/// Counts a connection while it lives.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn accept<C: Controlled>(listener: &UnixListener, target: &Arc<C>) {
    let taken = Arc::new(AtomicUsize::new(0));
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("control socket: {error}");
                // Out of descriptors or memory: it would fail at once again.
                thread::sleep(Duration::from_millis(200));
                continue;
            }
        };
        // Only this thread adds, so the bound holds.
        let before = taken.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&taken));
        if before >= CONNECTIONS {
            let busy = Answer::<()>::Error(format!(
                "all {CONNECTIONS} control connections are in use: try again later"
            ));
            // It is closed in any case; whether this arrives is for its client.
            let _ = stream
                .set_write_timeout(Some(Duration::from_millis(100)))
                .and_then(|()| reply(&mut stream, &busy));
            continue;
        }
        let target = Arc::clone(target);
        let started = thread::Builder::new()
            .name("control-conn".to_owned())
            .spawn(move || {
                if let Err(error) = converse(stream, &*target) {
                    log::debug!("control connection: {error}");
                }
                drop(place);
            });
        if let Err(error) = started {
            log::warn!("control socket: no thread for a connection: {error}");
        }
    }
}

/// Answers requests until the client leaves.
fn converse(stream: UnixStream, target: &impl Controlled) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader
            .by_ref()
            .take(LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        match line.last() {
            None => return Ok(()),
            Some(b'\n') => {}
            Some(_) if line.len() as u64 == LINE_BYTES => {
                // Where the next request begins is unknown from here on.
                return reply(
                    &mut writer,
                    &Answer::<()>::Error(format!("a request is longer than {LINE_BYTES} bytes")),
                );
            }
            // A last line without an end is still a request.
            Some(_) => {}
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => target.carry_out(request),
            Err(error) => Answer::Error(format!("not a request: {error}")),
        };
        reply(&mut writer, &answer)?;
    }
}

fn reply(writer: &mut UnixStream, answer: &Answer<impl Serialize>) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// Sends one request to the control socket at `path`, and waits for the
/// answer.
///
/// # Errors
/// Nobody listens there, or no answer comes within `timeout`.
pub fn ask(path: &Path, request: &Request, timeout: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // One that has no place for us answers and leaves without reading.
    let sent = stream.write_all(&line);
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", timeout.as_secs()),
        )),
        Err(error) => Err(error),
        Ok(0) => {
            sent?;
            Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was closed without an answer",
            ))
        }
        Ok(_) => Ok(serde_json::from_str(&answer)?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::{Mutex, mpsc};

    use serde_json::Value;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Remembers what it was asked, refuses odd sizes, and takes as long for
    /// advice as the test does to hang up.
    #[derive(Default)]
    struct Fake {
        seen: Mutex<Vec<Request>>,
        slow: Mutex<Option<mpsc::Receiver<()>>>,
    }

    impl Controlled for Fake {
        type Done = Value;

        fn carry_out(&self, request: Request) -> Answer {
            self.seen.lock().unwrap().push(request.clone());
            match request {
                Request::Info {} => Answer::Result(serde_json::json!({ "pid": 7 })),
                Request::Resize { bytes } if bytes % 512 == 0 => Answer::Result(Value::Null),
                Request::Resize { bytes } => Answer::Error(format!("{bytes} is odd")),
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
        writer
            .write_all(&vec![b' '; usize::try_from(LINE_BYTES).unwrap()])
            .unwrap();
        assert_eq!(
            line(&mut reader),
            "{\"error\":\"a request is longer than 65536 bytes\"}\n"
        );
        assert_eq!(line(&mut reader), "");
    }

    #[test]
    fn connections_are_bounded_and_places_come_back() {
        let rig = rig();
        let mut held: Vec<_> = (0..CONNECTIONS).map(|_| connect(&rig)).collect();
        for (reader, writer) in &mut held {
            writeln!(writer, "{{\"command\":\"info\"}}").unwrap();
            assert_eq!(line(reader), "{\"result\":{\"pid\":7}}\n");
        }
        let refused = ask(&rig.path, &Request::Info {}, PATIENCE).unwrap();
        assert!(
            matches!(&refused, Answer::Error(text) if text.contains("all 16")),
            "{refused:?}"
        );
        drop(held);
        // The threads notice in their own time.
        let start = std::time::Instant::now();
        while matches!(
            ask(&rig.path, &Request::Info {}, PATIENCE).unwrap(),
            Answer::Error(_)
        ) {
            assert!(start.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(5));
        }
    }
}
