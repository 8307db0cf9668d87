//! What is drawn of a map: where the image lies on its device, of which kind it
//! is, what is in memory, pinned and in use. Memory is bounded whatever the
//! number of extents: they are summed up in columns.

use std::ops::Range;

use extentd::options::size;
use extentd::protocol::extents::Page;
use mapping::KindName;

/// From the top.
pub const KINDS: [KindName; KindName::ALL.len()] = [
    KindName::Written,
    KindName::Shared,
    KindName::Unwritten,
    KindName::Hole,
    KindName::Opaque,
];

/// Rows of the device, as many as a column has bits for.
pub const ROWS: u32 = u128::BITS;

/// What a column shows, in bytes: by kind, and what is in memory.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Column {
    pub kinds: [u64; KINDS.len()],
    pub resident: u64,
    pub pinned: u64,
    /// In how many looks it was in use.
    pub heat: u8,
    /// Where it lies on the device: a bit for each row, the lowest first.
    pub rows: u128,
}

/// How much of an image is in how many pieces.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Pieces {
    /// Extents of any kind.
    pub extents: u64,
    /// Runs of data that lie behind each other on the device.
    pub runs: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Where the last one ends, in the image and on the device.
    end: Option<(u64, u64)>,
}

/// A picture that pages are added to.
pub struct Picture {
    pub range: Range<u64>,
    pub columns: Vec<Column>,
    pub pieces: Pieces,
    /// Bytes of the device in a row: a power of two.
    pub row_bytes: u64,
    /// Looks that heat was counted in; 0 where it was not.
    pub looks: u8,
}

impl Picture {
    /// Of a range of the disk in bytes, which is not empty, in so many columns
    /// at most.
    pub fn new(range: Range<u64>, columns: u64) -> Self {
        let count = (range.end - range.start).clamp(1, columns.max(1));
        Self {
            columns: vec![Column::default(); usize::try_from(count).unwrap_or(1)],
            range,
            pieces: Pieces::default(),
            row_bytes: 1 << 12,
            looks: 0,
        }
    }

    /// Adds a part of the image.
    pub fn add(&mut self, page: &Page) {
        for extent in &page.extents {
            let Some(kind) = KINDS.iter().position(|name| extent.kind == *name) else {
                continue;
            };
            self.pieces.extents += 1;
            let range = extent.start..extent.start.saturating_add(extent.len);
            if let Some(disk) = extent.disk {
                self.pieces.add(&range, disk);
                self.place(&range, disk);
            }
            self.spread(range, |column, part| {
                column.kinds[kind] += part.end - part.start;
            });
        }
        for &(start, end) in &page.resident {
            self.spread(start..end, |column, part| {
                column.resident += part.end - part.start;
            });
        }
        for &(start, end) in &page.pinned {
            self.spread(start..end, |column, part| {
                column.pinned += part.end - part.start;
            });
        }
    }

    /// Adds what was in use in how many of so many looks.
    pub fn warm(&mut self, heat: &[(u64, u64, u8)], looks: u8) {
        self.looks = looks;
        for &(start, end, level) in heat {
            self.spread(start..end, |column, _| column.heat = column.heat.max(level));
        }
    }

    /// An extent has its place in the columns.
    fn place(&mut self, range: &Range<u64>, disk: u64) {
        let end = disk.saturating_add(range.end - range.start);
        while u128::from(end) > u128::from(self.row_bytes) * u128::from(ROWS) {
            self.row_bytes *= 2;
            for column in &mut self.columns {
                column.rows = folded(column.rows);
            }
        }
        let (row_bytes, start) = (self.row_bytes, range.start);
        self.spread(range.clone(), |column, part| {
            let from = (disk + (part.start - start)) / row_bytes;
            let to = (disk + (part.end - start)).saturating_sub(1) / row_bytes;
            for row in from..=to.max(from) {
                column.rows |= 1u128
                    .checked_shl(u32::try_from(row).unwrap_or(ROWS))
                    .unwrap_or(0);
            }
        });
    }

    /// Where a column begins.
    fn boundary(&self, column: usize) -> u64 {
        let bytes = u128::from(self.range.end - self.range.start);
        let offset = bytes * column as u128 / self.columns.len() as u128;
        self.range.start + u64::try_from(offset).unwrap_or(u64::MAX)
    }

