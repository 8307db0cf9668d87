//! Where scrapes come from: a TCP port, or a socket in the file system.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vhost_backend::Peer;

use crate::host::socket::{self, SocketError, SocketFile};
use crate::options::address::Address;

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    /// Of TCP.
    Tcp(TcpListener),
    /// Of the file system.
    Unix(UnixListener),
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    /// By TCP: one address of version 4, or of version 6 all with the same
    /// first half.
    Host(IpAddr),
    /// A user of this host, if the kernel tells.
    User(Option<u32>),
}

/// Why nothing can be listened at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// At a port.
    #[error(
        "{option} {address}: cannot listen: {source}: {}",
        if source.kind() == io::ErrorKind::PermissionDenied {
            "ports below 1024 take CAP_NET_BIND_SERVICE: give a higher one"
        } else {
            "give a free address of this host"
        }
    )]
    Tcp {
        /// The option.
        option: &'static str,
        /// As given.
        address: Address,
        /// What the host says.
        source: io::Error,
    },
    /// At a path.
    #[error("{0}")]
    Unix(#[from] SocketError),
}

/// Listens there; of a port that the host chose, the address tells the number.
/// `option` is named in errors.
///
/// # Errors
/// The host refuses.
pub(crate) fn bind(
    address: &Address,
    option: &'static str,
) -> Result<(Listener, Address, Option<SocketFile>), ListenError> {
    let failed = |source| ListenError::Tcp {
        option,
        address: address.clone(),
        source,
    };
    match address {
        Address::Tcp(tcp) => {
            let listener = TcpListener::bind(tcp).map_err(failed)?;
            let address = Address::Tcp(listener.local_addr().map_err(failed)?);
            Ok((Listener::Tcp(listener), address, None))
        }
        Address::Unix(path) => {
            let (listener, file) = socket::bind(path, option)?;
            Ok((Listener::Unix(listener), address.clone(), Some(file)))
        }
    }
}

impl Listener {
    pub(super) fn never_wait(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// The next connection, which never makes anybody wait.
    pub(super) fn accept(&self) -> io::Result<(Stream, Party)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Stream::Tcp(stream), party(address.ip())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let user = Peer::of(&stream).map(|peer| peer.uid);
                Ok((Stream::Unix(stream), Party::User(user)))
            }
        }
    }
}

/// Whom an address belongs to.
fn party(address: IpAddr) -> Party {
    Party::Host(match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << u64::BITS)).into()
        }
    })
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(from),
            Self::Unix(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_party_count_together() {
        let one = |text: &str| party(text.parse().unwrap());
        assert_eq!(one("2001:db8::1"), one("2001:db8::ffff:1"));
        assert_ne!(one("2001:db8::1"), one("2001:db8:0:1::1"));
        assert_eq!(one("::ffff:10.0.0.1"), one("10.0.0.1"));
        assert_ne!(one("10.0.0.1"), one("10.0.0.2"));
    }
}
