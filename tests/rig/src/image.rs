//! Images whose extents are of every kind, in many pieces.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::file_systems::{Mounted, occupy, sync};
use crate::files::{fallocate, punch, reflink, write_direct};
use crate::model::{SECTOR, Value, content};

/// Bytes of an image.
pub const BYTES: usize = 48 << 20;
/// Its sectors.
pub const SECTORS: usize = BYTES / SECTOR;
/// Bytes of a piece that is of one kind.
pub const PIECE: usize = 72 << 10;
/// Bytes of a piece of free space.
const GAP: u64 = 64 << 10;
/// The same where some pieces are small.
pub const MIXED: [u64; 11] = {
    let mut gaps = [8 << 10; 11];
    (gaps[0], gaps[1], gaps[2]) = (GAP, GAP, GAP);
    gaps
};
/// What the sectors that are not zeros hold at first.
pub const FIRST: Value = 1;

/// What the extent under a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Holds data.
    Written,
    /// Allocated, reads as zeros.
    Unwritten,
    /// Not allocated, reads as zeros.
    Hole,
    /// With another file.
    Shared,
}

/// An image, with what its sectors hold.
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// What each of its sectors holds.
    pub values: Vec<Value>,
    /// The file that shares extents with it.
    pub twin: Option<PathBuf>,
}

/// The kind of a piece: every two of them follow on each other somewhere.
pub fn kind(piece: usize) -> Kind {
    match (piece + piece / 4 + piece / 16) % 4 {
        0 => Kind::Written,
        1 => Kind::Unwritten,
        2 => Kind::Hole,
        _ => Kind::Shared,
    }
}

/// The sectors of a piece.
pub fn sectors(piece: usize) -> std::ops::Range<usize> {
    let size = PIECE / SECTOR;
    piece * size..((piece + 1) * size).min(SECTORS)
}

impl Image {
    /// Makes one, in a file system whose free space is in small pieces then.
    /// Where extents cannot be shared, those that should are just written.
    pub fn scattered(host: &Mounted) -> Image {
        Image::in_gaps(host, &[GAP])
    }

    /// As [`scattered`](Self::scattered), in pieces of free space of these
    /// sizes.
    pub fn in_gaps(host: &Mounted, gaps: &[u64]) -> Image {
        let path = host.path("image");
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .custom_flags(libc::O_DIRECT)
                .open(path)
                .unwrap()
        };
        let image = open(&path);
        image.set_len(BYTES as u64).unwrap();
        let (spacer, end) = occupy(host, "spacer");
        let mut at = 0;
        for gap in gaps.iter().cycle() {
            if at + gap > end {
                break;
            }
            punch(&spacer, at, *gap);
            at += 2 * gap;
        }
        sync(host);
        let fill = |wanted: &[Kind]| {
            for piece in 0..SECTORS.div_ceil(PIECE / SECTOR) {
                let range = sectors(piece);
                let offset = range.start * SECTOR;
                match kind(piece) {
                    kind if !wanted.contains(&kind) => continue,
                    Kind::Written | Kind::Shared => {
                        write_direct(&image, &content(FIRST, range), offset);
                    }
                    Kind::Unwritten => {
                        let bytes = range.len() * SECTOR;
                        fallocate(&image, 0, offset as u64, bytes as u64).unwrap();
                    }
                    Kind::Hole => continue,
                }
            }
        };
        fill(&[Kind::Shared]);
        let twin = host.path("twin");
        let twin = (!host.is_ext4()).then_some(twin);
        if let Some(twin) = &twin {
            reflink(&image, &open(twin)).unwrap();
        }
        fill(&[Kind::Written, Kind::Unwritten]);
        std::fs::remove_file(host.path("spacer")).unwrap();
        sync(host);
        let value = |sector: usize| match kind(sector / (PIECE / SECTOR)) {
            Kind::Written | Kind::Shared => FIRST,
            Kind::Unwritten | Kind::Hole => 0,
        };
        Image {
            path,
            values: (0..SECTORS).map(value).collect(),
            twin,
        }
    }

    /// Makes one that is wholly written.
    pub fn written(host: &Mounted, bytes: usize) -> Image {
        let path = host.path("image");
        let sectors = bytes / SECTOR;
        std::fs::write(&path, content(FIRST, 0..sectors)).unwrap();
        sync(host);
        Image {
            path,
            values: vec![FIRST; sectors],
            twin: None,
        }
    }
}
