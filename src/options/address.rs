//! Addresses to listen at.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// What a path of a socket begins with.
const UNIX: &str = "unix:";

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// An address from `127.0.0.1:9100`, `[::1]:9100`, `9100` for loopback, or
/// `unix:PATH`.
///
/// # Errors
/// It is something else.
pub fn parse(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix(UNIX).filter(|path| !path.is_empty()) {
        return Ok(Address::Unix(path.into()));
    }
    if let Ok(port) = text.parse() {
        return Ok(Address::Tcp((Ipv4Addr::LOCALHOST, port).into()));
    }
    text.parse().map(Address::Tcp).map_err(|_| {
        format!("'{text}' is neither ADDRESS:PORT nor unix:PATH: give for example 127.0.0.1:9100, or 9100 for that")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_loopback() {
        for (text, address) in [
            ("9100", "127.0.0.1:9100"),
            ("[::1]:9100", "[::1]:9100"),
            ("0.0.0.0:1", "0.0.0.0:1"),
        ] {
            assert_eq!(parse(text), Ok(Address::Tcp(address.parse().unwrap())));
        }
        for text in ["", "localhost:9100", "1.2.3.4", "65536", ":9100", "unix:"] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn a_path_is_shown_as_it_was_given() {
        let address = parse("unix:/run/a b").unwrap();
        assert_eq!(address, Address::Unix("/run/a b".into()));
        assert_eq!(address.to_string(), "unix:/run/a b");
    }
}
