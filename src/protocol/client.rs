//! The other end of a control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::events::{EVENT, EventKind};
use super::failure::Failure;
use super::hello::{HELLO, Hello, PROTOCOL};
use super::requests::OfConnection;
use super::{Answer, Request};

/// A connection to an extentd.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    /// Of the last call.
    number: u64,
    /// Nothing may take longer.
    patience: Duration,
}

/// A line from there.
#[derive(Deserialize)]
struct Incoming {
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Option<Failure>,
    #[serde(default)]
    id: Value,
}

impl Client {
    /// Connects; nothing is said yet. No answer may take longer than
    /// `patience`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            reader: BufReader::new(stream),
            number: 0,
            patience,
        })
    }

    /// Calls a method, and waits for its answer.
    ///
    /// # Errors
    /// No answer comes, or it is not what an extentd says.
    pub fn call(&mut self, call: &impl Serialize) -> io::Result<Answer> {
        self.number = self.number.saturating_add(1);
        let line = line(call, self.number)?;
        // One that has no place for us answers and leaves without reading.
        let sent = self.reader.get_mut().write_all(&line);
        loop {
            let Some(incoming) = self.hear()? else {
                sent?;
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection was closed without an answer",
                ));
            };
            if let Some(answer) = incoming.answer(self.number)? {
                return Ok(answer);
            }
        }
    }

    /// Has events told from now on, those of these kinds or all.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn subscribe(&mut self, kinds: Option<Vec<EventKind>>) -> io::Result<Answer> {
        self.call(&OfConnection::Subscribe { kinds })
    }

    /// Waits for the next event; `None` when extentd has gone. It is a
    /// [`Told`](super::events::Told), if this program knows its kind.
    ///
    /// # Errors
    /// None comes within `patience`, or what comes is not what an extentd says.
    pub fn next_event(&mut self, patience: Option<Duration>) -> io::Result<Option<Value>> {
        self.reader.get_ref().set_read_timeout(patience)?;
        loop {
            match self.hear() {
                Ok(Some(incoming)) if incoming.method.as_deref() == Some(EVENT) => {
                    return Ok(Some(incoming.params));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line; `None` at the end.
    fn hear(&mut self) -> io::Result<Option<Incoming>> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", self.patience.as_secs()),
            )),
            Err(error) => Err(error),
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}

/// A call as it is sent.
///
/// # Errors
/// It cannot be written so.
pub(crate) fn line(call: &impl Serialize, id: u64) -> io::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Sent<'a, T> {
        jsonrpc: &'static str,
        #[serde(flatten)]
        call: &'a T,
        id: u64,
    }
    let mut line = serde_json::to_vec(&Sent {
        jsonrpc: "2.0",
        call,
        id,
    })?;
    line.push(b'\n');
    Ok(line)
}

/// The answer to the call with this number, if that line is it.
///
/// # Errors
/// It is not what an extentd says.
pub(crate) fn understand(line: &[u8], id: u64) -> io::Result<Option<Answer>> {
    serde_json::from_slice::<Incoming>(line)?.answer(id)
}

impl Incoming {
    fn answer(self, id: u64) -> io::Result<Option<Answer>> {
        match (self.method, self.error) {
            (Some(method), _) if method == HELLO => greeted(&self.params).map(|()| None),
            (Some(_), _) => Ok(None),
            // Also one that answers nothing in particular.
            (None, Some(failure)) => Ok(Some(Answer::Error(failure))),
            (None, None) if self.id == id => Ok(Some(Answer::Result(self.result))),
            (None, None) => Ok(None),
        }
    }
}

/// Whether it can be talked to.
fn greeted(params: &Value) -> io::Result<()> {
    let hello = Hello::deserialize(params)?;
    if hello.protocol == PROTOCOL {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "extentd {} speaks version {} of the protocol, and this program version {PROTOCOL}: use its own extentctl",
            hello.version, hello.protocol
        ),
    ))
}

/// Sends one request to the control socket at `path`, and waits for the
/// answer.
///
/// # Errors
/// Nobody listens there, or no answer comes within `timeout`.
pub fn ask(path: &Path, request: &Request, timeout: Duration) -> io::Result<Answer> {
    Client::connect(path, timeout)?.call(request)
}
