//! `extentctl advise` and `populate`: what the map should have in memory, of
//! one range or of all that a file names.

use std::io::{self, IsTerminal};
use std::path::Path;

use extentd::options::byte_range::{self, ByteRange, TypedRange};
use extentd::options::size;
use extentd::protocol::done::Advised;
use extentd::protocol::info::Info;
use extentd::protocol::{Advice, Request};
use indicatif::ProgressBar;
use serde_json::Value;

use crate::ask::{LONG_PATIENCE, PATIENCE, ask, understand};
use crate::bar;
use crate::disks::Shown;
use crate::output::harmless;
use crate::status::Failure;

/// Least that is loaded between two movements of a bar, and about how many
/// there are.
const STEP: u64 = 64 << 20;
const STEPS: u64 = 100;

/// What advice is about.
pub enum About<'a> {
    Range(&'a TypedRange),
    /// Ranges, one after the other.
    From(&'a Path),
}

/// A range as it is typed, in bytes; its disk is asked for its size only where
/// that has to be known.
///
/// # Errors
/// Nobody answers, or no byte lies in it.
pub fn in_bytes(path: &Path, range: &TypedRange) -> Result<ByteRange, Failure> {
    let wrong = |error: byte_range::RangeError| Failure::from(error.to_string());
    match range.fixed().map_err(wrong)? {
        Some(range) => Ok(range),
        None => range.of(size_of(path)?).map_err(wrong),
    }
}

fn size_of(path: &Path) -> Result<u64, Failure> {
    let info: Info = understand(&ask(path, &Request::Info {}, PATIENCE)?)?;
    Ok(info.disk.size_bytes)
}

/// Says it; `alone`: a bar may be drawn meanwhile.
///
/// # Errors
/// It is refused, nobody answers, or the file cannot be read.
pub fn give(path: &Path, advice: Advice, about: &About<'_>, alone: bool) -> Result<Shown, Failure> {
    let (advice, ranges) = match about {
        About::Range(range) => (advice, vec![in_bytes(path, range)?]),
        About::From(file) => {
            // One after the other, however many there are.
            let advice = match advice {
                Advice::Willneed => Advice::Populate,
                other => other,
            };
            (advice, recorded(file, || size_of(path))?)
        }
    };
    let mut steps = ranges;
    let bar = if alone && advice == Advice::Populate && io::stderr().is_terminal() {
        steps = in_steps(&steps, size_of(path)?);
        bar::of_bytes(steps.iter().map(length).sum())
    } else {
        ProgressBar::hidden()
    };
    let mut all: Option<Advised> = None;
    for range in steps {
        let request = Request::Advise { advice, range };
        let answer = ask(path, &request, LONG_PATIENCE).inspect_err(|_| bar.abandon())?;
        let done: Advised = understand(&answer)?;
        bar.inc(done.end.saturating_sub(done.start));
        all = Some(match all {
            None => done,
            Some(before) => joined(&before, done),
        });
    }
    bar.finish_and_clear();
    let all = all.ok_or_else(|| Failure::from("there is no range in it".to_owned()))?;
    let json = serde_json::to_value(&all).map_err(|error| error.to_string())?;
    Ok(Shown {
        json,
        text: told(&all),
        failure: None,
    })
}

fn length(range: &ByteRange) -> u64 {
    range.end.unwrap_or(range.start).saturating_sub(range.start)
}

/// The same ranges in parts, so that a bar moves.
fn in_steps(ranges: &[ByteRange], size: u64) -> Vec<ByteRange> {
    let mut steps = Vec::new();
    for range in ranges {
        let end = range.end.unwrap_or(size);
        let step = (end.saturating_sub(range.start) / STEPS)
            .max(STEP)
            .next_multiple_of(STEP);
        let mut at = range.start;
        loop {
            let next = at.saturating_add(step).min(end);
            steps.push(ByteRange {
                start: at,
                end: Some(next),
            });
            if next >= end {
                break;
            }
            at = next;
        }
    }
    steps
}

/// What two pieces of advice have done: from the first to the last byte, and
/// what is in memory after the second.
fn joined(before: &Advised, mut after: Advised) -> Advised {
    after.start = after.start.min(before.start);
    after.end = after.end.max(before.end);
    after.fiemap_calls += before.fiemap_calls;
    after.took_us += before.took_us;
    after
}

fn told(done: &Advised) -> String {
    let map = if done.in_use {
        "in memory"
    } else {
        "in memory to be shown"
    };
    format!(
        "bytes {} to {}: {}; {} calls of FIEMAP, {}.{:03} ms; now {} windows {map}, {} of {} extents, {} of them pinned\n",
        done.start,
        done.end,
        harmless(&done.done),
        done.fiemap_calls,
        done.took_us / 1000,
        done.took_us % 1000,
        done.resident_windows,
        size::display(done.resident_bytes),
        done.resident_extents,
        size::display(done.pinned_bytes),
    )
}

/// The ranges of a file: what `map --json` has written, of which the windows
/// are meant that were in memory (or, with `--heat`, in use), or one a line as
/// on a command line. Neighbours are joined.
fn recorded(
    file: &Path,
    size: impl FnOnce() -> Result<u64, Failure>,
) -> Result<Vec<ByteRange>, Failure> {
    let failed = |reason: String| Failure::from(format!("--from {}: {reason}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let ranges = if text.trim_start().starts_with('{') {
        of_json(&text).map_err(failed)?
    } else {
        of_lines(&text, size)?.map_err(failed)?
    };
    let mut all: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == Some(range.start) => last.end = range.end,
            _ => all.push(range),
        }
    }
    if all.is_empty() {
        return Err(failed("there is no range in it".to_owned()));
    }
    Ok(all)
}

