//! `extentctl map --draw`: a picture of a map as lines of characters.

use std::fmt::Write;

use extentd::options::size;
use extentd::protocol::words::meaning;
use mapping::KindName;

use crate::picture::{Column, KINDS, Picture, ROWS};

/// Width of the names in front of lines.
const NAMES: usize = 10;
/// Lines that the device is shown in.
const LINES: u32 = 8;

fn letter(kind: KindName) -> char {
    match kind {
        KindName::Written => '#',
        KindName::Shared => '%',
        KindName::Unwritten => '-',
        KindName::Hole => '.',
        KindName::Opaque => '?',
    }
}

/// Columns that fit in lines of `width` characters.
pub fn columns(width: u16) -> u64 {
    u64::from(width).saturating_sub(NAMES as u64).clamp(20, 400)
}

/// As lines, with what they mean.
pub fn draw(picture: &Picture) -> String {
    let mut text = String::new();
    let mut line = |name: &str, of: &dyn Fn(&Column) -> char| {
        let cells: String = picture.columns.iter().map(of).collect();
        // Writing to a String does not fail.
        let line = format!("{name:NAMES$}{cells}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("kind", &kind);
    line("in memory", &|column| mark(column.resident > 0, '='));
    line("pinned", &|column| mark(column.pinned > 0, '!'));
    if picture.looks > 0 {
        line("in use", &|column| match column.heat {
            0 => ' ',
            heat => char::from_digit(heat.min(9).into(), 10).unwrap_or('9'),
        });
    }
    let rows = ROWS / LINES;
    for lines in (0..LINES).rev() {
        let name = match lines {
            0 => "device 0".to_owned(),
            _ if lines == LINES - 1 => size::display(picture.device_bytes()),
            _ => String::new(),
        };
        line(&name, &|column| {
            let part = column.rows >> (lines * rows) & ((1 << rows) - 1);
            mark(part != 0, 'o')
        });
    }
    let ends = size::display(picture.range.end);
    let width = picture.columns.len().saturating_sub(ends.len());
    let starts = size::display(picture.range.start);
    let _ = writeln!(text, "{:NAMES$}{starts:width$}{ends}\n", "");
    for (at, name) in KINDS.into_iter().enumerate() {
        let bytes = picture.sum(|column| column.kinds[at]);
        if bytes > 0 {
            let (letter, bytes) = (letter(name), size::display(bytes));
            let _ = writeln!(text, "{letter} {name}: {bytes} ({})", meaning(name));
        }
    }
    let resident = size::display(picture.sum(|column| column.resident));
    let pinned = size::display(picture.sum(|column| column.pinned));
    let _ = writeln!(text, "= {resident} in memory; ! {pinned} pinned");
    if picture.looks > 0 {
        let _ = writeln!(
            text,
            "1 to {}: looked up by requests in so many of {} looks",
            picture.looks, picture.looks
        );
    }
    let _ = writeln!(text, "{}", picture.fragmentation());
    text
}

fn mark(yes: bool, letter: char) -> char {
    if yes { letter } else { ' ' }
}

/// What there is most of.
fn kind(column: &Column) -> char {
    let most = KINDS
        .into_iter()
        .zip(column.kinds)
        .max_by_key(|(_, bytes)| *bytes);
    match most {
        Some((kind, bytes)) if bytes > 0 => letter(kind),
        _ => ' ',
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_characters() {
        let mut picture = Picture::new(0..40 << 20, columns(50));
        let page = json!({
            "size_bytes": 40 << 20,
            "extents": [
                { "start": 0, "len": 20 << 20, "disk": 0, "kind": "written", "resident": 0 },
                { "start": 20 << 20, "len": 10 << 20, "disk": null, "kind": "hole", "resident": 0 },
                { "start": 30 << 20, "len": 10 << 20, "disk": 54 << 20, "kind": "unwritten", "resident": 0 },
            ],
            "resident": [[0, 8 << 20]],
            "pinned": [[4 << 20, 8 << 20]],
        });
        picture.add(&serde_json::from_value(page).unwrap());
        picture.warm(&[(0, 1 << 20, 8), (2 << 20, 4 << 20, 1)], 8);
        let expected = "
kind      ####################..........----------
in memory ========
pinned        !!!!
in use    8 11
64 MiB                                    oooooooo
                                        oo



                          oooo
                  oooooooo
device 0  oooooooo
          0 bytes                           40 MiB

# written: 20 MiB (data of this image alone)
- unwritten: 10 MiB (has a place, reads as zeros)
. hole: 10 MiB (no place, reads as zeros)
= 8 MiB in memory; ! 4 MiB pinned
1 to 8: looked up by requests in so many of 8 looks
3 extents; 30 MiB with a place in 2 pieces, 15 MiB each on average
";
        assert_eq!(draw(&picture), expected.trim_start());
    }
}
