//! What a block device takes in one piece, as its queue in /sys says.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The largest operation that the kernel does not have to split. It splits
/// none that must not wait (`RWF_NOWAIT`), but fails it with EAGAIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes: a multiple of 4096.
    pub bytes: u64,
    /// Pieces of memory, counted as if no two pages were neighbours.
    pub segments: usize,
}

/// Bytes of a page, and the least that every queue takes.
const PAGE: u64 = 4096;

impl Limits {
    /// Nothing is ever too large.
    pub(crate) const NONE: Limits = Limits {
        bytes: u64::MAX,
        segments: usize::MAX,
    };

    /// No operation is longer than `bytes` either.
    pub(crate) fn at_most(self, bytes: u64) -> Limits {
        Limits {
            bytes: self.bytes.min(bytes),
            ..self
        }
    }

    /// Of an open block device; small ones where it does not tell.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) fn of(device: &File) -> io::Result<Limits> {
        let number = |name| -> io::Result<Option<u64>> {
            Ok(attribute(device, name)?.and_then(|text| text.parse().ok()))
        };
        Ok(Limits::from(
            number("max_sectors_kb")?,
            number("max_segments")?,
        ))
    }

    fn from(kilobytes: Option<u64>, segments: Option<u64>) -> Limits {
        let bytes = kilobytes.unwrap_or(128).saturating_mul(1024);
        let segments = segments.unwrap_or(32).max(1);
        Limits {
            bytes: (bytes - bytes % PAGE).max(PAGE),
            segments: usize::try_from(segments).unwrap_or(usize::MAX),
        }
    }
}

/// A line of a device's queue in /sys; a partition has none of its own: its
/// disk is the folder above.
pub(super) fn attribute(device: &File, name: &str) -> io::Result<Option<String>> {
    let number = device.metadata()?.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    Ok(["queue", "../queue"]
        .iter()
        .find_map(|queue| std::fs::read_to_string(folder.join(queue).join(name)).ok())
        .map(|text| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_whole_pages_and_never_nothing() {
        assert_eq!(
            Limits::from(Some(1280), Some(128)),
            Limits {
                bytes: 1280 << 10,
                segments: 128
            }
        );
        let odd = Limits::from(Some(127), Some(0));
        assert_eq!((odd.bytes, odd.segments), (124 << 10, 1));
        assert_eq!(Limits::from(Some(2), None).bytes, 4096);
        assert_eq!(Limits::from(None, None).bytes, 128 << 10);
    }
}