fn of_json(text: &str) -> Result<Vec<ByteRange>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let parts = value.get("heat").or_else(|| value.get("resident"));
    let parts = parts
        .and_then(Value::as_array)
        .ok_or("this is not what map --json writes")?;
    let range = |part: &Value| {
        let bound = |at: usize| part.get(at).and_then(Value::as_u64);
        let (start, end) = (bound(0)?, bound(1)?);
        (start < end).then_some(ByteRange {
            start,
            end: Some(end),
        })
    };
    let ranges: Option<Vec<_>> = parts.iter().map(range).collect();
    ranges.ok_or_else(|| "this is not what map --json writes".to_owned())
}

fn of_lines(
    text: &str,
    size: impl FnOnce() -> Result<u64, Failure>,
) -> Result<Result<Vec<ByteRange>, String>, Failure> {
    let mut typed = Vec::new();
    for (number, line) in (1u64..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match byte_range::parse(line) {
            Ok(range) => typed.push((number, range)),
            Err(error) => return Ok(Err(format!("line {number}: {error}"))),
        }
    }
    let needs = |range: &TypedRange| matches!(range.fixed(), Ok(None));
    let size = match typed.iter().any(|(_, range)| needs(range)) {
        true => size()?,
        false => 0,
    };
    let ranges = typed.into_iter().map(|(number, range)| {
        let fixed = range.fixed().transpose().unwrap_or_else(|| range.of(size));
        fixed.map_err(|error| format!("line {number}: {error}"))
    });
    Ok(ranges.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: impl Into<Option<u64>>) -> ByteRange {
        let end = end.into();
        ByteRange { start, end }
    }

    fn written(text: &str) -> Result<Vec<ByteRange>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("boot");
        std::fs::write(&file, text).unwrap();
        recorded(&file, || Ok(100 << 20))
    }

    #[test]
    fn lines_are_ranges_in_their_order_and_neighbours_one() {
        let text = "# a boot\n\n8M..12M\n12M+4M # more\n0..8s\n50%..\nall\n";
        let expected = [
            range(8 << 20, 16 << 20),
            range(0, 4096),
            range(50 << 20, None),
            range(0, None),
        ];
        assert_eq!(written(text).unwrap(), expected);
    }

    #[test]
    fn what_map_has_written_is_read_again() {
        let resident = r#"{"size_bytes":1,"extents":[],"resident":[[0,8],[16,32]]}"#;
        assert_eq!(written(resident).unwrap(), [range(0, 8), range(16, 32)]);
        let heat = r#"{"resident":[[0,8]],"heat":[[4,8,1],[8,16,7],[20,30,2]]}"#;
        assert_eq!(written(heat).unwrap(), [range(4, 16), range(20, 30)]);
    }

    #[test]
    fn anything_else_is_refused_with_its_line() {
        for (text, said) in [
            ("0..4K\n4K..2K\n", "line 2: '4K..2K' is empty"),
            ("0..4K\nhope\n", "line 2: 'hope' is not a range"),
            ("", "there is no range in it"),
            (
                "{\"resident\":[[8,0]]}",
                "this is not what map --json writes",
            ),
            ("{\"extents\":[]}", "this is not what map --json writes"),
            ("{", "EOF"),
        ] {
            let error = written(text).unwrap_err();
            assert!(
                error.line.starts_with("--from /") && error.line.contains(said),
                "{error:?}"
            );
        }
        let none = recorded(Path::new("/nowhere/boot"), || Ok(1)).unwrap_err();
        assert!(none.line.starts_with("--from /nowhere/boot: "), "{none:?}");
    }

    #[test]
    fn a_bar_moves_in_steps_that_are_the_whole() {
        for (whole, size) in [
            (range(0, None), 1u64 << 40),
            (range(5 << 20, 7 << 20), 1 << 40),
            (range(1, 200 << 20), 1 << 30),
        ] {
            let steps = in_steps(&[whole], size);
            assert!(steps.len() <= 101);
            assert_eq!(steps.first().unwrap().start, whole.start);
            let end = whole.end.unwrap_or(size);
            assert_eq!(steps.last().unwrap().end, Some(end));
            for pair in steps.windows(2) {
                assert_eq!(pair[0].end, Some(pair[1].start));
            }
        }
    }
}
