//! Who is at the other end of a connection.

use std::fmt;
use std::os::unix::net::UnixStream;

use crate::sys;

/// The process that has connected, as the kernel noted it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// As this process sees it; 0 where it does not.
    pub pid: u32,
    /// As this process sees it.
    pub uid: u32,
}

impl Peer {
    /// `None` if the kernel does not tell.
    pub fn of(stream: &UnixStream) -> Option<Self> {
        sys::peer(stream).map(|(pid, uid)| Self { pid, uid })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => write!(f, "of another PID namespace, uid {}", self.uid),
            pid => write!(f, "pid {pid}, uid {}", self.uid),
        }
    }
}

/// As it is named in the log.
pub(crate) fn name(peer: Option<Peer>) -> String {
    peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string())
}
