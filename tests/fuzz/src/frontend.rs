//! One server for all runs, and the front-end of one run.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use vhost_backend::{Endpoint, Handle, Options, PollTime, Server};

use crate::instant::Instant;

/// A server on a thread of its own.
pub struct Served {
    disk: Arc<Instant>,
    handle: Handle,
    connections: Sender<UnixStream>,
    ended: Receiver<()>,
}

impl Served {
    pub fn new() -> Served {
        let disk = Arc::new(Instant {
            sectors: AtomicU64::new(1000),
        });
        let options = Options {
            queues: 3,
            queue_size: 64,
            workers: 2,
            cpus: Vec::new(),
            poll: PollTime::Never,
        };
        let mut server = Server::new(Arc::clone(&disk), options).unwrap();
        let handle = server.handle();
        let (connections, arriving) = channel();
        let (end, ended) = channel();
        std::thread::spawn(move || {
            for stream in arriving {
                server.run(Endpoint::Connected(stream)).unwrap();
                end.send(()).unwrap();
            }
        });
        Served {
            disk,
            handle,
            connections,
            ended,
        }
    }

    pub fn connect(&self) -> FrontEnd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connections.send(theirs).unwrap();
        ours.set_nonblocking(true).unwrap();
        FrontEnd {
            stream: ours,
            replies: Vec::new(),
            sent: Sent::Whole,
            closed: false,
        }
    }

    pub fn resized(&self) {
        self.disk.sectors.fetch_xor(512, Ordering::Relaxed);
        self.handle.capacity_changed();
    }

    /// Asks as an operator does.
    #[allow(dead_code)]
    pub fn ask(&self) {
        let status = self.handle.status();
        assert!(status.waiting.is_empty());
    }

    /// Until nothing of the last session is left.
    pub fn wait_until_gone(&self) {
        self.ended.recv().unwrap();
    }
}

/// What the bytes sent so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Messages.
    Whole,
    /// Messages, and the begin of one: this many bytes are missing.
    Part(usize),
    /// Something that is no message.
    Garbage,
}

pub struct FrontEnd {
    stream: UnixStream,
    replies: Vec<u8>,
    sent: Sent,
    closed: bool,
}

/// The longest payload that is taken.
const MAX_PAYLOAD: u32 = 4096;

impl FrontEnd {
    /// Takes the replies that have come, so that the server never has to wait for us.
    fn take(&mut self) {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => self.closed = true,
                Ok(len) => {
                    self.replies.extend(&piece[..len]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // It was closed with messages unread.
                Err(_) => self.closed = true,
            }
            return;
        }
    }

    fn send(&mut self, mut bytes: &[u8], fds: &[RawFd]) {
        let mut fds = Some(fds).filter(|fds| !fds.is_empty());
        while !bytes.is_empty() && !self.closed {
            let sent = match fds {
                Some(fds) => send_with(&self.stream, bytes, fds),
                None => self.stream.write(bytes),
            };
            match sent {
                Ok(len) => {
                    bytes = &bytes[len..];
                    fds = None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.take(),
                Err(_) => self.closed = true,
            }
        }
    }

    pub fn message(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd], split: u8) {
        let mut bytes = Vec::new();
        bytes.extend(request.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend((payload.len() as u32).to_ne_bytes());
        bytes.extend(payload);
        self.account(flags, payload.len() as u32, bytes.len());
        let (first, rest) = bytes.split_at(usize::from(split).min(bytes.len()));
        // With the first byte, as everybody does, or in the middle.
        let (early, late) = fds.split_at(if split % 2 == 0 { 0 } else { fds.len() });
        let early = if first.is_empty() { &[] } else { early };
        let late = if first.is_empty() { fds } else { late };
        self.send(first, early);
        if !first.is_empty() && split % 4 == 3 {
            self.settle();
        }
        self.send(rest, late);
    }

    /// A header alone.
    #[allow(dead_code)]
    pub fn header(&mut self, request: u32, flags: u32, size: u32) {
        let words = [request, flags, size];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.account(flags, size, bytes.len());
        self.send(&bytes, &[]);
    }

    /// What it all is after `len` more bytes that begin with this header.
    fn account(&mut self, flags: u32, size: u32, len: usize) {
        self.sent = match self.sent {
            Sent::Garbage => Sent::Garbage,
            // The payload of another message swallows it; what comes after is not followed.
            Sent::Part(missing) if missing > len => Sent::Part(missing - len),
            Sent::Part(missing) if missing == len => Sent::Whole,
            Sent::Part(_) => Sent::Garbage,
            Sent::Whole if flags & !8 != 1 || size > MAX_PAYLOAD => Sent::Garbage,
            Sent::Whole => match 12 + size as usize - len {
                0 => Sent::Whole,
                missing => Sent::Part(missing),
            },
        }
    }

    /// Until the server has read all that was sent, or has left.
    pub fn settle(&mut self) {
        while !self.closed && unread(&self.stream) > 0 {
            self.take();
            std::thread::yield_now();
        }
    }

    /// Ends the connection, if that has not happened.
    #[allow(dead_code)]
    pub fn leave(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        while !self.closed {
            self.take();
            std::thread::yield_now();
        }
    }

    /// The connection is alive unless something was sent that is no message.
    pub fn finish(mut self) {
        if let Sent::Part(missing) = self.sent {
            self.send(&vec![0; missing], &[]);
            self.sent = Sent::Whole;
        }
        if self.sent == Sent::Whole {
            assert!(!self.closed, "the connection was closed");
            self.settle();
            // GET_PROTOCOL_FEATURES is always answered.
            self.message(15, 1, &[], &[], 0);
            let answered = |replies: &[u8]| last(replies) == Some((15, 8));
            while !self.closed && !answered(&self.replies) {
                self.take();
                std::thread::yield_now();
            }
            assert!(!self.closed, "the connection was closed");
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        while !self.closed {
            self.take();
            std::thread::yield_now();
        }
        last(&self.replies);
    }
}

/// The request and the size of the last whole reply; all have to be replies.
fn last(mut replies: &[u8]) -> Option<(u32, usize)> {
    let mut found = None;
    while replies.len() >= 12 {
        let word = |at: usize| u32::from_ne_bytes(replies[at..at + 4].try_into().unwrap());
        let (request, flags, size) = (word(0), word(4), word(8) as usize);
        assert_eq!(flags & !8, 5, "reply to {request}");
        replies = match replies.get(12 + size..) {
            Some(rest) => rest,
            None => return None,
        };
        found = Some((request, size));
    }
    if replies.is_empty() { found } else { None }
}

/// Bytes that the other end has not read.
fn unread(stream: &UnixStream) -> libc::c_int {
    let mut left = 0;
    // SAFETY: the call writes one integer.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
    assert_eq!(result, 0);
    left
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> std::io::Result<usize> {
    let mut control = [0_u64; 64];
    let mut piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let len = u32::try_from(size_of_val(fds)).unwrap();
    // SAFETY: all zeros is a valid header; it points to buffers that live through the call, and the
    // control buffer has room for the descriptors: callers send at most 40.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut piece;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(len) as usize;
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(len) as usize;
        let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
        data.copy_from_nonoverlapping(fds.as_ptr(), fds.len());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let sent = libc::sendmsg(stream.as_raw_fd(), &raw const header, flags);
        usize::try_from(sent).map_err(|_| std::io::Error::last_os_error())
    }
}
