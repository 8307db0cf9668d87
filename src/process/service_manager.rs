//! What the service manager is told: that the process is ready, stops, and
//! still turns, and what it is to keep. Nobody waits for it: what it does not take
//! at once is lost.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
pub(crate) use sd_notify::{NotifyState, watchdog_enabled};

/// Descriptors that are there for a moment: what is new, and what it replaces.
const STORED: u32 = 2;

/// Tells it, if there is one.
pub(crate) fn tell(state: &NotifyState<'_>) {
    if let Err(error) = send(&format!("{state}\n"), None) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

/// There is one, and it keeps descriptors for this service.
pub(crate) fn keeps_descriptors() -> bool {
    let most = std::env::var("FDSTORE").ok();
    let most: Option<u32> = most.and_then(|most| most.trim().parse().ok());
    most.is_some_and(|most| most >= STORED) && std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Has it keep a descriptor under a name, also if its other end is closed.
///
/// # Errors
/// It does not take it at once.
pub(crate) fn store_descriptor(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), Some(fd))
}

/// Has it close what it keeps under a name.
///
/// # Errors
/// It does not hear it at once.
pub(crate) fn drop_descriptors(name: &str) -> io::Result<()> {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None)
}

fn send(text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(
        &socket,
        &[IoSlice::new(text.as_bytes())],
        &mut control,
        flags,
    )?;
    Ok(())
}
