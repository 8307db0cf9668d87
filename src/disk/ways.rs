//! What a disk is opened with beside its image.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use mapping::DiskPath;
use mapping::device::BackingDevice;
use mapping::path::{Obstacle, Options};

use super::error::{DiskError, NoRawWay, tell};
use super::image_file;
use crate::engine::limits::Limits;
use crate::engine::manner::Manner;
use crate::engine::pin::Pinner;
use crate::options::config::{DiskOptions, IoPath};

/// The most that a worker reads or writes itself without looking up.
const INLINE_BYTES: u64 = 128 << 10;

/// The way past the file system, and how its device is best used.
#[derive(Debug)]
pub(super) struct RawWay {
    pub path: DiskPath,
    pub manner: Manner,
    pub limits: Limits,
}

impl RawWay {
    fn find(image: &Arc<File>, grain: u64, options: &DiskOptions) -> Result<RawWay, NoRawWay> {
        let device = BackingDevice::find(image).map_err(Obstacle::from)?;
        let manner = Manner::of(device.file(), device.logical_block(), options.may_poll)
            .map_err(Obstacle::from)??;
        let mut limits = Limits::of(device.file()).map_err(Obstacle::from)?;
        if manner == Manner::Inline {
            limits = limits.at_most(INLINE_BYTES);
        }
        let as_asked = Options::default()
            .read_only(options.read_only)
            .grain(grain)
            .budget(options.map_budget)
            .pin_reserve(options.pin_reserve)
            .swap(options.swap)
            .tell(tell);
        Ok(RawWay {
            path: DiskPath::on_device(image, device, &as_asked)?,
            manner,
            limits,
        })
    }
}

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
) -> Result<Result<RawWay, String>, DiskError> {
    if options.io_path == IoPath::Disk {
        return Err(DiskError::RaggedEnd(image.to_owned(), block));
    }
    Ok(Err(format!(
        "the image ends within a block of {block} bytes, of which direct I/O takes no part"
    )))
}

/// The way past the file system, if it is wanted and possible, or a sentence
/// that says why not.
pub(super) fn raw_way(
    image: &Arc<File>,
    block_device: bool,
    direct: bool,
    grain: u64,
    options: &DiskOptions,
) -> Result<Result<RawWay, String>, DiskError> {
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
    match RawWay::find(image, grain, options) {
        Ok(way) => {
            if demanded && options.swap.is_none() {
                image_file::enter_soon(|| way.path.try_now())
                    .map_err(|obstacle| DiskError::NoDiskPath(obstacle.into()))?;
            }
            Ok(Ok(way))
        }
        Err(obstacle) if demanded => Err(DiskError::NoDiskPath(obstacle)),
        Err(obstacle) => {
            log::info!("requests go by the file: {obstacle}");
            Ok(Err(obstacle.to_string()))
        }
    }
}
