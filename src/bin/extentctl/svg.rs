//! `extentctl map --svg`: a picture of a map as a drawing, whose size is
//! bounded.

use std::fmt::Write;

use extentd::options::size;
use extentd::protocol::words::meaning;
use mapping::KindName;

use crate::picture::{Column, KINDS, Picture, ROWS};

/// Most columns, one pixel each.
pub const COLUMNS: u64 = 1000;
/// Height of the strip of kinds, and of each one below it, in pixels.
const STRIP: u64 = 60;
const BAND: u64 = 10;
const MARGIN: u64 = 20;
/// Height of a row of the device.
const ROW: u64 = 2;

const RESIDENT: &str = "#2f855a";
const PINNED: &str = "#6b46c1";
const PLACE: &str = "#2b6cb0";
/// From cold to hot.
const HEAT: [&str; 4] = ["#fed7aa", "#fb923c", "#ea580c", "#9a3412"];

fn colour(kind: KindName) -> &'static str {
    match kind {
        KindName::Written => "#2b6cb0",
        KindName::Shared => "#b7791f",
        KindName::Unwritten => "#90cdf4",
        KindName::Hole => "#e2e8f0",
        KindName::Opaque => "#c53030",
    }
}

/// One below the strip of kinds.
struct Band {
    class: &'static str,
    colour: fn(&Column, u8) -> Option<&'static str>,
}

const BANDS: [Band; 3] = [
    Band {
        class: "resident",
        colour: |column, _| (column.resident > 0).then_some(RESIDENT),
    },
    Band {
        class: "pinned",
        colour: |column, _| (column.pinned > 0).then_some(PINNED),
    },
    Band {
        class: "heat",
        colour: |column, looks| {
            let step = (usize::from(column.heat) * HEAT.len()).div_ceil(usize::from(looks.max(1)));
            HEAT.get(step.checked_sub(1)?).copied()
        },
    },
];

/// The drawing.
pub fn draw(picture: &Picture) -> String {
    let mut text = String::new();
    let width = picture.columns.len() as u64;
    let full = width.max(600) + 2 * MARGIN;
    // Without heat its band is left out.
    let bands = BANDS.len() as u64 - u64::from(picture.looks == 0);
    let strips = STRIP + bands * BAND;
    let place = MARGIN + strips + 40;
    let legend = place + u64::from(ROWS) * ROW + 30;
    let height = legend + 20 * (KINDS.len() as u64 + bands + 1) + MARGIN;
    let whole = size::display(picture.range.end - picture.range.start);
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full} {height}\" \
         width=\"{full}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{} extents in {whole}</title>\n\
         <rect width=\"{full}\" height=\"{height}\" fill=\"#ffffff\"/>",
        picture.pieces.extents,
    );
    draw_kinds(picture, &mut text);
    for (band, y) in BANDS.iter().zip((MARGIN + STRIP..).step_by(10)) {
        draw_band(picture, band, y, &mut text);
    }
    frame(&mut text, MARGIN, width, strips);
    let axis = MARGIN + strips + 15;
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{axis}\">{}</text>\n\
         <text x=\"{}\" y=\"{axis}\" text-anchor=\"end\">{}</text>",
        size::display(picture.range.start),
        MARGIN + width,
        size::display(picture.range.end)
    );
    draw_places(picture, place, &mut text);
    frame(&mut text, place, width, u64::from(ROWS) * ROW);
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{}\">below: where it lies on the device, from its start up to {}</text>",
        place - 5,
        size::display(picture.device_bytes())
    );
    draw_legend(picture, legend, &mut text);
    text.push_str("</svg>\n");
    text
}

fn frame(text: &mut String, y: u64, width: u64, height: u64) {
    let _ = writeln!(
        text,
        "<rect x=\"{MARGIN}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#4a5568\"/>",
    );
}

/// Columns that look alike become one.
fn draw_kinds(picture: &Picture, text: &mut String) {
    let mut x = MARGIN;
    for run in picture.columns.chunk_by(|a, b| shares(a) == shares(b)) {
        let (Some(first), width) = (run.first(), run.len() as u64) else {
            continue;
        };
        let mut y = MARGIN;
        for (share, kind) in shares(first).into_iter().zip(KINDS) {
            if share > 0 {
                let fill = colour(kind);
                let _ = writeln!(
                    text,
                    "<rect class=\"{kind}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{share}\" fill=\"{fill}\"/>"
                );
            }
            y += share;
        }
        x += width;
    }
}

fn draw_band(picture: &Picture, band: &Band, y: u64, text: &mut String) {
    let mut x = MARGIN;
    let colour = |column: &Column| (band.colour)(column, picture.looks);
    for run in picture.columns.chunk_by(|a, b| colour(a) == colour(b)) {
        let width = run.len() as u64;
        if let Some(fill) = run.first().and_then(colour) {
            let class = band.class;
            let _ = writeln!(
                text,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{BAND}\" fill=\"{fill}\"/>"
            );
        }
        x += width;
    }
}

/// One path for all: a stroke for each run of rows of a column. The device
/// begins at the bottom.
fn draw_places(picture: &Picture, y: u64, text: &mut String) {
    let mut path = String::new();
    for (x, column) in (MARGIN..).zip(&picture.columns) {
        let mut rows = column.rows;
        while rows != 0 {
            let from = rows.trailing_zeros();
            let count = (rows >> from).trailing_ones();
            let top = y + u64::from(ROWS - from - count) * ROW;
            let _ = write!(path, "M{x}.5 {top}v{}", u64::from(count) * ROW);
            rows &= u128::MAX.checked_shl(from + count).unwrap_or(0);
        }
    }
    let _ = writeln!(
        text,
        "<path class=\"place\" d=\"{path}\" stroke=\"{PLACE}\" fill=\"none\"/>"
    );
}

