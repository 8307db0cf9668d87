//! What is written for people and for programs. Colours go to terminals only,
//! and not where `NO_COLOR` is set.

use std::io::{self, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::status::Failure;

const HEADING: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Words that stand out. What is shown has no other escapes, so that nothing
/// else is taken for one.
const MARKED: [(&str, Style); 4] = [
    ("  held: ", GOOD),
    ("  NOT HELD: ", BAD),
    (" thread-stands ", BAD),
    (" guard-late ", BAD),
];

/// A line that says of what the next ones are.
pub fn heading(text: &str) -> String {
    format!("{HEADING}{}{HEADING:#}\n", harmless(text))
}

/// A text from elsewhere, with what a terminal obeys escaped.
pub fn harmless(text: &str) -> String {
    let escaped = |c: char| {
        let turns = matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let escape = (c.is_control() || turns).then(|| c.escape_default());
        let plain = escape.is_none().then_some(c);
        escape.into_iter().flatten().chain(plain)
    };
    text.chars().flat_map(escaped).collect()
}

/// Writes text for people to standard output.
///
/// # Errors
/// It cannot be written. Where nobody reads any more it has been seen.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut marked = text.to_owned();
    for (words, style) in MARKED {
        let trimmed = words.trim();
        let with_style = words.replace(trimmed, &format!("{style}{trimmed}{style:#}"));
        marked = marked.replace(words, &with_style);
    }
    written(AutoStream::auto(io::stdout()).write_all(marked.as_bytes()))
}

/// Writes an answer for programs to standard output.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &Value) -> Result<(), Failure> {
    print_as_it_is(&format!("{value:#}\n"))
}

/// Writes text without any colours.
///
/// # Errors
/// As [`print()`].
pub fn print_as_it_is(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout();
    let result = output.write_all(text.as_bytes());
    written(result.and_then(|()| output.flush()))
}

/// What a write to standard output came to.
///
/// # Errors
/// As [`print()`].
pub fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| format!("standard output: {error}").into()),
    }
}

/// Says on standard error what failed. Where that is closed, the status has to
/// do.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "extentctl: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_is_obeyed() {
        assert_eq!(
            harmless("/ä \u{1b}[2J\n\u{202e}x"),
            "/ä \\u{1b}[2J\\n\\u{202e}x"
        );
    }
}
