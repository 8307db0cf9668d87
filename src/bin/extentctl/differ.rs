//! `extentctl diff`: the ranges in which two snapshots differ, or a snapshot and
//! the disk as it is now.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use extentd::disk::at_rest::AtRest;
use extentd::options::{size, usage};
use extentd::protocol::Request;
use extentd::protocol::done::Quiesced;
use extentd::protocol::info::Info;
use mapping::difference::{Comparison, Difference};
use serde_json::{Value, json};

use crate::ask::{LONG_PATIENCE, PATIENCE, ask, understand};
use crate::output::{self, harmless, written};
use crate::status::Failure;

/// How long requests in flight may take to end, in milliseconds.
const WITHIN_MS: u64 = 5000;

/// Two states of one image.
#[derive(Debug, Clone, Args)]
pub struct DiffCommand {
    /// The older state: a snapshot
    #[arg(value_name = "A")]
    pub from: PathBuf,
    /// The newer state: a snapshot; not given, the disk of --control-path, which is held still
    /// meanwhile
    #[arg(value_name = "B")]
    pub to: Option<PathBuf>,
    /// A disk that is held still goes on by itself after so many seconds
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 30, conflicts_with = "to",
        value_parser = usage::number(1..=3600_u64))]
    pub hold: u64,
}

impl DiffCommand {
    /// Compares snapshots.
    ///
    /// # Errors
    /// One of them cannot be read, or standard output not be written.
    pub fn snapshots(&self, to: &Path, as_json: bool) -> Result<(), Failure> {
        compare(&open(&self.from)?, &open(to)?, as_json)
    }

    /// Compares a snapshot with the disk of an extentd, held still.
    ///
    /// # Errors
    /// As [`snapshots`](Self::snapshots), or the disk is not held to the end.
    pub fn live(&self, control: &Path, as_json: bool) -> Result<(), Failure> {
        let from = open(&self.from)?;
        let quiesce = Request::Quiesce {
            hold_ms: self.hold.saturating_mul(1000),
            within_ms: WITHIN_MS,
            sync: true,
        };
        let info: Info = understand(&ask(control, &Request::Info {}, PATIENCE)?)?;
        let held: Quiesced = understand(&ask(control, &quiesce, LONG_PATIENCE)?)?;
        let resume = Request::Resume {
            hold: Some(held.hold),
        };
        let compared = AtRest::open_held(Path::new(&info.disk.image))
            .map_err(|error| Failure::from(error.to_string()))
            .and_then(|to| compare(&from, &to, as_json));
        let resumed = ask(control, &resume, PATIENCE);
        compared?;
        resumed.map(drop).map_err(|failure| {
            let line = format!(
                "what was printed is not to be used: the disk went on before the end ({}): give it longer with --for",
                failure.line
            );
            Failure { line, ..failure }
        })
    }
}

fn open(path: &Path) -> Result<AtRest, Failure> {
    AtRest::open(path).map_err(|error| error.to_string().into())
}

fn compare(from: &AtRest, to: &AtRest, as_json: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let reason = match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                "its file system does not tell where data lie: snapshots need XFS or btrfs"
                    .to_owned()
            }
            _ => error.to_string(),
        };
        Failure::from(format!(
            "{}: {reason}",
            harmless(&from.path.display().to_string())
        ))
    };
    let comparison = Comparison::new(&from.file, &to.file).map_err(failed)?;
    let size = |of: &AtRest| of.size().map_err(|error| Failure::from(error.to_string()));
    let sizes = [size(from)?, size(to)?];
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        written(head_json(
            [from, to],
            sizes,
            comparison.one_disk(),
            &mut out,
        ))?;
    }
    let (mut bytes, mut count) = (0_u64, 0_u64);
    for one in comparison.differences() {
        let one = one.map_err(failed)?;
        written(row(&one, count == 0, as_json, &mut out))?;
        bytes = bytes.saturating_add(one.len);
        count = count.saturating_add(1);
    }
    if as_json {
        written(writeln!(out, "\n  ],\n  \"different_bytes\": {bytes}\n}}"))?;
    }
    written(out.flush())?;
    if !as_json {
        let [from_bytes, to_bytes] = sizes.map(size::display);
        let bytes = size::display(bytes);
        output::complain(&format!(
            "{count} ranges, {bytes}; A has {from_bytes}, B {to_bytes}"
        ));
    }
    Ok(())
}

fn head_json(
    files: [&AtRest; 2],
    sizes: [u64; 2],
    one_disk: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let [from, to] = files.map(|file| Value::from(file.path.to_string_lossy()));
    let [from_bytes, to_bytes] = sizes;
    writeln!(
        out,
        "{{\n  \"from\": {from},\n  \"from_bytes\": {from_bytes},\n  \"to\": {to},\n  \"to_bytes\": {to_bytes},\n  \"one_disk\": {one_disk},"
    )?;
    write!(out, "  \"ranges\": [")
}

fn row(one: &Difference, first: bool, as_json: bool, out: &mut dyn Write) -> io::Result<()> {
    if as_json {
        let row = json!({ "start": one.start, "len": one.len, "zeros": one.zeros });
        let before = if first { "\n    " } else { ",\n    " };
        return write!(out, "{before}{row}");
    }
    let what = if one.zeros { "zeros" } else { "data" };
    writeln!(out, "{} {} {what}", one.start, one.len)
}