    fn spread(&mut self, range: Range<u64>, mut add: impl FnMut(&mut Column, Range<u64>)) {
        let start = range.start.max(self.range.start);
        let end = range.end.min(self.range.end);
        if start >= end {
            return;
        }
        let bytes = u128::from(self.range.end - self.range.start);
        let into = u128::from(start - self.range.start);
        let first = usize::try_from(into * self.columns.len() as u128 / bytes).unwrap_or(0);
        for column in first..self.columns.len() {
            let (from, to) = (self.boundary(column), self.boundary(column + 1));
            if from >= end {
                break;
            }
            let part = from.max(start)..to.min(end);
            if part.start < part.end {
                add(&mut self.columns[column], part);
            }
        }
    }

    /// The sum of all columns.
    pub fn sum(&self, of: impl Fn(&Column) -> u64) -> u64 {
        self.columns.iter().map(of).sum()
    }

    /// Bytes of the device that the rows stand for.
    pub fn device_bytes(&self) -> u64 {
        self.row_bytes.saturating_mul(ROWS.into())
    }

    /// How many pieces the data are in, for people.
    pub fn fragmentation(&self) -> String {
        let Pieces {
            extents,
            runs,
            bytes,
            ..
        } = self.pieces;
        let mean = bytes.checked_div(runs).map_or_else(String::new, |mean| {
            format!(", {} each on average", size::display(mean))
        });
        format!(
            "{extents} extents; {} with a place in {runs} pieces{mean}",
            size::display(bytes)
        )
    }
}

impl Pieces {
    fn add(&mut self, range: &Range<u64>, disk: u64) {
        let goes_on = self.end == Some((range.start, disk));
        self.runs += u64::from(!goes_on);
        self.bytes += range.end - range.start;
        self.end = Some((range.end, disk.saturating_add(range.end - range.start)));
    }
}

/// Two rows become one.
fn folded(rows: u128) -> u128 {
    (0..ROWS / 2)
        .filter(|row| rows >> (row * 2) & 3 != 0)
        .fold(0, |sum, row| sum | 1 << row)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(extents: &[(u64, u64, Option<u64>, &str)]) -> Page {
        let piece = |(start, len, disk, kind): &(u64, u64, Option<u64>, &str)| json!({ "start": start, "len": len, "disk": disk, "kind": kind, "resident": 0 });
        let extents: Vec<_> = extents.iter().map(piece).collect();
        let page = json!({ "size_bytes": 1 << 20, "extents": extents, "resident": [], "pinned": [[0, 4096]] });
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn nothing_is_lost_in_columns() {
        let end = 512 + (1 << 30) + 7;
        let mut picture = Picture::new(512..end, 1000);
        let mut at = 512;
        let mut written = 0;
        for turn in 0u64.. {
            let len = (turn * 7919 % 40_000 * 512 + 512).min(end - at);
            let kind = if turn % 2 == 0 {
                "written"
            } else {
                "unwritten"
            };
            written += if turn % 2 == 0 { len } else { 0 };
            picture.add(&page(&[(at, len, None, kind)]));
            at += len;
            if at == end {
                break;
            }
        }
        assert_eq!(picture.sum(|column| column.kinds[0]), written);
        assert_eq!(
            picture.sum(|column| column.kinds.iter().sum()),
            (1 << 30) + 7
        );
        // A few bytes are fewer columns.
        assert_eq!(Picture::new(0..3, 1000).columns.len(), 3);
    }

    #[test]
    fn rows_are_where_the_data_lie_however_far() {
        let mut picture = Picture::new(0..4096, 4);
        picture.add(&page(&[(0, 1024, Some(4096), "written")]));
        assert_eq!((picture.columns[0].rows, picture.row_bytes), (2, 4096));
        picture.add(&page(&[(1024, 1024, Some(1 << 40), "written")]));
        let rows = |at: usize| picture.columns[at].rows;
        // The first lies in the lowest row now, and the other one in the upper half.
        assert_eq!(rows(0), 1);
        assert_eq!(rows(1), 1 << 64);
        assert_eq!(rows(2), 0);
        assert_eq!(picture.device_bytes(), 2 << 40);
    }

    #[test]
    fn what_goes_on_is_one_piece() {
        let mut picture = Picture::new(0..1 << 20, 10);
        picture.add(&page(&[
            (0, 4096, Some(8192), "written"),
            (4096, 4096, Some(12288), "unwritten"),
            (8192, 4096, None, "hole"),
        ]));
        picture.add(&page(&[(12288, 8192, Some(20480), "written")]));
        assert_eq!((picture.pieces.extents, picture.pieces.runs), (4, 2));
        assert_eq!(
            picture.fragmentation(),
            "4 extents; 16 KiB with a place in 2 pieces, 8 KiB each on average"
        );
        assert_eq!(picture.sum(|column| column.pinned), 8192);
    }
}
