//! Addresses to listen at.

use std::net::{Ipv4Addr, SocketAddr};

/// An address from `127.0.0.1:9100`, `[::1]:9100`, or `9100` for loopback.
///
/// # Errors
/// It is something else.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        format!("'{text}' is not ADDRESS:PORT: give for example 127.0.0.1:9100, or 9100 for that")
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
            assert_eq!(parse(text), Ok(address.parse().unwrap()));
        }
        for text in ["", "localhost:9100", "1.2.3.4", "65536", ":9100"] {
            parse(text).unwrap_err();
        }
    }
}
