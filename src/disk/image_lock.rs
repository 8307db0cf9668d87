//! The image lock, in the way of QEMU's file driver: open file description
//! locks on single bytes, one per permission in use and one per permission
//! that is not shared (QEMU, block/file-posix.c).

use std::fs::File;
use std::io;

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

/// Lets others have the image.
pub(super) fn give_back(image: &File, read_only: bool) {
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
