//! Snapshots kept elsewhere: what is written of one and how it is read again,
//! files that are whole or absent, clones, and the end of sharing.

pub mod chain;
pub mod clone;
mod error;
pub mod format;
pub mod progress;
mod reader;
pub mod restore;
pub mod unshare;
mod whole;
pub mod write;

pub use self::error::BackupError;

/// What a backup's bytes say, for fuzz targets: the size of the disk, and each
/// range with its bytes, or none where it is zeros.
///
/// # Errors
/// What is said of bytes that are no backup.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn contents(bytes: &[u8]) -> Result<(u64, Vec<Told>), String> {
    let told = |error: BackupError| error.to_string();
    let name = std::path::Path::new("fuzz");
    let reader = reader::Reader::begin(bytes, name).map_err(told)?;
    let mut reader = reader.ok_or("nothing")?;
    let size = reader.head().size;
    let mut all = Vec::new();
    while let Some(item) = reader.next().map_err(told)? {
        all.push(match item {
            reader::Item::Data(start, data) => (
                start..start.saturating_add(data.len() as u64),
                Some(data.to_vec()),
            ),
            reader::Item::Zeros(range) => (range, None),
        });
    }
    reader.ends().map_err(told)?;
    Ok((size, all))
}

/// A range of a backup.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub type Told = (std::ops::Range<u64>, Option<Vec<u8>>);
