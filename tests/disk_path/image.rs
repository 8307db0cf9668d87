//! Images whose extents are of every kind, in many pieces.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::file_systems::Mounted;
use rig::files::{fallocate, punch, reflink};
use rig::program::run;

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
    Written,
    Unwritten,
    Hole,
    /// With another file.
    Shared,
}

/// An image, with what its sectors hold.
pub struct Image {
    pub path: PathBuf,
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

/// What was freed may be used, and what was written is on the disk.
pub fn sync(host: &Mounted) {
    run(Command::new("sync").arg("-f").arg(host.root())).unwrap();
}

/// A new file that leaves no block free, and where it ends.
pub fn occupy(host: &Mounted, name: &str) -> (File, u64) {
    let file = host.create(name);
    let (mut end, mut step) = (0, 64 << 20);
    while step >= 1024 {
        match fallocate(&file, 0, end, step) {
            Ok(()) => end += step,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                step /= 2;
            }
        }
    }
    (file, end)
}

/// A buffer for direct I/O; the kernel takes what `Vec` gives only by chance.
pub fn write_direct(file: &File, bytes: &[u8], offset: usize) {
    try_write_direct(file, bytes, offset).unwrap();
}

/// As [`write_direct`], where there may be no room.
pub fn try_write_direct(file: &File, bytes: &[u8], offset: usize) -> std::io::Result<()> {
    let mut room = vec![0; bytes.len() + 4096];
    let start = room.as_ptr().align_offset(4096);
    room[start..start + bytes.len()].copy_from_slice(bytes);
    file.write_all_at(&room[start..start + bytes.len()], offset as u64)
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

/// What is on the disk of a file, past the page cache.
pub fn read_direct(path: &Path) -> Vec<u8> {
    const CHUNK: usize = 1 << 20;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut room = vec![0; CHUNK + 4096];
    let start = room.as_ptr().align_offset(4096);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let chunk = &mut room[start..start + CHUNK];
        let count = file.read_at(chunk, bytes.len() as u64).unwrap();
        assert!(count > 0, "{} has become shorter", path.display());
        bytes.extend_from_slice(&chunk[..count]);
    }
    bytes
}
