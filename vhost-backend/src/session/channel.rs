//! The front-end's socket: receives each message whole before anybody acts on
//! it, so that a bad one can be refused instead of ending the connection, and
//! nothing here ever waits for the front-end.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::aside::{self, Aside};
use crate::error::OPEN_FILES;
use crate::sys::{self, Kind};

/// Bytes of a message header: request, flags, payload size.
const HEADER: usize = 12;

/// Longest payload taken (VU-50).
pub(crate) const MAX_PAYLOAD: usize = 4096;

const MAX_MESSAGE: usize = HEADER + MAX_PAYLOAD;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Most descriptors kept for one message, which may come in several pieces, and
/// as many as the kernel lets through at once.
const MAX_FDS: usize = 253;

/// Bytes that hold a control message of so many.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// A whole message of the front-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub request: u32,
    pub need_reply: bool,
    /// Bytes after the header.
    pub size: usize,
    /// File descriptors that came with it.
    pub fds: usize,
}

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// The rest of a message has not come yet.
    Incomplete,
    Message(Message),
    /// Not a message of this protocol (VU-1).
    Garbage,
    /// The front-end has closed its end.
    Gone,
}

/// One connection, and the message that has come on it but was not dealt with.
///
/// A message is received whole, never peeked at: where the next one carries
/// descriptors, a peek that ends before it reports them all the same.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: Aside<UnixStream>,
    buffer: Box<[u8; MAX_MESSAGE]>,
    /// Bytes of the message in the buffer.
    filled: usize,
    fds: Vec<OwnedFd>,
    /// Messages are such as were answered before: the front-end does not hear of
    /// them.
    replayed: bool,
    /// The connection goes on without this one.
    left_open: bool,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream: Aside::new(stream),
            buffer: Box::new([0; MAX_MESSAGE]),
            filled: 0,
            fds: Vec::new(),
            replayed: false,
            left_open: false,
        }
    }

    /// The connection.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// No part of a message is here that was not dealt with.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.filled == 0 && self.fds.is_empty()
    }

    /// From now on messages are [put](Self::put) in, and nothing is answered; or,
    /// with `false`, they are the front-end's again.
    pub(crate) fn replay(&mut self, on: bool) {
        self.replayed = on;
    }

    /// The [next](Self::next) message is this one.
    ///
    /// # Errors
    /// It is too long.
    pub(crate) fn put(
        &mut self,
        request: u32,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let bytes = bytes(request, VERSION, payload)?;
        let room = self.buffer.get_mut(..bytes.len());
        let room = room.ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(&bytes);
        self.filled = bytes.len();
        self.fds = fds;
        Ok(())
    }

    /// Whoever has the connection too goes on with it.
    pub(crate) fn leave_open(&mut self) {
        self.left_open = true;
    }

    /// The message that is to be dealt with next: the same one until it was
    /// [forwarded](Self::forward), [discarded](Self::discard) or its
    /// descriptors were [taken](Self::take_fds).
    pub(crate) fn next(&mut self) -> io::Result<Next> {
        if let Some(ended) = self.fill(HEADER)? {
            return Ok(ended);
        }
        let word = |at: usize| {
            let bytes = self.buffer.get(at..).and_then(<[u8]>::first_chunk).copied();
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let (request, flags, size) = (word(0), word(4), word(8));
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if flags & !NEED_REPLY != VERSION || size > MAX_PAYLOAD {
            return Ok(Next::Garbage);
        }
        if let Some(ended) = self.fill(HEADER.saturating_add(size))? {
            return Ok(ended);
        }
        if self.fds.len() > MAX_FDS {
            return Ok(Next::Garbage);
        }
        Ok(Next::Message(Message {
            request,
            need_reply: flags & NEED_REPLY != 0,
            size,
            fds: self.fds.len(),
        }))
    }

    /// The payload of the message that [`next`](Self::next) has found.
    pub(crate) fn payload(&self, message: &Message) -> &[u8] {
        self.buffer
            .get(HEADER..HEADER.saturating_add(message.size))
            .unwrap_or_default()
    }

    /// What kinds of descriptors have come with it.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.fds.iter().map(sys::kind)
    }

    /// Is done with the message; its descriptors are closed.
    pub(crate) fn discard(&mut self) {
        self.filled = 0;
        close(&mut self.fds);
    }

    /// Is done with the message and gives its descriptors.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.filled = 0;
        std::mem::take(&mut self.fds)
    }

    /// Passes the message on, whole and with its descriptors, to an empty
    /// socket, and is done with it.
    pub(crate) fn forward(&mut self, to: &UnixStream) -> io::Result<()> {
        let bytes = self.buffer.get(..self.filled).unwrap_or_default();
        let fds: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = to.send_with_fds(&[bytes], &fds)?;
        if sent != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.discard();
        Ok(())
    }

    /// A reply will not have to wait: the socket's buffer is nearly empty.
    pub(crate) fn is_writable(&self) -> io::Result<bool> {
        let stream: &UnixStream = &self.stream;
        let mut ready = [PollFd::new(stream, PollFlags::OUT)];
        Ok(poll(&mut ready, Some(&Timespec::default()))? > 0)
    }

    /// Answers a request without waiting.
    ///
    /// # Errors
    /// The front-end is gone, or does not read its replies.
    pub(crate) fn reply(&self, request: u32, payload: &[u8]) -> io::Result<()> {
        if self.replayed {
            return Ok(());
        }
        send(&self.stream, request, VERSION | REPLY, payload)
    }

    /// Answers a request with a descriptor, without waiting.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub(crate) fn reply_with_fd(
        &self,
        request: u32,
        payload: &[u8],
        fd: OwnedFd,
    ) -> io::Result<()> {
        if self.replayed {
            return Ok(());
        }
        let bytes = bytes(request, VERSION | REPLY, payload)?;
        send_all(&self.stream, &bytes, &[fd.as_fd()])
    }

    /// Sends what somebody else has answered, as it is and without waiting.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub(crate) fn relay(&self, reply: &Taken) -> io::Result<()> {
        if self.replayed {
            return Ok(());
        }
        let fds: Vec<_> = reply.fds.iter().map(AsFd::as_fd).collect();
        send_all(&self.stream, &reply.bytes, &fds)
    }

    /// Receives until the message has `want` bytes; `None` once it has.
    fn fill(&mut self, want: usize) -> io::Result<Option<Next>> {
        while self.filled < want {
            let into = self.buffer.get_mut(self.filled..want).unwrap_or_default();
            match receive(&self.stream, into) {
                Ok(received) if received.bytes == 0 => return Ok(Some(Next::Gone)),
                Ok(received) => {
                    self.filled = self.filled.saturating_add(received.bytes);
                    self.fds.extend(received.fds);
                    // No end of them: more than anybody sends.
                    if self.fds.len() > MAX_FDS {
                        return Ok(Some(Next::Garbage));
                    }
                    if received.truncated {
                        return Err(io::Error::other(format!(
                            "a descriptor that it sent could not be opened: {OPEN_FILES}"
                        )));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(match self.filled {
                        0 => Next::Nothing,
                        _ => Next::Incomplete,
                    }));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        close(&mut self.fds);
        if self.left_open {
            return;
        }
        // The other end hears of it at once, also if the closing waits: what
        // has come and was not received is closed with the socket.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Closes descriptors, elsewhere if that may wait.
fn close(fds: &mut Vec<OwnedFd>) {
    let at_once = |fd: &OwnedFd| matches!(sys::kind(fd), Kind::Event | Kind::Memory | Kind::Disk);
    if fds.iter().all(at_once) {
        fds.clear();
    } else {
        aside::let_go(std::mem::take(fds));
    }
}

/// What waited in a socket.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Takes all that waits in a socket.
///
/// # Errors
/// What recvmsg(2) says.
pub(crate) fn take_all(stream: &UnixStream) -> io::Result<Taken> {
    let mut taken = Taken::default();
    let mut piece = [0; 512];
    loop {
        match receive(stream, &mut piece) {
            Ok(received) if received.bytes == 0 => return Ok(taken),
            Ok(received) => {
                taken
                    .bytes
                    .extend_from_slice(piece.get(..received.bytes).unwrap_or_default());
                taken.fds.extend(received.fds);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
            Err(e) => return Err(e),
        }
    }
}

/// Sends a message without waiting, whole or not at all as far as anybody
/// can see: after an error the socket is of no use.
pub(crate) fn send(
    stream: &UnixStream,
    request: u32,
    flags: u32,
    payload: &[u8],
) -> io::Result<()> {
    send_all(stream, &bytes(request, flags | VERSION, payload)?, &[])
}

/// A whole message.
fn bytes(request: u32, flags: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let size = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER.saturating_add(payload.len()));
    for word in [request, flags, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Sends all of these bytes, with descriptors at the first, without waiting.
///
/// # Errors
/// They are not taken, or not all.
pub(crate) fn send_all(
    stream: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[derive(Debug)]
pub(crate) struct Received {
    pub bytes: usize,
    pub fds: Vec<OwnedFd>,
    /// There were more descriptors.
    pub truncated: bool,
}

/// One recvmsg that does not wait.
pub(crate) fn receive(stream: &UnixStream, into: &mut [u8]) -> io::Result<Received> {
    receive_by(stream, into, RecvFlags::empty())
}

/// As [`receive`], but it stays there to be received.
pub(crate) fn peek(stream: &UnixStream, into: &mut [u8]) -> io::Result<Received> {
    receive_by(stream, into, RecvFlags::PEEK)
}

fn receive_by(stream: &UnixStream, into: &mut [u8], how: RecvFlags) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = how | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let result = loop {
        match recvmsg(stream, &mut [IoSliceMut::new(into)], &mut control, flags) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(Received {
        bytes: result.bytes,
        fds: fds.flatten().collect(),
        truncated: result.flags.contains(ReturnFlags::CTRUNC),
    })
}

#[cfg(test)]
mod tests;
