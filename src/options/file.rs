//! Options in a file (`--config`): the keys are those of the command line,
//! which wins where both have one. TOML 1.1.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A longer file is none of ours.
const MOST: u64 = 64 << 10;
/// Keys that only a command line has.
const NOT_HERE: [&str; 4] = ["config", "help", "print-capabilities", "version"];
/// From here on a word is like another one (Jaro similarity, 0 to 1).
const ALIKE: f64 = 0.7;

/// What is wrong with a file of options.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("--config {}: {source}: give a file that this user can read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It is something else.
    #[error("--config {}: this is no file of options: give one of TOML, of at most 64 KiB", .0.display())]
    NoFile(PathBuf),
    /// A line of it is wrong.
    #[error("--config {} line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
}

/// An option of the file.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The name of the option, without dashes.
    pub key: String,
    /// As it would be typed.
    pub words: Vec<OsString>,
    /// Counted from 1.
    pub line: usize,
}

/// The text of a file; what is none keeps nobody waiting.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let mut bytes = Vec::new();
    if file.metadata().map_err(failed)?.is_file() {
        file.take(MOST + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 <= MOST
            && let Ok(text) = String::from_utf8(bytes)
        {
            return Ok(text);
        }
    }
    Err(FileError::NoFile(path.to_owned()))
}

/// The options that a text has, for this command.
pub(crate) fn entries(text: &str, path: &Path, command: &Command) -> Result<Vec<Entry>, FileError> {
    let wrong = |at: usize, what: String| FileError::Line {
        path: path.to_owned(),
        line: line_of(text, at),
        what,
    };
    let table = DeTable::parse(text).map_err(|error| {
        let what = error.message().trim().replace('\n', ": ");
        wrong(error.span().map_or(0, |span| span.start), what)
    })?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let at = key.span().start;
        let name = key.get_ref().as_ref();
        let option = find(command, name).ok_or_else(|| wrong(at, unknown(command, name)))?;
        let words = words(option, name, value).map_err(|what| wrong(at, what))?;
        entries.push(Entry {
            key: name.to_owned(),
            words,
            line: line_of(text, at),
        });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        .saturating_add(1)
}

/// The option of that name, if a file may have it.
fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    keys(command).find(|arg| arg.get_long() == Some(name))
}

fn keys(command: &Command) -> impl Iterator<Item = &Arg> {
    let here = |arg: &&Arg| arg.get_long().is_some_and(|name| !NOT_HERE.contains(&name));
    command.get_arguments().filter(here)
}

fn unknown(command: &Command, name: &str) -> String {
    let shown = name.escape_debug();
    if NOT_HERE.contains(&name) {
        return format!("'{shown}' is for the command line only: take it out");
    }
    let nearest = keys(command)
        .filter_map(Arg::get_long)
        .map(|known| (strsim::jaro(known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(alike, _)| *alike > ALIKE);
    match nearest {
        Some((_, known)) => format!("there is no option '{shown}': a similar one is '{known}'"),
        None => format!("there is no option '{shown}': extentd --help lists what there is"),
    }
}

/// What would be typed for it; nothing for what is switched off.
fn words(option: &Arg, name: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, String> {
    let flag = || OsString::from(format!("--{name}"));
    let with = |value: String| OsString::from(format!("--{name}={value}"));
    let takes = option.get_action().takes_values();
    let alone = !takes
        || option
            .get_num_args()
            .is_some_and(|count| count.min_values() == 0);
    let switch = option.get_value_names().unwrap_or_default() == ["on|off"];
    match value.get_ref() {
        DeValue::Boolean(true) if alone => Ok(vec![flag()]),
        DeValue::Boolean(false) if alone => Ok(Vec::new()),
        DeValue::Boolean(on) if switch => Ok(vec![with(if *on { "on" } else { "off" }.to_owned())]),
        _ if !takes => Err(format!("{name}: give true or false")),
        DeValue::Array(values) => {
            let values = values
                .iter()
                .map(|value| plain(value.get_ref()).ok_or_else(|| no_value(name)))
                .collect::<Result<Vec<_>, _>>()?;
            if matches!(option.get_action(), ArgAction::Append) {
                Ok(values.into_iter().map(with).collect())
            } else {
                Ok(vec![with(values.join(","))])
            }
        }
        value => Ok(vec![with(plain(value).ok_or_else(|| no_value(name))?)]),
    }
}

fn no_value(name: &str) -> String {
    format!("{name}: give a string or a number")
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        // Others are read by whoever reads the option.
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().replace('_', "")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::options::args::Args;

    fn typed(text: &str) -> Result<Vec<String>, String> {
        let entries = entries(text, Path::new("f"), &Args::command());
        let entries = entries.map_err(|error| error.to_string())?;
        let words = entries.into_iter().flat_map(|entry| entry.words);
        Ok(words.map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn keys_and_values_are_what_would_be_typed() {
        let text = "# A disk\nblk-file = \"/a b\"\nread-only = true\npin-guest-memory = false\n\
            num-queues = 1_0\nlock = false\nsandbox = \"on\"\nswap = true\ncpus = [0, \"2-3\"]\n\
            map-budget = '2M'\n";
        let expected = [
            "--blk-file=/a b",
            "--read-only",
            "--num-queues=10",
            "--lock=off",
            "--sandbox=on",
            "--swap",
            "--cpus=0,2-3",
            "--map-budget=2M",
        ];
        assert_eq!(typed(text).unwrap(), expected);
        assert_eq!(
            typed("swap = 'best-effort'").unwrap(),
            ["--swap=best-effort"]
        );
        assert_eq!(typed("swap = false").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, expected) in [
            (
                "\nnum_queues = 2",
                "--config f line 2: there is no option 'num_queues': a similar one is 'num-queues'",
            ),
            (
                "zzz = 2",
                "--config f line 1: there is no option 'zzz': extentd --help lists what there is",
            ),
            (
                "config = 'g'",
                "--config f line 1: 'config' is for the command line only: take it out",
            ),
            (
                "read-only = 'yes'",
                "--config f line 1: read-only: give true or false",
            ),
            (
                "serial = true",
                "--config f line 1: serial: give a string or a number",
            ),
            (
                "serial = 1.5",
                "--config f line 1: serial: give a string or a number",
            ),
            (
                "[disk]\nserial = 'a'",
                "--config f line 1: there is no option 'disk': extentd --help lists what there is",
            ),
        ] {
            assert_eq!(typed(text).unwrap_err(), expected);
        }
        for text in ["serial = ", "\u{feff}\0", "serial = 'a'\nserial = 'b'"] {
            let said = typed(text).unwrap_err();
            assert!(said.starts_with("--config f line "), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
