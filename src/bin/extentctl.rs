//! `extentctl`: talks to the control socket of a running `extentd`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use extentd::control::{self, Answer, Request};
use extentd::size;
use serde_json::Value;

/// A resize of a block device may have to wait for its disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shows and changes what a running extentd serves.
#[derive(Debug, Parser)]
#[command(name = "extentctl", version)]
struct Args {
    /// The --control-path of that extentd
    #[arg(long, value_name = "PATH")]
    control_path: PathBuf,

    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Show what is served, how, and to whom
    Info,
    /// Change the size of the disk; a running guest is told
    Resize {
        /// The new size: bytes, or with K, M, G or T (powers of 1024)
        #[arg(value_name = "SIZE", value_parser = size::parse)]
        bytes: u64,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let request = match args.command {
        Command::Info => Request::Info {},
        Command::Resize { bytes } => Request::Resize { bytes },
    };
    let text = match ask(&args.control_path, &request) {
        Ok(result) if args.json => format!("{result:#}\n"),
        Ok(result) => match args.command {
            Command::Info => table(&result),
            Command::Resize { .. } => resized(&result),
        },
        Err(message) => {
            // Where standard error is closed, the status has to do.
            let _ = writeln!(io::stderr(), "extentctl: {message}");
            return ExitCode::FAILURE;
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn ask(path: &Path, request: &Request) -> Result<Value, String> {
    match control::ask(path, request, PATIENCE) {
        Ok(Answer::Result(result)) => Ok(result),
        Ok(Answer::Error(message)) => Err(message),
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ": is extentd running with this --control-path?"
                }
                io::ErrorKind::PermissionDenied => ": be the user that runs extentd",
                _ => "",
            };
            Err(format!("--control-path {}: {error}{hint}", path.display()))
        }
    }
}

fn resized(result: &Value) -> String {
    match result.get("size_bytes").and_then(Value::as_u64) {
        Some(bytes) => format!("the disk has {} now\n", sized(bytes)),
        None => "done\n".to_owned(),
    }
}

/// A size for people, with the exact bytes where it was rounded.
fn sized(bytes: u64) -> String {
    let short = size::display(bytes);
    if bytes < 1024 {
        short
    } else {
        format!("{short} ({bytes} bytes)")
    }
}

/// One line per value, objects indented under their name.
fn table(value: &Value) -> String {
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
        if value.is_object() {
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
    use clap::CommandFactory;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn json_may_stand_before_and_after_the_command() {
        for line in [
            "--json --control-path c info",
            "--control-path c info --json",
        ] {
            let args =
                Args::try_parse_from(std::iter::once("extentctl").chain(line.split(' '))).unwrap();
            assert!(args.json && matches!(args.command, Command::Info));
        }
    }

    #[test]
    fn sizes_are_parsed_before_anybody_is_asked() {
        let parse =
            |size| Args::try_parse_from(["extentctl", "--control-path", "c", "resize", size]);
        assert!(matches!(
            parse("2G").unwrap().command,
            Command::Resize { bytes: 0x8000_0000 }
        ));
        assert_eq!(parse("2X").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn info_is_a_table() {
        let info = json!({
            "pid": 7,
            "disk": { "image": "/i", "read_only": false, "size_bytes": 1_610_612_736_u64 },
            "cpus": [0, 2],
        });
        let text = table(&info);
        for line in [
            "pid   7",
            "disk",
            "  image       /i",
            "  read only   no",
            "  size bytes  1.5 GiB (1610612736 bytes)",
            "cpus  0, 2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn nobody_there_is_one_clear_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let error = ask(&path, &Request::Info {}).unwrap_err();
        assert!(
            error.starts_with("--control-path /")
                && error.ends_with("is extentd running with this --control-path?"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    }
}
