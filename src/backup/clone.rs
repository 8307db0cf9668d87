//! A new image that shares its blocks with a snapshot.

use std::io;
use std::path::Path;

use rustix::fs::ioctl_ficlone;

use super::error::BackupError;
use super::whole::Part;
use crate::disk::at_rest::AtRest;

/// Makes the image `new` of the snapshot, and tells its size in bytes.
///
/// # Errors
/// Then there is no new image.
pub fn clone(snapshot: &Path, new: &Path) -> Result<u64, BackupError> {
    let from = AtRest::open(snapshot)?;
    let part = Part::begin(new)?;
    ioctl_ficlone(part.file(), &from.file).map_err(|error| {
        let source = io::Error::from(error);
        match source.raw_os_error() {
            Some(libc::EXDEV) => BackupError::OtherFileSystem(new.to_owned()),
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => {
                BackupError::NoClones(new.to_owned(), source)
            }
            _ => BackupError::host(new, "share blocks with the snapshot")(source),
        }
    })?;
    let size = from.size()?;
    part.finish()?;
    Ok(size)
}
