//! A wrong command line is told in one line that names the option.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{ArgMatches, Command, Error, Parser};

use crate::host::logging;

/// Status of a wrong command line.
pub const WRONG: u8 = 2;

/// The command line of this process.
///
/// # Errors
/// The status to end with, when the program was asked for help or was told
/// something that it does not understand; what is to be said about it has been
/// said.
pub fn parse<P: Parser>() -> Result<P, ExitCode> {
    let (parsed, _) = read(words()).map_err(|error| end(&P::command(), &error))?;
    Ok(parsed)
}

/// The words of this process' command line.
pub(crate) fn words() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// The status to end with after words that were no command line, or a wish
/// for help. Where nobody reads, it has to do.
pub(crate) fn end(command: &Command, error: &Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        ExitCode::SUCCESS
    } else if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        ExitCode::from(WRONG)
    } else {
        complain(command, &in_one_line(error))
    }
}

/// Says on standard error what is wrong with the command line; the status to
/// end with. Where nobody reads, the status has to do.
pub fn complain(command: &Command, line: &str) -> ExitCode {
    logging::tell(&format!("{}: {line}", command.get_name()));
    logging::finish();
    ExitCode::from(WRONG)
}

/// For options that are numbers within limits.
pub fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        text.parse()
            .ok()
            .filter(|value| range.contains(value))
            .ok_or_else(|| format!("give a number, {} to {}", range.start(), range.end()))
    }
}

/// For options that are on or off.
///
/// # Errors
/// It is neither.
pub fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".to_owned()),
    }
}

/// As [`parse`], of words that are given, with the line that would be said;
/// `None` for help.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_in_one_line<P: Parser>(words: Vec<OsString>) -> Result<P, Option<String>> {
    match read(words) {
        Ok((parsed, _)) => Ok(parsed),
        Err(error) => Err(error.use_stderr().then(|| in_one_line(&error))),
    }
}

/// Words as options; also which were given.
pub(crate) fn read<P: Parser>(words: Vec<OsString>) -> Result<(P, ArgMatches), Error> {
    let lossy: Vec<OsString> = words
        .iter()
        .map(|word| word.to_string_lossy().into_owned().into())
        .collect();
    match understand(words) {
        // That names no option. Read again with marks for what is no text, the
        // option that cannot have them is named.
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            Err(understand::<P>(lossy).err().unwrap_or(error))
        }
        result => result,
    }
}

fn understand<P: Parser>(words: Vec<OsString>) -> Result<(P, ArgMatches), Error> {
    let mut command = with_negative_values(P::command());
    let matches = command.try_get_matches_from_mut(words)?;
    let parsed = P::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok((parsed, matches))
}

/// `-1` is a wrong value of the option before it, and no option of its own.
fn with_negative_values(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let takes = arg.get_action().takes_values();
            arg.allow_negative_numbers(takes)
        })
        .mut_subcommands(with_negative_values)
}

/// What clap says, without the paragraphs that repeat the usage.
pub(crate) fn in_one_line(error: &Error) -> String {
    let text = error.render().to_string();
    let before = |text: &str, mark: &str| match text.rsplit_once(mark) {
        Some((said, _)) => said.to_owned(),
        None => text.to_owned(),
    };
    let mut said = before(&text, "\n\nFor more information");
    // Of a wrong value the usage is not repeated, but the value is.
    if !matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        said = before(&said, "\n\nUsage:");
    }
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let said = said.replace("\n\n  tip: ", ": ");
    let mut line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    // Of a value that is repeated; terminals might obey it.
    line = line.replace(char::is_control, "\u{fffd}");
    let unknown = [ErrorKind::UnknownArgument, ErrorKind::InvalidSubcommand];
    if unknown.contains(&error.kind()) && !said.contains(": a similar ") {
        line.push_str(": --help lists what there is");
    }
    line
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::options::args::Args;

    fn line(words: &[&[u8]]) -> String {
        let start: [&[u8]; 5] = [b"extentd", b"--socket-path", b"s", b"--blk-file", b"\xff"];
        let words = start.iter().chain(words);
        let words = words
            .map(|word| OsString::from_vec(word.to_vec()))
            .collect();
        in_one_line(&read::<Args>(words).unwrap_err())
    }

    #[test]
    fn each_mistake_is_one_line_that_names_its_option() {
        for (words, expected) in [
            (
                &[&b"--num-queues"[..], b"-1"][..],
                "invalid value '-1' for '--num-queues <N>': give a number, 1 to 256",
            ),
            (
                &[b"--io-path", b"raw"],
                "invalid value 'raw' for '--io-path <WAY>' [possible values: auto, disk, file]",
            ),
            (
                &[b"--serial", b"\xfe\x1b"],
                "invalid value '\u{fffd}' for '--serial <S>': only printable ASCII \
                 characters can be shown to the guest",
            ),
            (
                &[b"--num-queue", b"2"],
                "unexpected argument '--num-queue' found: a similar argument exists: \
                 '--num-queues'",
            ),
            (
                &[b"extra"],
                "unexpected argument 'extra' found: --help lists what there is",
            ),
            (
                &[b"--read-only", b"--read-only"],
                "the argument '--read-only' cannot be used multiple times",
            ),
            (
                &[b"--lock", b"a\n\nUsage: b"],
                "invalid value 'a Usage: b' for '--lock <on|off>': give on or off",
            ),
        ] {
            assert_eq!(line(words), expected);
        }
    }

    #[test]
    fn paths_may_be_any_bytes() {
        let words: [&[u8]; 5] = [b"extentd", b"--socket-path", b"s", b"--blk-file", b"\xff"];
        let words = words.map(|word| OsString::from_vec(word.to_vec()));
        let (args, _) = read::<Args>(words.to_vec()).unwrap();
        assert_eq!(args.blk_file.unwrap().into_os_string().into_vec(), b"\xff");
    }
}
