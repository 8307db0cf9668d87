//! Which disks a command is for, and one after the other what it says of each.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use crate::cli::Args;
use crate::output;
use crate::status::{Failure, Status};

/// Names of control sockets end so.
const ENDINGS: [&str; 2] = ["control", "ctl"];

/// What a command says of a disk.
#[derive(Debug)]
pub struct Shown {
    /// For programs.
    pub json: Value,
    /// For people.
    pub text: String,
    /// Also where that is shown it may be a failure.
    pub failure: Option<Failure>,
}

/// The control sockets that are meant; `None` if none is named.
///
/// # Errors
/// The folder cannot be read, or has none.
pub fn named(args: &Args) -> Result<Option<Vec<PathBuf>>, Failure> {
    let Some(folder) = &args.all else {
        let paths = &args.control_path;
        return Ok((!paths.is_empty()).then(|| paths.clone()));
    };
    let failed = |error| {
        let line = format!("--all={}: {error}", folder.display());
        Failure::new(Status::Silent, line)
    };
    let found = of_folder(folder).map_err(failed)?;
    if found.is_empty() {
        return Err(Failure::new(
            Status::Silent,
            format!(
                "--all={}: no control socket (*.control, *.ctl) is there: give their folder",
                folder.display()
            ),
        ));
    }
    Ok(Some(found))
}

/// The control sockets of a folder, by name.
///
/// # Errors
/// It cannot be read.
pub fn of_folder(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Asks all disks at once, so that none waits for another one; what each says,
/// in their order.
pub fn at_once<P: Sync, T: Send>(
    paths: &[P],
    ask: impl Fn(&P) -> Result<T, Failure> + Sync,
) -> Vec<Result<T, Failure>> {
    thread::scope(|scope| {
        let ask = &ask;
        let asked = paths.iter().map(|path| scope.spawn(move || ask(path)));
        let asked: Vec<_> = asked.collect();
        let ended = asked.into_iter().map(|thread| thread.join());
        let all = ended.map(|result| {
            result.unwrap_or_else(|_| Err("it could not be asked".to_owned().into()))
        });
        all.collect()
    })
}

/// Has all disks asked [`at_once`], and shows
/// what each says; `named`: with its name, also where there is one only.
///
/// # Errors
/// What is to be said at the end; of several disks, it was said of each.
pub fn show_all(
    paths: &[PathBuf],
    named: bool,
    as_json: bool,
    ask: impl Fn(&Path) -> Result<Shown, Failure> + Sync,
) -> Result<(), Failure> {
    if let ([path], false) = (paths, named) {
        let shown = ask(path)?;
        if as_json {
            output::print_json(&shown.json)?;
        } else {
            output::print(&shown.text)?;
        }
        return shown.failure.map_or(Ok(()), Err);
    }
    let results = at_once(paths, |path: &PathBuf| ask(path));
    let mut worst: Option<Status> = None;
    let mut list = Vec::new();
    let mut text = String::new();
    for (path, result) in paths.iter().zip(results) {
        let (shown, failure) = match result {
            Ok(shown) => (Some((shown.json, shown.text)), shown.failure),
            Err(failure) => (None, Some(failure)),
        };
        let name = path.display().to_string();
        if let Some(failure) = &failure {
            worst = worst.max(Some(failure.status));
            let line = if failure.line.contains(&name) {
                String::new()
            } else {
                format!("{name}: ")
            };
            output::complain(&format!("{line}{}", failure.line));
        }
        match (shown, failure) {
            (Some((json, lines)), _) => {
                list.push(json!({ "control_path": name, "result": json }));
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&output::heading(&name));
                text.push_str(&lines);
            }
            (None, failure) => {
                let line = failure.map(|failure| failure.line);
                list.push(json!({ "control_path": name, "error": line }));
            }
        }
    }
    if as_json {
        output::print_json(&Value::Array(list))?;
    } else {
        output::print(&text)?;
    }
    match worst {
        None => Ok(()),
        Some(status) => Err(Failure::new(status, "")),
    }
}