fn draw_legend(picture: &Picture, legend: u64, text: &mut String) {
    let mut rows: Vec<_> = KINDS
        .iter()
        .enumerate()
        .map(|(at, kind)| {
            let bytes = size::display(picture.sum(|column| column.kinds[at]));
            (
                Some(colour(*kind)),
                format!("{kind}: {bytes} ({})", meaning(*kind)),
            )
        })
        .collect();
    let resident = size::display(picture.sum(|column| column.resident));
    rows.push((
        Some(RESIDENT),
        format!("below the strip: {resident} whose extents the map has in memory"),
    ));
    let pinned = size::display(picture.sum(|column| column.pinned));
    rows.push((Some(PINNED), format!("below that: {pinned} pinned")));
    if picture.looks > 0 {
        let line = format!(
            "below that: looked up by requests, in up to {} of {} looks",
            picture
                .columns
                .iter()
                .map(|column| column.heat)
                .max()
                .unwrap_or(0),
            picture.looks
        );
        rows.push((Some(HEAT[HEAT.len() / 2]), line));
    }
    rows.push((None, picture.fragmentation()));
    for (row, (colour, line)) in (0u64..).zip(rows) {
        let y = legend + 20 * row;
        if let Some(colour) = colour {
            let _ = writeln!(
                text,
                "<rect x=\"{MARGIN}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\" stroke=\"#4a5568\"/>",
            );
        }
        let (x, y) = (MARGIN + 20, y + 11);
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\">{line}</text>");
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
    use extentd::protocol::extents::Page;
    use serde_json::json;

    use super::*;

    fn page(extents: &[(u64, u64, &str)], resident: &[(u64, u64)]) -> Page {
        let piece = |(start, len, kind): &(u64, u64, &str)| json!({ "start": start, "len": len, "kind": kind, "resident": 0 });
        let extents: Vec<_> = extents.iter().map(piece).collect();
        let page = json!({ "size_bytes": 1 << 20, "extents": extents, "resident": resident, "pinned": [] });
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn extents_are_drawn_where_they_lie() {
        let mut picture = Picture::new(0..1_000_000, COLUMNS);
        picture.add(&page(
            &[(0, 250_000, "written"), (250_000, 500_000, "hole")],
            &[(100_000, 200_000)],
        ));
        let mut last = page(&[(750_000, 250_000, "shared")], &[]);
        last.pinned.push((0, 50_000));
        last.extents[0].disk = Some(0);
        picture.add(&last);
        picture.warm(&[(0, 10_000, 1), (10_000, 20_000, 8)], 8);
        let text = draw(&picture);
        for line in [
            "<rect class=\"written\" x=\"20\" y=\"20\" width=\"250\" height=\"60\" fill=\"#2b6cb0\"/>",
            "<rect class=\"resident\" x=\"120\" y=\"80\" width=\"100\" height=\"10\" fill=\"#2f855a\"/>",
            "<rect class=\"pinned\" x=\"20\" y=\"90\" width=\"50\" height=\"10\" fill=\"#6b46c1\"/>",
            "<rect class=\"heat\" x=\"20\" y=\"100\" width=\"10\" height=\"10\" fill=\"#fed7aa\"/>",
            "<rect class=\"heat\" x=\"30\" y=\"100\" width=\"10\" height=\"10\" fill=\"#9a3412\"/>",
            "<rect class=\"hole\" x=\"270\" y=\"20\" width=\"500\" height=\"60\" fill=\"#e2e8f0\"/>",
            "<rect class=\"shared\" x=\"770\" y=\"20\" width=\"250\" height=\"60\" fill=\"#b7791f\"/>",
            "<title>3 extents in 976.5 KiB</title>",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        for kind in KINDS {
            assert!(text.contains(&format!(">{kind}: ")), "{kind} in the legend");
        }
        // It lies at the start of the device, whose rows begin at the bottom.
        let place = text
            .lines()
            .find(|line| line.starts_with("<path class=\"place\" d=\"M770.5 "));
        let rows = place.unwrap().matches('M').count();
        assert_eq!(rows, 250, "{text}");
    }

    #[test]
    fn without_looks_there_is_no_heat() {
        let mut picture = Picture::new(0..4096, COLUMNS);
        picture.add(&page(&[(0, 4096, "written")], &[]));
        let text = draw(&picture);
        assert!(!text.contains("heat") && !text.contains("looks"), "{text}");
    }

    #[test]
    fn a_drawing_is_bounded_and_every_column_is_full() {
        let mut picture = Picture::new(0..u64::MAX, COLUMNS);
        for at in 0..100_000u64 {
            let kind = KINDS[usize::try_from(at % 5).unwrap()].as_str();
            let mut page = page(&[(at << 47, 1 << 46, kind)], &[(at << 47, (at << 47) + 9)]);
            page.extents[0].disk = Some(at * 7919 % 100_000 * (1 << 40));
            picture.add(&page);
        }
        for column in &picture.columns {
            let sum: u64 = shares(column).iter().sum();
            assert!(sum == STRIP || column.kinds == [0; 5]);
        }
        assert!(draw(&picture).len() < 2 << 20);
    }

    #[test]
    fn a_little_of_a_kind_is_seen() {
        let mut column = Column::default();
        column.kinds[0] = 1 << 60;
        column.kinds[4] = 1;
        assert_eq!(shares(&column), [STRIP - 1, 0, 0, 0, 1]);
    }
}
