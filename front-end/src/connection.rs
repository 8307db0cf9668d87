//! Messages on the socket, as good or as bad as the caller makes them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::codes::flag;
use crate::error::{Error, Result};
use crate::process::limit;

/// A message as it came, with at most one descriptor.
#[derive(Debug)]
pub struct Message {
    /// The number of the request.
    pub request: u32,
    /// The flags, version included.
    pub flags: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// The descriptor that came with it.
    pub file: Option<File>,
}

impl Message {
    /// The payload's 32-bit field at a byte offset; 0 beyond its end.
    pub fn u32_at(&self, offset: usize) -> u32 {
        field(&self.payload, offset).map_or(0, u32::from_ne_bytes)
    }

    /// The payload's 64-bit field at a byte offset; 0 beyond its end.
    pub fn u64_at(&self, offset: usize) -> u64 {
        field(&self.payload, offset).map_or(0, u64::from_ne_bytes)
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// One end of a vhost-user connection, main or back-end channel.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// REPLY_ACK has been negotiated.
    pub(crate) acknowledged: bool,
}

impl Connection {
    /// Connects to a back-end that listens on `path`.
    ///
    /// # Errors
    /// What connect(2) says.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(|e| Error::Host("connect", e))?;
        Self::new(stream)
    }

    /// Uses a socket that is connected already.
    ///
    /// # Errors
    /// The socket cannot be given a time limit.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(limit()))
            .map_err(|e| Error::Host("limit the wait for replies", e))?;
        Ok(Self {
            stream,
            acknowledged: false,
        })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes that need not be a message.
    ///
    /// # Errors
    /// What sendmsg(2) says, and [`Error::Closed`].
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut rest = bytes;
        let mut fds = fds;
        while !rest.is_empty() {
            let sent = self.stream.send_with_fds(&[rest], fds).map_err(|error| {
                match io::Error::from(error) {
                    e if e.kind() == io::ErrorKind::BrokenPipe => Error::Closed,
                    e => Error::Host("send a message", e),
                }
            })?;
            rest = rest.get(sent..).unwrap_or_default();
            fds = &[];
        }
        Ok(())
    }

    /// Sends a well-formed message with any flags beside the version.
    ///
    /// # Errors
    /// As [`send_bytes`](Self::send_bytes).
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        let size = u32::try_from(payload.len()).map_err(|_| Error::TooLarge("the payload"))?;
        let header = [request, flags | flag::VERSION, size].map(u32::to_ne_bytes);
        let mut bytes = header.concat();
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes, fds)
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Late`], or what recvmsg(2) says.
    pub fn receive(&self) -> Result<Message> {
        let mut header = [0; 12];
        // A descriptor comes with the first byte.
        let (mut got, file) = loop {
            match self
                .stream
                .recv_with_fd(&mut header)
                .map_err(io::Error::from)
            {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(lost)?,
            }
        };
        if got == 0 {
            return Err(Error::Closed);
        }
        while got < header.len() {
            let more = (&self.stream).read(&mut header[got..]).map_err(lost)?;
            if more == 0 {
                return Err(Error::Closed);
            }
            got += more;
        }
        let word = |at: usize| field(&header, at).map_or(0, u32::from_ne_bytes);
        let size = usize::try_from(word(8)).map_err(|_| Error::TooLarge("the reply"))?;
        if size > 1 << 16 {
            return Err(Error::TooLarge("the reply"));
        }
        let mut payload = vec![0; size];
        (&self.stream).read_exact(&mut payload).map_err(lost)?;
        Ok(Message {
            request: word(0),
            flags: word(4),
            payload,
            file,
        })
    }

    /// Waits for the reply to `request`.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), and [`Error::Reply`] for anything but
    /// a reply to that request.
    pub fn reply(&self, request: u32) -> Result<Message> {
        let message = self.receive()?;
        if message.request != request || message.flags != flag::VERSION | flag::REPLY {
            return Err(Error::Reply {
                request,
                id: message.request,
                flags: message.flags,
                size: message.payload.len(),
            });
        }
        Ok(message)
    }

    /// Sends a request that is always answered, and waits for the answer.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`reply`](Self::reply).
    pub fn ask(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<Message> {
        self.send(request, 0, payload, fds)?;
        self.reply(request)
    }

    /// Sends a request with NEED_REPLY, whatever was negotiated; the value
    /// of the answer, 0 for success.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`reply`](Self::reply).
    pub fn acknowledge(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<u64> {
        self.send(request, flag::NEED_REPLY, payload, fds)?;
        let answer = self.reply(request)?;
        match field(&answer.payload, 0) {
            Some(value) if answer.payload.len() == 8 => Ok(u64::from_ne_bytes(value)),
            _ => Err(Error::Reply {
                request,
                id: request,
                flags: answer.flags,
                size: answer.payload.len(),
            }),
        }
    }

    /// Sends a request that changes something; with REPLY_ACK it is
    /// acknowledged.
    ///
    /// # Errors
    /// As [`acknowledge`](Self::acknowledge), and [`Error::Refused`].
    pub fn tell(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        if !self.acknowledged {
            return self.send(request, 0, payload, fds);
        }
        match self.acknowledge(request, payload, fds)? {
            0 => Ok(()),
            value => Err(Error::Refused { request, value }),
        }
    }
}

fn lost(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::Closed,
        io::ErrorKind::WouldBlock => Error::Late("a message"),
        _ => Error::Host("receive a message", error),
    }
}
