//! `extentctl map --svg`: the image as a strip. Memory and file are bounded
//! whatever the number of extents: they are summed up in columns.

use std::fmt::Write;
use std::ops::Range;

use extentd::options::size;
use extentd::protocol::extents::Page;
use extentd::protocol::words::meaning;
use mapping::KindName;

/// Most columns, one pixel each.
const COLUMNS: u64 = 1000;
/// Height of the strip, and of the one for windows in memory, in pixels.
const STRIP: u64 = 60;
const MEMORY: u64 = 10;
const MARGIN: u64 = 20;

/// From the top, with their colours.
const KINDS: [(KindName, &str); KindName::ALL.len()] = [
    (KindName::Written, "#2b6cb0"),
    (KindName::Shared, "#b7791f"),
    (KindName::Unwritten, "#90cdf4"),
    (KindName::Hole, "#e2e8f0"),
    (KindName::Opaque, "#c53030"),
];
const RESIDENT: &str = "#2f855a";

/// What a column shows, in bytes: by kind, and what is in memory.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Column {
    kinds: [u64; KINDS.len()],
    resident: u64,
}

/// A strip that pages are added to.
pub struct Strip {
    range: Range<u64>,
    columns: Vec<Column>,
    extents: u64,
}

impl Strip {
    /// Of a range of the disk in bytes, which is not empty.
    pub fn new(range: Range<u64>) -> Self {
        let count = (range.end - range.start).clamp(1, COLUMNS);
        Self {
            columns: vec![Column::default(); usize::try_from(count).unwrap_or(1)],
            range,
            extents: 0,
        }
    }

    /// Adds a part of the image.
    pub fn add(&mut self, page: &Page) {
        for extent in &page.extents {
            let Some(kind) = KINDS.iter().position(|(name, _)| extent.kind == *name) else {
                continue;
            };
            self.extents += 1;
            let range = extent.start..extent.start.saturating_add(extent.len);
            self.spread(range, |column, bytes| column.kinds[kind] += bytes);
        }
        for &(start, end) in &page.resident {
            self.spread(start..end, |column, bytes| column.resident += bytes);
        }
    }

    /// Where a column begins.
    fn boundary(&self, column: usize) -> u64 {
        let bytes = u128::from(self.range.end - self.range.start);
        let offset = bytes * column as u128 / self.columns.len() as u128;
        self.range.start + u64::try_from(offset).unwrap_or(u64::MAX)
    }

    fn spread(&mut self, range: Range<u64>, mut add: impl FnMut(&mut Column, u64)) {
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
            let part = to.min(end).saturating_sub(from.max(start));
            if part > 0 {
                add(&mut self.columns[column], part);
            }
        }
    }

    fn sum(&self, of: impl Fn(&Column) -> u64) -> u64 {
        self.columns.iter().map(of).sum()
    }

    /// The drawing.
    pub fn draw(&self) -> String {
        let mut text = String::new();
        let width = self.columns.len() as u64;
        let full = width.max(600) + 2 * MARGIN;
        let legend = MARGIN + STRIP + MEMORY + 40;
        let height = legend + 20 * (KINDS.len() as u64 + 1) + MARGIN;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full} {height}\" \
             width=\"{full}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <title>{} extents in {}</title>\n\
             <rect width=\"{full}\" height=\"{height}\" fill=\"#ffffff\"/>",
            self.extents,
            size::display(self.range.end - self.range.start),
        );
        self.draw_columns(&mut text);
        let _ = writeln!(
            text,
            "<rect x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{width}\" height=\"{}\" fill=\"none\" stroke=\"#4a5568\"/>",
            STRIP + MEMORY
        );
        let axis = MARGIN + STRIP + MEMORY + 15;
        let _ = writeln!(
            text,
            "<text x=\"{MARGIN}\" y=\"{axis}\">{}</text>\n\
             <text x=\"{}\" y=\"{axis}\" text-anchor=\"end\">{}</text>",
            size::display(self.range.start),
            MARGIN + width,
            size::display(self.range.end)
        );
        let mut rows: Vec<_> = KINDS
            .iter()
            .enumerate()
            .map(|(at, (name, colour))| {
                let bytes = size::display(self.sum(|column| column.kinds[at]));
                (*colour, format!("{name}: {bytes} ({})", meaning(*name)))
            })
            .collect();
        let resident = size::display(self.sum(|column| column.resident));
        rows.push((
            RESIDENT,
            format!("below the strip: {resident} whose extents the map has in memory"),
        ));
        for (row, (colour, line)) in (0u64..).zip(rows) {
            let y = legend + 20 * row;
            let _ = writeln!(
                text,
                "<rect x=\"{MARGIN}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\" stroke=\"#4a5568\"/>\n\
                 <text x=\"{}\" y=\"{}\">{line}</text>",
                MARGIN + 20,
                y + 11
            );
        }
        text.push_str("</svg>\n");
        text
    }

    /// Columns that look alike become one.
    fn draw_columns(&self, text: &mut String) {
        let mut x = MARGIN;
        for run in self
            .columns
            .chunk_by(|a, b| shares(a) == shares(b) && (a.resident > 0) == (b.resident > 0))
        {
            let (Some(first), width) = (run.first(), run.len() as u64) else {
                continue;
            };
            let mut y = MARGIN;
            for (share, (name, colour)) in shares(first).into_iter().zip(KINDS) {
                if share > 0 {
                    let _ = writeln!(
                        text,
                        "<rect class=\"{name}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{share}\" fill=\"{colour}\"/>"
                    );
                }
                y += share;
            }
            if first.resident > 0 {
                let y = MARGIN + STRIP;
                let _ = writeln!(
                    text,
                    "<rect class=\"resident\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{MEMORY}\" fill=\"{RESIDENT}\"/>"
                );
            }
            x += width;
        }
    }
}

