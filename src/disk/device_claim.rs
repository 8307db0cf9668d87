//! A block device that is ours alone: it is open exclusively (`O_EXCL`), so
//! that nobody else can open it so, mount it, or make it part of another disk.
//!
//! I/O goes by another open file, which stays. The exclusive one comes and
//! goes, and after a kill it must outlive what is in flight, as the image lock
//! does. So it is kept by a socket that each ring has among its files, as a
//! message that nobody has received yet. A ring lets go of its files when its
//! last operation has ended, and the message goes with the socket. A claim can
//! be taken and given back while rings sleep, by a thread that may not touch
//! them.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};

/// Nobody else may claim a device at a time.
#[derive(Debug)]
pub(super) struct Claim {
    /// The exclusive open file waits here, while there is one.
    keeper: UnixDatagram,
    /// The way into it.
    entry: UnixDatagram,
    held: AtomicBool,
}

impl Claim {
    /// Claims nothing yet.
    ///
    /// # Errors
    /// The host gives no socket.
    pub(super) fn new() -> io::Result<Self> {
        let (entry, keeper) = UnixDatagram::pair()?;
        Ok(Self {
            keeper,
            entry,
            held: AtomicBool::new(false),
        })
    }

    /// What keeps the claim for as long as it is open anywhere.
    pub(super) fn keeper(&self) -> RawFd {
        self.keeper.as_raw_fd()
    }

    /// The device is claimed.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Claims an open device.
    ///
    /// # Errors
    /// `ResourceBusy` if somebody else has it; else what the host says.
    pub(super) fn take(&self, device: &File) -> io::Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let exclusive = open_exclusively(device)?;
        let files = [exclusive.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(
            &self.entry,
            &[IoSlice::new(&[0])],
            &mut message,
            SendFlags::DONTWAIT,
        )?;
        self.held.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets others have the device, if it was claimed.
    pub(super) fn give_back(&self) {
        if !self.held.swap(false, Ordering::AcqRel) {
            return;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.keeper,
            &mut [IoSliceMut::new(&mut [0])],
            &mut message,
            // Where there is no descriptor left for it, it is closed all the same.
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        );
        if let Err(error) = received {
            log::warn!("the device cannot be given back: {error}");
        }
        // What was received is closed with the message.
    }
}

/// The same device once more, for us alone.
///
/// # Errors
/// `ResourceBusy` if somebody has it so already; else what the host says.
pub(super) fn open_exclusively(device: &File) -> io::Result<File> {
    // Not for writing: closing a device that was open so makes udev look at it.
    File::options()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", device.as_raw_fd()))
}
