//! The form of every answer on the control socket: which keys, in which order,
//! of which type. `answers.txt` keeps it, for programs read it. A key may be
//! added there; none may go or change its type.

use std::fmt::Write;

use extentd::protocol::done::{Advised, LogLevelNow, OnErrorNow, PathNow, Resized, Retried};
use extentd::protocol::extents::Page;
use extentd::protocol::info::{Info, Selftest};
use extentd::protocol::limits::LimitsNow;
use extentd::protocol::statistics::Statistics;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::rig::Rig;

const KEPT: &str = include_str!("answers.txt");

/// One line per key, with the type of its value; of an array, that of its
/// first element.
fn form(text: &mut String, depth: usize, name: &str, value: &Value) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    writeln!(text, "{:indent$}{name}: {kind}", "", indent = 2 * depth).unwrap();
    match value {
        Value::Array(items) => {
            if let Some(item) = items.first() {
                form(text, depth + 1, "-", item);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                form(text, depth + 1, name, value);
            }
        }
        _ => {}
    }
}

/// Read into its struct and written again, an answer is what it was; what a
/// newer extentd tells besides is left out.
fn understood<T: DeserializeOwned + Serialize>(answer: &Value) {
    let read: T = serde_json::from_value(answer.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), *answer);
    let mut newer = answer.clone();
    newer["brand_new"] = Value::from("x");
    let read: T = serde_json::from_value(newer).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), *answer);
}

fn understood_by_its_struct(command: &str, answer: &Value) {
    match command {
        "advise" => understood::<Advised>(answer),
        "info" => understood::<Info>(answer),
        "io-path" => understood::<PathNow>(answer),
        "limits" => understood::<LimitsNow>(answer),
        "log-level" => understood::<LogLevelNow>(answer),
        "map" => understood::<Page>(answer),
        "on-error" => understood::<OnErrorNow>(answer),
        "retry" => understood::<Retried>(answer),
        "resize" => understood::<Resized>(answer),
        "selftest" => understood::<Selftest>(answer),
        "stats" => understood::<Statistics>(answer),
        other => panic!("no struct for {other}"),
    }
}

fn forms(rig: &Rig, title: &str, commands: &[&[&str]]) -> String {
    let mut text = String::new();
    for command in commands {
        let name = format!("{title} {}", command.join(" "));
        let answer = rig.json(command);
        understood_by_its_struct(command[0], &answer);
        form(&mut text, 0, &name, &answer);
    }
    text
}

/// What is kept of the answers whose titles begin so.
fn kept(title: &str) -> String {
    let mut inside = false;
    let lines = KEPT.lines().filter(|line| {
        if !line.starts_with(' ') {
            inside = line.starts_with(&format!("{title} "));
        }
        inside
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn answers_keep_their_form_on_the_disk_path() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M", "--cpus", "0"]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    let commands: &[&[&str]] = &[
        &["advise", "pin", "0..4M"],
        &["advise", "willneed", "4M..8M"],
        &["io-path", "auto"],
        &["stats"],
        &["info"],
        &["map"],
        &["map", "--limit", "1"],
        &["log-level", "debug"],
        &["limits", "--iops", "1000"],
        &["on-error", "--io-error", "hold"],
        &["retry"],
        &["resize", "16M"],
    ];
    assert_eq!(forms(&rig, "disk", commands), kept("disk"));
}

#[test]
fn answers_keep_their_form_by_the_file() {
    let rig = Rig::on_tmpfs(&["--io-path", "file"]);
    let commands: &[&[&str]] = &[&["io-path", "file"], &["stats"], &["info"]];
    assert_eq!(forms(&rig, "file", commands), kept("file"));
}

#[test]
fn answers_keep_their_form_in_swap_grade_mode() {
    let rig = Rig::on_tmpfs(&["--swap=best-effort"]);
    let mut text = forms(&rig, "swap", &[&["info"]]);
    // Not all of it holds here, so its status is another.
    let tested = rig.extentctl(&["--json", "selftest"]);
    let answer = serde_json::from_str(&tested.out).unwrap();
    understood_by_its_struct("selftest", &answer);
    form(&mut text, 0, "swap selftest", &answer);
    assert_eq!(text, kept("swap"));
}
