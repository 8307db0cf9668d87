//! Answers as tables for people.

use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets};
use extentd::options::size;
use extentd::protocol::info::Property;
use serde::Deserialize;
use serde_json::Value;

use crate::output::harmless;

/// A size for people, with the exact bytes where it was rounded.
pub fn sized(bytes: u64) -> String {
    let short = size::display(bytes);
    if bytes < 1024 {
        short
    } else {
        format!("{short} ({bytes} bytes)")
    }
}

/// A table with these columns.
pub fn columns<const N: usize>(names: [&str; N]) -> Table {
    let mut table = empty();
    table.set_header(names);
    table
}

/// Numbers stand below each other in a column.
pub fn align_right(table: &mut Table, number: usize) {
    if let Some(column) = table.column_mut(number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// As lines, with two spaces between columns.
pub fn drawn(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// Columns are at least as wide, with the space behind them.
pub fn widen<const N: usize>(table: &mut Table, least: [u16; N]) {
    for (column, least) in table.column_iter_mut().zip(least) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
    }
}

/// A table without lines, whose columns come with its rows.
pub fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// One line per value, objects indented under their name.
pub fn table(value: &Value) -> String {
    let mut table = empty();
    rows(value, 0, &mut table);
    drawn(table)
}

fn rows(value: &Value, depth: usize, table: &mut Table) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        let label = format!(
            "{:indent$}{}",
            "",
            harmless(&name.replace('_', " ")),
            indent = depth * 2
        );
        if let Ok(Property { held, detail, .. }) = Property::deserialize(value) {
            let held = if held { "held" } else { "NOT HELD" };
            table.add_row([label, format!("{held}: {}", harmless(&detail))]);
        } else if value.is_object() {
            table.add_row([label, String::new()]);
            rows(value, depth + 1, table);
        } else {
            table.add_row([label, cell(name, value)]);
        }
    }
}

fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => harmless(text),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if name.ends_with("_bytes") => sized(bytes),
            _ => number.to_string(),
        },
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items
            .iter()
            .map(|item| cell(name, item))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Object(_) => harmless(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn info_is_a_table() {
        let info = json!({
            "pid": 7,
            "disk": { "image": "/\u{1b}[2Ji", "read_only": false, "size_bytes": 1_610_612_736_u64 },
            "cpus": [0, 2],
            "swap": { "holds": false, "properties": {
                "io_flusher": { "held": true, "detail": "3 of 3 threads" },
                "lease_held": { "held": false, "detail": "no" },
            }},
        });
        let text = table(&info);
        for line in [
            "pid             7",
            "disk",
            "  image         /\\u{1b}[2Ji",
            "  read only     no",
            "  size bytes    1.5 GiB (1610612736 bytes)",
            "cpus            0, 2",
            "  holds         no",
            "    io flusher  held: 3 of 3 threads",
            "    lease held  NOT HELD: no",
        ] {
            assert!(text.lines().any(|have| have == line), "{line:?} in\n{text}");
        }
    }
}
