//! The options of a process as they are in force: from the command line, from
//! a file that it names, or by default.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};

use crate::host::reach::{self, NoAnswer};
use crate::options::args::Args;
use crate::options::file::{self, Entry, FileError};
use crate::options::usage;

/// Options that stand for each other: one on the command line is in place of
/// any in the file.
const INSTEAD: [&str; 2] = ["socket-path", "fd"];

/// An option and its value, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The name of the option, without dashes.
    key: String,
    /// As typed; `true` for what has no value.
    value: String,
}

/// All options that have a value, in the order of `--help`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings(Vec<Setting>);

impl Settings {
    /// The value of an option, as text.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let one = self.0.iter().find(|setting| setting.key == key)?;
        Some(&one.value)
    }

    /// Options whose values are others in `new`, with the old and the new one.
    pub(crate) fn changes<'a>(
        &'a self,
        new: &'a Settings,
    ) -> impl Iterator<Item = (&'a str, Option<&'a str>, Option<&'a str>)> {
        let gone = self.0.iter().filter(|one| new.get(&one.key).is_none());
        let keys = new.0.iter().chain(gone).map(|one| one.key.as_str());
        keys.map(|key| (key, self.get(key), new.get(key)))
            .filter(|(_, old, new)| old != new)
    }

    /// Names and values.
    pub(crate) fn all(&self) -> impl Iterator<Item = (String, String)> {
        let pair = |one: &Setting| (one.key.clone(), one.value.clone());
        self.0.iter().map(pair)
    }

    /// One option has another value now.
    pub(crate) fn set(&mut self, key: &str, value: Option<&str>) {
        self.0.retain(|setting| setting.key != key);
        if let Some(value) = value {
            self.0.push(Setting {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
    }
}

/// What was asked for.
#[derive(Debug)]
pub struct Asked {
    /// Checked one by one.
    pub args: Args,
    /// The same as text, with what holds by default.
    pub settings: Settings,
}

/// Words, or a file of options, that were not understood; shown as one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misread {
    /// Also the wish for help.
    #[error("{}", usage::in_one_line(.0))]
    Words(#[from] clap::Error),
    #[error("{0}")]
    File(#[from] FileError),
    /// The file system of the file.
    #[error("{0}")]
    Silent(#[from] NoAnswer),
}

/// The command line of this process, and the file of options that it may name.
///
/// # Errors
/// The status to end with; what is to be said has been said.
pub fn parse() -> Result<Asked, ExitCode> {
    let reached = |path: &Path| Ok(reach::all(vec![("--config", path.to_owned())])?);
    read_with(usage::words(), reached).map_err(|misread| match misread {
        Misread::Words(error) => usage::end(&Args::command(), &error),
        Misread::File(_) | Misread::Silent(_) => {
            usage::complain(&Args::command(), &misread.to_string())
        }
    })
}

/// Reads words and the file that they name, if they name one.
///
/// # Errors
/// What is wrong with a word, or with the file.
pub(crate) fn read(words: Vec<OsString>) -> Result<Asked, Misread> {
    read_with(words, |_| Ok(()))
}

/// As [`read`]; before the file is opened its path is looked at.
fn read_with(
    words: Vec<OsString>,
    look: impl Fn(&Path) -> Result<(), Misread>,
) -> Result<Asked, Misread> {
    let (args, matches) = usage::read::<Args>(words.clone())?;
    let Some(path) = &args.config else {
        return Ok(asked(args, &matches));
    };
    let command = Args::command();
    look(path)?;
    let text = file::read(path)?;
    let mut entries = file::entries(&text, path, &command)?;
    for entry in &entries {
        check(entry, path)?;
    }
    let typed = |key: &str| matches.value_source(&id(key)) == Some(ValueSource::CommandLine);
    let instead = INSTEAD.iter().any(|key| typed(key));
    let replaced = |key: &str| typed(key) || (instead && INSTEAD.contains(&key));
    entries.retain(|entry| !replaced(&entry.key));
    let mut words = words.into_iter();
    let mut all: Vec<OsString> = words.next().into_iter().collect();
    all.extend(entries.into_iter().flat_map(|entry| entry.words));
    all.extend(words);
    let (args, matches) = usage::read::<Args>(all)?;
    Ok(asked(args, &matches))
}

/// An entry of the file by itself, so that what is wrong with it is laid to
/// the file.
fn check(entry: &Entry, path: &Path) -> Result<(), Misread> {
    let mut words: Vec<OsString> = vec!["extentd".into(), "--config".into(), path.into()];
    words.extend(entry.words.iter().cloned());
    match usage::read::<Args>(words) {
        Ok(_) => Ok(()),
        Err(error) => Err(FileError::Line {
            path: path.to_owned(),
            line: entry.line,
            what: Misread::from(error).to_string(),
        }
        .into()),
    }
}

/// What clap calls an option.
fn id(key: &str) -> String {
    key.replace('-', "_")
}

fn asked(args: Args, matches: &ArgMatches) -> Asked {
    let command = Args::command();
    let setting = |arg: &clap::Arg| {
        let key = arg.get_long()?.to_owned();
        let value = if arg.get_action().takes_values() {
            let values = matches.get_raw(arg.get_id().as_str())?;
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            values.join(",")
        } else if matches.get_flag(arg.get_id().as_str()) {
            "true".to_owned()
        } else {
            return None;
        };
        Some(Setting { key, value })
    };
    Asked {
        settings: Settings(command.get_arguments().filter_map(setting).collect()),
        args,
    }
}
