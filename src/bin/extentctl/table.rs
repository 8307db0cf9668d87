//! Answers as tables for people.

use std::fmt::Write;

use extentd::options::size;
use extentd::protocol::info::Property;
use serde::Deserialize;
use serde_json::Value;

/// A size for people, with the exact bytes where it was rounded.
pub fn sized(bytes: u64) -> String {
    let short = size::display(bytes);
    if bytes < 1024 {
        short
    } else {
        format!("{short} ({bytes} bytes)")
    }
}

/// One line per value, objects indented under their name.
pub fn table(value: &Value) -> String {
    let mut text = String::new();
    rows(value, 0, &mut text);
    text
}

fn rows(value: &Value, depth: usize, text: &mut String) {
    let Value::Object(fields) = value else { return };
    let indent = depth * 2;
    let width = fields
        .iter()
        .filter(|(_, value)| !value.is_object())
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    for (name, value) in fields {
        let label = name.replace('_', " ");
        // Writing to a String does not fail.
        if let Ok(Property { held, detail, .. }) = Property::deserialize(value) {
            let held = if held { "held" } else { "NOT HELD" };
            let _ = writeln!(text, "{:indent$}{label:16}  {held}: {detail}", "");
        } else if value.is_object() {
            let _ = writeln!(text, "{:indent$}{label}", "");
            rows(value, depth + 1, text);
        } else {
            let _ = writeln!(text, "{:indent$}{label:width$}  {}", "", cell(name, value));
        }
    }
}

fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
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
        Value::Object(_) => value.to_string(),
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
            "disk": { "image": "/i", "read_only": false, "size_bytes": 1_610_612_736_u64 },
            "cpus": [0, 2],
            "swap": { "holds": false, "properties": {
                "io_flusher": { "held": true, "detail": "3 of 3 threads" },
                "lease_held": { "held": false, "detail": "no" },
            }},
        });
        let text = table(&info);
        for line in [
            "pid   7",
            "disk",
            "  image       /i",
            "  read only   no",
            "  size bytes  1.5 GiB (1610612736 bytes)",
            "cpus  0, 2",
            "  holds  no",
            "    io flusher        held: 3 of 3 threads",
            "    lease held        NOT HELD: no",
        ] {
            assert!(text.lines().any(|have| have == line), "{line:?} in\n{text}");
        }
    }
}
