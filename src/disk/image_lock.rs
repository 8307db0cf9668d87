//! The image lock, in the way of QEMU's file driver: open file description
//! locks on single bytes, one per permission in use and one per permission
//! that is not shared (QEMU, block/file-posix.c). A block device that is
//! written is claimed besides, as those who mount it take no locks.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use super::device_claim::{self, Claim};
use super::holders::{Identity, InUse};
use crate::host::sys::{self, LockKind};

/// Byte of permission 0 in use.
const USED: i64 = 100;
/// Byte of permission 0 not shared with others.
const UNSHARED: i64 = 200;
/// `BLK_PERM_CONSISTENT_READ`.
const READ: i64 = 0;
/// `BLK_PERM_WRITE`.
const WRITE: i64 = 1;

/// The bytes that a user of an image locks, and those it must find free.
fn bytes(read_only: bool) -> (&'static [i64], &'static [i64]) {
    if read_only {
        (
            &[USED + READ, UNSHARED + WRITE],
            &[UNSHARED + READ, USED + WRITE],
        )
    } else {
        (
            &[USED + READ, USED + WRITE, UNSHARED + WRITE],
            &[UNSHARED + READ, UNSHARED + WRITE, USED + WRITE],
        )
    }
}

/// How an image is kept from others while rings run.
#[derive(Debug)]
pub(super) struct ImageLock {
    read_only: bool,
    /// For a block device that is written.
    claim: Option<Claim>,
}

impl ImageLock {
    /// For an image that is not taken yet. Says so if somebody has a block
    /// device.
    ///
    /// # Errors
    /// The host gives no socket.
    pub(super) fn new(
        image: &File,
        path: &Path,
        block_device: bool,
        read_only: bool,
    ) -> io::Result<Self> {
        if block_device && is_busy(device_claim::open_exclusively(image).err().as_ref()) {
            in_use(image, path)?.tell_at_start(read_only);
        }
        let claims = block_device && !read_only;
        Ok(Self {
            read_only,
            claim: claims.then(Claim::new).transpose()?,
        })
    }

    /// To be a registered file of every ring.
    pub(super) fn keeper(&self) -> Option<RawFd> {
        self.claim.as_ref().map(Claim::keeper)
    }

    /// The image is a block device, which is claimed.
    pub(super) fn has_claim(&self) -> bool {
        self.claim.as_ref().is_some_and(Claim::is_held)
    }

    /// Takes the image from `path`, or nothing of it.
    ///
    /// # Errors
    /// Somebody else has it, which the error says when it is shown; or what the
    /// host says.
    pub(super) fn take(&self, image: &File, path: &Path) -> io::Result<()> {
        let taken = take(image, self.read_only).and_then(|()| {
            let claimed = self.claim.as_ref().map_or(Ok(()), |one| one.take(image));
            claimed.inspect_err(|_| give_back(image, self.read_only))
        });
        match taken {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_busy(Some(&error)) => {
                let kind = io::ErrorKind::WouldBlock;
                Err(io::Error::new(kind, in_use(image, path)?))
            }
            taken => taken,
        }
    }

    /// Lets others have the image.
    pub(super) fn give_back(&self, image: &File) {
        if let Some(claim) = &self.claim {
            claim.give_back();
        }
        give_back(image, self.read_only);
    }
}

fn is_busy(error: Option<&io::Error>) -> bool {
    error.is_some_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

fn in_use(image: &File, path: &Path) -> io::Result<InUse> {
    Ok(InUse {
        path: path.to_owned(),
        identity: Identity::of(image)?,
    })
}

/// Takes the image for reading, or for reading and writing: then nobody else
/// may write it.
///
/// # Errors
/// `WouldBlock` if another process uses the image in a way that excludes
/// ours; nothing is locked then. File systems without locks give their own.
pub(super) fn take(image: &File, read_only: bool) -> io::Result<()> {
    let (own, foreign) = bytes(read_only);
    let taken = own
        .iter()
        .try_for_each(|&byte| sys::ofd_lock(image, byte, LockKind::Shared));
    let result = taken.and_then(|()| {
        for &byte in foreign {
            if sys::ofd_locked_by_others(image, byte)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    });
    if result.is_err() {
        give_back(image, read_only);
    }
    result
}

/// Gives the locks back.
fn give_back(image: &File, read_only: bool) {
    for &byte in bytes(read_only).0 {
        if let Err(error) = sys::ofd_lock(image, byte, LockKind::None) {
            log::warn!("cannot unlock the image: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(file: &tempfile::NamedTempFile) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(file.path())
            .unwrap()
    }

    #[test]
    fn two_writers_exclude_each_other_until_one_gives_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (open(&file), open(&file));
        take(&one, false).unwrap();
        assert_eq!(
            take(&two, false).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            take(&two, true).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        give_back(&one, false);
        take(&two, false).unwrap();
    }

    #[test]
    fn readers_share_and_keep_a_writer_away() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (open(&file), open(&file));
        take(&one, true).unwrap();
        take(&two, true).unwrap();
        assert_eq!(
            take(&open(&file), false).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
