//! What the service manager is told: that the process is ready, stops, and
//! still turns. Nobody waits for it: what it does not take at once is lost.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

pub(crate) use sd_notify::{NotifyState, watchdog_enabled};

/// Tells it, if there is one.
pub(crate) fn tell(state: &NotifyState<'_>) {
    if let Err(error) = send(state) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

fn send(state: &NotifyState<'_>) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(format!("{state}\n").as_bytes(), &address)?;
    Ok(())
}
