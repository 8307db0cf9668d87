//! What a disk is opened with beside its image.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::error::DiskError;
use super::image_file;
use super::options::DiskOptions;
use crate::engine::pin::Pinner;
use crate::options::config::IoPath;
use crate::path::DiskPath;

/// Who pins guest memory, if that is wanted and possible.
pub(super) fn pinner(options: &DiskOptions) -> Option<Arc<Pinner>> {
    if !options.pin_guest_memory {
        return None;
    }
    Pinner::spawn()
        .map_err(|error| log::error!("--pin-guest-memory: {error}: plain buffers are used"))
        .ok()
}

/// Where the end of the image needs the page cache, the image is open a second
/// time, so that there is no lease: all goes by the file.
pub(super) fn no_disk_path_beside_tail(
    image: &Path,
    block: u32,
    options: &DiskOptions,
) -> Result<Result<Arc<DiskPath>, String>, DiskError> {
    if options.io_path == IoPath::Disk {
        return Err(DiskError::RaggedEnd(image.to_owned(), block));
    }
    Ok(Err(format!(
        "the image ends within a block of {block} bytes, of which direct I/O takes no part"
    )))
}

/// The way past the file system, if it is wanted and possible, or a sentence
/// that says why not.
pub(super) fn disk_path(
    image: &Arc<File>,
    block_device: bool,
    direct: bool,
    grain: u64,
    options: &DiskOptions,
) -> Result<Result<Arc<DiskPath>, String>, DiskError> {
    if block_device {
        return Ok(Err("the image is a block device itself".to_owned()));
    }
    if options.io_path == IoPath::File {
        return Ok(Err("--io-path file was given".to_owned()));
    }
    let demanded = options.io_path == IoPath::Disk;
    if !direct && !demanded {
        return Ok(Err("the image allows no direct I/O".to_owned()));
    }
    let path = DiskPath::new(
        image,
        options.read_only,
        grain,
        options.map_budget,
        options.pin_reserve,
        options.swap,
        options.may_poll,
    );
    match path {
        Ok(path) => {
            if demanded && options.swap.is_none() {
                image_file::enter_soon(|| path.enter()).map_err(DiskError::NoDiskPath)?;
                path.leave("no guest uses the disk");
            }
            Ok(Ok(Arc::new(path)))
        }
        Err(obstacle) if demanded => Err(DiskError::NoDiskPath(obstacle)),
        Err(obstacle) => {
            log::info!("requests go by the file: {obstacle}");
            Ok(Err(obstacle.to_string()))
        }
    }
}
