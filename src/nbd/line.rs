//! The connection to a client, who may send half a message, or not take an
//! answer: neither keeps a thread for longer than a time limit.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long the rest of a message may take once it has begun, and how long a
/// client may take nothing of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take until it reads.
const HAGGLING: Duration = Duration::from_secs(30);

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The client has gone.
    #[error("the client has left")]
    Gone,
    /// It has asked for that.
    #[error("the client has ended it")]
    Asked,
    /// It has left a message half done, or does not take an answer.
    #[error("the client has kept it waiting")]
    Late,
    /// It does not speak the protocol.
    #[error("the client has sent {0}")]
    Nonsense(&'static str),
    /// The snapshot could not be read, when the client was promised that.
    #[error("what was promised cannot be read: {0}")]
    Unread(io::Error),
    /// The host fails.
    #[error("{0}")]
    Host(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Gone,
            _ => Self::Host(error),
        }
    }
}

/// Bytes to and from a client.
pub(super) trait Line {
    /// Waits, for as long as it takes, until a message begins.
    fn wait(&mut self) -> Result<(), Ended>;

    /// Takes the next bytes of a message.
    fn receive(&mut self, into: &mut [u8]) -> Result<(), Ended>;

    /// Sends a head and what belongs to it.
    fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), Ended>;
}

/// Since when a thread waits for its client, for others to see.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Milliseconds since the clock of the silences began, and one; 0 where the
    /// thread works.
    since: AtomicU64,
}

impl Silence {
    /// How long the client is silent; `None` where it is being served.
    pub(super) fn length(&self, clock: Instant) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(clock.elapsed().saturating_sub(Duration::from_millis(since)))
    }

    fn begins(&self, clock: Instant) {
        let now = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now.saturating_add(1), Ordering::Relaxed);
    }

    fn ends(&self) {
        self.since.store(0, Ordering::Relaxed);
    }
}

/// A connection with time limits.
#[derive(Debug)]
pub(super) struct Patient {
    stream: UnixStream,
    /// Of what is being received; none where the client may be silent.
    until: Option<Instant>,
    silence: Arc<Silence>,
    clock: Instant,
}

impl Patient {
    /// A connection that begins: its client has half a minute until it reads.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn new(
        stream: UnixStream,
        silence: Arc<Silence>,
        clock: Instant,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            until: Instant::now().checked_add(HAGGLING),
            silence,
            clock,
        })
    }

    /// Until there is something to be read or room to send.
    fn ready(&self, flags: PollFlags, until: Option<Instant>) -> Result<(), Ended> {
        self.silence.begins(self.clock);
        let waited = self.polled(flags, until);
        self.silence.ends();
        waited
    }

    fn polled(&self, flags: PollFlags, until: Option<Instant>) -> Result<(), Ended> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), flags)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Err(Ended::Late),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Ended::Host(error.into())),
            }
        }
    }
}

impl Line for Patient {
    fn wait(&mut self) -> Result<(), Ended> {
        self.ready(PollFlags::IN, None)?;
        self.until = Instant::now().checked_add(PATIENCE);
        Ok(())
    }

    fn receive(&mut self, mut into: &mut [u8]) -> Result<(), Ended> {
        while !into.is_empty() {
            match self.stream.read(into) {
                Ok(0) => return Err(Ended::Gone),
                Ok(count) => into = into.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready(PollFlags::IN, self.until)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send(&mut self, mut head: &[u8], mut body: &[u8]) -> Result<(), Ended> {
        let until = Instant::now().checked_add(PATIENCE);
        while !head.is_empty() || !body.is_empty() {
            let parts = [IoSlice::new(head), IoSlice::new(body)];
            match self.stream.write_vectored(&parts) {
                Ok(count) => {
                    let of_head = count.min(head.len());
                    head = head.get(of_head..).unwrap_or_default();
                    body = body.get(count - of_head..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready(PollFlags::OUT, until)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
