//! `extentctl`: talks to the control socket of a running `extentd`.

mod cli;
mod extents;
mod svg;
mod table;
mod top;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use extentd::operator::control;
use extentd::operator::metrics;
use extentd::options::byte_range::ByteRange;
use extentd::options::size;
use extentd::options::usage;
use extentd::protocol::done::{Advised, PathNow, Resized};
use extentd::protocol::extents::Page;
use extentd::protocol::info::Selftest;
use extentd::protocol::statistics::Statistics;
use extentd::protocol::{Advice, Answer, Request};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{Args, Command};
use crate::svg::Strip;
use crate::table::{sized, table};

/// A resize of a block device may have to wait for its disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pinning reads the extents of the whole range before it answers.
const LONG_PATIENCE: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let args: Args = match usage::parse() {
        Ok(args) => args,
        Err(status) => return status,
    };
    if let Command::Prepare(command) = &args.command {
        return command.run(args.json);
    }
    let Some(path) = &args.control_path else {
        let line = "give the --control-path of a running extentd";
        return usage::complain(&Args::command(), line);
    };
    match run(&args, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Where standard error is closed, the status has to do.
            let _ = writeln!(io::stderr(), "extentctl: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, path: &Path) -> Result<(), String> {
    let json = |value: &Value| format!("{value:#}\n");
    let (request, patience) = match &args.command {
        // A preparation asks nobody.
        Command::Info | Command::Prepare(_) => (Request::Info {}, PATIENCE),
        Command::Selftest => (Request::Selftest {}, PATIENCE),
        Command::Resize { bytes } => (Request::Resize { bytes: *bytes }, PATIENCE),
        Command::Stats | Command::Metrics => (Request::Stats {}, PATIENCE),
        Command::Advise { advice, range } => {
            let patience = match advice {
                Advice::Pin => LONG_PATIENCE,
                _ => PATIENCE,
            };
            let (advice, range) = (*advice, *range);
            (Request::Advise { advice, range }, patience)
        }
        Command::IoPath { path } => (Request::IoPath { path: *path }, PATIENCE),
        Command::Limits(set) => (Request::Limits { set: *set }, PATIENCE),
        Command::Top { interval, count } => return watch(path, *interval, *count, args.json),
        Command::Map {
            range,
            svg: Some(file),
            ..
        } => return print(&draw(path, *range, file)?),
        Command::Map { range, limit, .. } => {
            let page = list(path, *range, *limit)?;
            if args.json {
                return print(&json(&page_as_value(&page)?));
            }
            return print(&extents::list(&page));
        }
    };
    let result = ask(path, &request, patience)?;
    print(&match &args.command {
        _ if args.json => json(&result),
        Command::Resize { .. } => resized(&understand(&result)?),
        Command::Advise { .. } => advised(&understand(&result)?),
        Command::IoPath { .. } => way(&understand(&result)?),
        Command::Metrics => metrics::exposition(&understand(&result)?),
        // Also what a newer extentd tells besides is shown.
        _ => table(&result),
    })?;
    match &args.command {
        Command::Selftest if !understand::<Selftest>(&result)?.holds => {
            Err("selftest: not all of it holds".to_owned())
        }
        _ => Ok(()),
    }
}

fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| format!("standard output: {error}")),
    }
}

fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Value, String> {
    match control::ask(path, request, patience) {
        Ok(Answer::Result(result)) => Ok(result),
        Ok(Answer::Error(message)) => Err(message),
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ": is extentd running with this --control-path?"
                }
                io::ErrorKind::PermissionDenied => ": be the user that runs extentd",
                io::ErrorKind::InvalidInput => {
                    ": a socket's path has less than 108 bytes: give a shorter one"
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    ": this must be the --control-path of an extentd, not its --socket-path"
                }
                // Whoever else listens there may also close in good order, and so does an extentd
                // that ends.
                io::ErrorKind::UnexpectedEof => {
                    ": try again; this must be the --control-path of an extentd, not its --socket-path"
                }
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    ": extentd does not answer: see whether it is stopped or its file system hangs"
                }
                _ => "",
            };
            Err(format!("--control-path {}: {error}{hint}", path.display()))
        }
    }
}

fn understand<T: DeserializeOwned>(answer: &Value) -> Result<T, String> {
    T::deserialize(answer).map_err(|error| format!("the answer is not understood: {error}"))
}

fn page_as_value(page: &Page) -> Result<Value, String> {
    serde_json::to_value(page).map_err(|error| error.to_string())
}

fn list(path: &Path, range: ByteRange, limit: u32) -> Result<Page, String> {
    let mut all = None;
    extents::each_page(
        range,
        Some(limit),
        |request| understand(&ask(path, request, PATIENCE)?),
        |page| extents::append(&mut all, page),
    )?;
    all.ok_or_else(|| "there is nothing to show".to_owned())
}

fn draw(path: &Path, range: ByteRange, file: &Path) -> Result<String, String> {
    let mut strip = None;
    extents::each_page(
        range,
        None,
        |request| understand(&ask(path, request, PATIENCE)?),
        |page| {
            let end = range.end.unwrap_or(page.size_bytes);
            strip
                .get_or_insert_with(|| Strip::new(range.start..end))
                .add(&page);
        },
    )?;
    let strip = strip.ok_or_else(|| "there is nothing to show".to_owned())?;
    std::fs::write(file, strip.draw())
        .map_err(|error| format!("--svg {}: {error}", file.display()))?;
    Ok(format!("drawn to {}\n", file.display()))
}

fn watch(path: &Path, interval: Duration, count: Option<u64>, json: bool) -> Result<(), String> {
    let mut output = io::stdout();
    let home = if output.is_terminal() { top::HOME } else { "" };
    let mut before = None;
    let mut shown = 0;
    loop {
        let answer = ask(path, &Request::Stats {}, PATIENCE)?;
        let text = if json {
            format!("{answer}\n")
        } else {
            let now: Statistics = understand(&answer)?;
            let text = format!("{home}{}", top::screen(&now, before.as_ref()));
            before = Some(now);
            text
        };
        if output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .is_err()
        {
            // Nobody looks any more.
            return Ok(());
        }
        shown += 1;
        if count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}

fn resized(done: &Resized) -> String {
    format!("the disk has {} now\n", sized(done.size_bytes))
}

fn advised(done: &Advised) -> String {
    format!(
        "bytes {} to {}: {}; now {} windows in memory, {} of extents, {} of them pinned\n",
        done.start,
        done.end,
        done.done,
        done.resident_windows,
        size::display(done.resident_bytes),
        size::display(done.pinned_bytes),
    )
}

fn way(now: &PathNow) -> String {
    format!("requests go by the {}: {}\n", now.path, now.path_reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_one_clear_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let error = ask(&path, &Request::Info {}, PATIENCE).unwrap_err();
        assert!(
            error.starts_with("--control-path /")
                && error.ends_with("is extentd running with this --control-path?"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    }
}
