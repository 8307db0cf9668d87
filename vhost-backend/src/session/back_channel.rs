//! The channel on which the back-end sends to the front-end: changes of the
//! configuration.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::BackendReq;

use crate::aside::Aside;
use crate::session::channel;

/// Sends messages that ask for no acknowledgement: QEMU answers a change of
/// the configuration by reading it on the main socket, which we could not
/// serve while we wait (VU-27).
#[derive(Debug)]
pub(crate) struct BackChannel(Aside<UnixStream>);

impl BackChannel {
    /// # Errors
    /// The descriptor is not a Unix socket.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = UnixStream::from(fd);
        stream.local_addr()?;
        Ok(Self(Aside::new(stream)))
    }

    /// Its socket.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Says that the configuration has changed, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if the front-end does not read.
    pub(crate) fn config_changed(&self) -> io::Result<()> {
        channel::send(&self.0, BackendReq::CONFIG_CHANGE_MSG.into(), 0, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    #[test]
    fn vu_27_a_change_needs_no_answer_and_never_waits() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let back = BackChannel::new(ours.into()).unwrap();
        back.config_changed().unwrap();
        let mut message = [0; 12];
        theirs.read_exact(&mut message).unwrap();
        assert_eq!(message[..], [2_u32, 1, 0].map(u32::to_ne_bytes).concat());
        while back.config_changed().is_ok() {}
        assert_eq!(
            back.config_changed().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn vu_28_only_a_unix_socket_is_a_channel() {
        let file: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
        BackChannel::new(file).unwrap_err();
    }
}
