//! What fuzz targets need of the inside (feature `fuzzing`).

use std::io;
use std::ops::{ControlFlow, Range};

use crate::source::extent::Extent;
use crate::source::fiemap;
use crate::sys::FiemapRecord;

/// Logical and physical offset, length and flags of a FIEMAP record.
pub type Record = (u64, u64, u64, u32);

/// Adds what a file of `size` bytes tells of `range` to `extents`, if FIEMAP answers with one of `calls`
/// after the other, and with nothing after that. A call tells at most `batch` records.
///
/// # Errors
/// As [`ExtentSource::fill`](crate::ExtentSource::fill).
pub fn read(
    calls: &[Vec<Record>],
    batch: usize,
    size: u64,
    range: Range<u64>,
    align: u64,
    extents: &mut Vec<Extent>,
) -> io::Result<()> {
    let mut calls = calls.iter();
    let call = |_: &Range<u64>, records: &mut Vec<FiemapRecord>| {
        records.clear();
        let told = calls.next().into_iter().flatten().take(batch);
        records.extend(told.map(|&(logical, physical, length, flags)| {
            FiemapRecord::new(logical, physical, length, flags)
        }));
        Ok(())
    };
    let range = range.start..range.end.min(size);
    fiemap::hand_out(range, align, batch, call, &mut |extent| {
        extents.push(extent);
        ControlFlow::Continue(())
    })
}