/// The height of each kind in pixels; together [`STRIP`], and at least one
/// for what is there at all.
fn shares(column: &Column) -> [u64; KINDS.len()] {
    let all: u64 = column.kinds.iter().sum();
    let mut heights = [0; KINDS.len()];
    if all == 0 {
        return heights;
    }
    for (height, bytes) in heights.iter_mut().zip(column.kinds) {
        let share = u128::from(STRIP) * u128::from(bytes) / u128::from(all);
        *height = u64::try_from(share)
            .unwrap_or(STRIP)
            .max(u64::from(bytes > 0));
    }
    // What rounding has added or left goes to the largest.
    let sum: u64 = heights.iter().sum();
    if let Some(largest) = heights.iter_mut().max() {
        *largest = (*largest + STRIP).saturating_sub(sum);
    }
    heights
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(extents: &[(u64, u64, &str)], resident: &[(u64, u64)]) -> Page {
        let piece = |(start, len, kind): &(u64, u64, &str)| json!({ "start": start, "len": len, "kind": kind, "resident": 0 });
        let extents: Vec<_> = extents.iter().map(piece).collect();
        let page = json!({ "size_bytes": 1 << 20, "extents": extents, "resident": resident });
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn extents_are_drawn_where_they_lie() {
        let mut strip = Strip::new(0..1_000_000);
        strip.add(&page(
            &[(0, 250_000, "written"), (250_000, 500_000, "hole")],
            &[(100_000, 200_000)],
        ));
        strip.add(&page(&[(750_000, 250_000, "shared")], &[]));
        let text = strip.draw();
        for line in [
            "<rect class=\"written\" x=\"20\" y=\"20\" width=\"100\" height=\"60\" fill=\"#2b6cb0\"/>",
            "<rect class=\"written\" x=\"120\" y=\"20\" width=\"100\" height=\"60\" fill=\"#2b6cb0\"/>",
            "<rect class=\"resident\" x=\"120\" y=\"80\" width=\"100\" height=\"10\" fill=\"#2f855a\"/>",
            "<rect class=\"hole\" x=\"270\" y=\"20\" width=\"500\" height=\"60\" fill=\"#e2e8f0\"/>",
            "<rect class=\"shared\" x=\"770\" y=\"20\" width=\"250\" height=\"60\" fill=\"#b7791f\"/>",
            "<title>3 extents in 976.5 KiB</title>",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        for (kind, _) in KINDS {
            assert!(text.contains(&format!(">{kind}: ")), "{kind} in the legend");
        }
    }

    #[test]
    fn nothing_is_lost_in_columns() {
        let mut strip = Strip::new(512..512 + (1 << 30) + 7);
        let end = 512 + (1 << 30) + 7;
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
            strip.add(&page(&[(at, len, kind)], &[]));
            at += len;
            if at == end {
                break;
            }
        }
        assert_eq!(strip.sum(|column| column.kinds[0]), written);
        assert_eq!(strip.sum(|column| column.kinds.iter().sum()), (1 << 30) + 7);
    }

    #[test]
    fn a_drawing_is_bounded_and_every_column_is_full() {
        let mut strip = Strip::new(0..u64::MAX);
        for at in 0..100_000u64 {
            let kind = KINDS[usize::try_from(at % 5).unwrap()].0.as_str();
            strip.add(&page(
                &[(at << 47, 1 << 46, kind)],
                &[(at << 47, (at << 47) + 9)],
            ));
        }
        for column in &strip.columns {
            let sum: u64 = shares(column).iter().sum();
            assert!(sum == STRIP || column.kinds == [0; 5]);
        }
        assert!(strip.draw().len() < 1 << 20);
        // A few bytes are fewer columns.
        let mut small = Strip::new(0..3);
        small.add(&page(&[(0, 3, "hole")], &[]));
        assert_eq!(small.columns.len(), 3);
    }

    #[test]
    fn a_little_of_a_kind_is_seen() {
        let mut column = Column::default();
        column.kinds[0] = 1 << 60;
        column.kinds[4] = 1;
        assert_eq!(shares(&column), [STRIP - 1, 0, 0, 0, 1]);
    }
}
