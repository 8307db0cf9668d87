//! Asks many control sockets for their counters, on one thread, which waits
//! for all of them together.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::operator::metrics::{Asked, Scraped};
use crate::protocol::client;
use crate::protocol::statistics::Statistics;
use crate::protocol::{Answer, Request};

/// Most bytes until the end of the answer.
const ANSWER: usize = 1 << 20;
/// Where a disk has no room for one more connection, it is tried again so soon.
const AGAIN: Duration = Duration::from_millis(5);

/// One control socket, and how far it has been asked.
struct Line<'a> {
    path: &'a Path,
    stream: Option<UnixStream>,
    received: Vec<u8>,
    /// Bytes in all.
    heard: usize,
    outcome: Option<(Option<Statistics>, Duration)>,
}

/// Asks all of them at once, each for at most `patience`. Their order is kept.
#[must_use]
pub fn gather(paths: &[PathBuf], patience: Duration) -> Vec<Scraped> {
    let start = Instant::now();
    let line = |path| Line {
        path,
        stream: None,
        received: Vec::new(),
        heard: 0,
        outcome: None,
    };
    let mut lines: Vec<Line<'_>> = paths.iter().map(PathBuf::as_path).map(line).collect();
    loop {
        for line in &mut lines {
            line.go_on(start);
        }
        let left = patience.saturating_sub(start.elapsed());
        let open: Vec<&Line<'_>> = lines.iter().filter(|line| line.outcome.is_none()).collect();
        if open.is_empty() || left.is_zero() {
            break;
        }
        wait(&open, left);
    }
    let took = start.elapsed();
    let names: HashSet<String> = paths.iter().map(|path| name(path)).collect();
    let told_apart = names.len() == paths.len();
    let scraped = lines.into_iter().map(|line| {
        let (statistics, time) = line.outcome.unwrap_or((None, took));
        let control = if told_apart {
            name(line.path)
        } else {
            line.path.display().to_string()
        };
        Scraped {
            asked: Some(Asked { control, time }),
            statistics,
        }
    });
    scraped.collect()
}

/// A path's last part.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Waits until one of these may go on.
fn wait(open: &[&Line<'_>], left: Duration) {
    let streams = open.iter().filter_map(|line| line.stream.as_ref());
    let mut polled: Vec<PollFd<'_>> = streams
        .map(|stream| PollFd::new(stream, PollFlags::IN))
        .collect();
    let limit = if polled.len() < open.len() {
        left.min(AGAIN)
    } else {
        // A moment more, so that it has passed when it is looked at.
        left.saturating_add(Duration::from_millis(1))
    };
    let limit: Option<Timespec> = limit.try_into().ok();
    if let Err(error) = rustix::event::poll(&mut polled, limit.as_ref())
        && error != rustix::io::Errno::INTR
    {
        log::debug!("disks cannot be waited for: {error}");
        std::thread::sleep(left.min(AGAIN));
    }
}

impl Line<'_> {
    /// Does what can be done without waiting.
    fn go_on(&mut self, start: Instant) {
        if self.outcome.is_some() {
            return;
        }
        let went = match self.stream.take() {
            None => self.ask().map(|()| None),
            Some(stream) => self.hear(stream),
        };
        match went {
            Ok(None) => {}
            Ok(Some(statistics)) => self.outcome = Some((Some(statistics), start.elapsed())),
            Err(error) => {
                log::debug!("{}: {error}", self.path.display());
                self.outcome = Some((None, start.elapsed()));
            }
        }
    }

    /// Connects and asks, if there is room for that.
    fn ask(&mut self) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(self.path)?) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut stream = UnixStream::from(socket);
        // A new socket has room for a short line.
        stream.write_all(&client::line(&Request::Stats {}, 1)?)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Reads what is there; the counters, if that is all of them.
    fn hear(&mut self, mut stream: UnixStream) -> io::Result<Option<Statistics>> {
        let mut piece = [0; 16 << 10];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let read = piece.get(..count).unwrap_or_default();
                    self.received.extend_from_slice(read);
                    self.heard = self.heard.saturating_add(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                match client::understand(&line, 1)? {
                    Some(Answer::Result(result)) => {
                        return Ok(Some(serde_json::from_value(result)?));
                    }
                    Some(Answer::Error(failure)) => return Err(io::Error::other(failure)),
                    None => {}
                }
            }
            if self.heard > ANSWER {
                return Err(io::Error::other("the answer is too long"));
            }
        }
        self.stream = Some(stream);
        Ok(None)
    }
}
