//! What commands ask for that have one answer, and how it is shown.

use std::path::Path;

use extentd::operator::metrics;
use extentd::options::byte_range::ByteRange;
use extentd::options::size;
use extentd::protocol::done::{Advised, OptionsNow, PathNow, Quiesced, Resized, Retried};
use extentd::protocol::extents::Page;
use extentd::protocol::info::Selftest;
use extentd::protocol::{Advice, Request};
use serde_json::Value;

use crate::ask::{LONG_PATIENCE, PATIENCE, ask, understand};
use crate::disks::Shown;
use crate::extents;
use crate::output::harmless;
use crate::status::Failure;
use crate::svg::Strip;
use crate::table::{sized, table};

/// Asks one extentd.
///
/// # Errors
/// It is refused, or nobody answers.
pub fn request(request: &Request, path: &Path) -> Result<Shown, Failure> {
    let patience = match request {
        Request::Advise {
            advice: Advice::Pin,
            ..
        }
        | Request::Quiesce { .. } => LONG_PATIENCE,
        _ => PATIENCE,
    };
    let json = ask(path, request, patience)?;
    let mut failure = None;
    let text = match request {
        Request::Resize { .. } => resized(&understand(&json)?),
        Request::Advise { .. } => advised(&understand(&json)?),
        Request::IoPath { .. } => way(&understand(&json)?),
        Request::Retry {} => retried(&understand(&json)?),
        Request::Quiesce { .. } => quiesced(&understand(&json)?),
        Request::Resume {} => "the disk goes on\n".to_owned(),
        Request::Options {} => as_file(&understand(&json)?),
        Request::Selftest {} => {
            if !understand::<Selftest>(&json)?.holds {
                failure = Some("selftest: not all of it holds".to_owned().into());
            }
            table(&json)
        }
        // Also what a newer extentd tells besides is shown.
        _ => table(&json),
    };
    Ok(Shown {
        json,
        text,
        failure,
    })
}

/// The counters as OpenMetrics text.
///
/// # Errors
/// As [`request`].
pub fn exposition(path: &Path) -> Result<Shown, Failure> {
    let json = ask(path, &Request::Stats {}, PATIENCE)?;
    let text = metrics::exposition(&understand(&json)?);
    Ok(Shown {
        json,
        text,
        failure: None,
    })
}

/// The extents of a range, page by page.
///
/// # Errors
/// As [`request`].
pub fn list(path: &Path, range: ByteRange, limit: u32) -> Result<Shown, Failure> {
    let mut all: Option<Page> = None;
    extents::each_page(
        range,
        Some(limit),
        |request| understand(&ask(path, request, PATIENCE)?),
        |page| extents::append(&mut all, page),
    )?;
    let page = all.ok_or_else(|| Failure::from("there is nothing to show".to_owned()))?;
    let json = serde_json::to_value(&page).map_err(|error| error.to_string())?;
    Ok(Shown {
        json,
        text: extents::list(&page),
        failure: None,
    })
}

/// Draws the extents of a range into a file.
///
/// # Errors
/// As [`request`], or the file cannot be written.
pub fn draw(path: &Path, range: ByteRange, file: &Path) -> Result<Shown, Failure> {
    let mut strip = None;
    extents::each_page(
        range,
        None,
        |request| understand(&ask(path, request, PATIENCE)?),
        |page: Page| {
            let end = range.end.unwrap_or(page.size_bytes);
            strip
                .get_or_insert_with(|| Strip::new(range.start..end))
                .add(&page);
        },
    )?;
    let strip = strip.ok_or_else(|| Failure::from("there is nothing to show".to_owned()))?;
    std::fs::write(file, strip.draw())
        .map_err(|error| format!("--svg {}: {error}", file.display()))?;
    Ok(Shown {
        json: Value::Null,
        text: format!("drawn to {}\n", harmless(&file.display().to_string())),
        failure: None,
    })
}

/// Options as a file of them, which can be given to `--config`.
fn as_file(now: &OptionsNow) -> String {
    let plain = |value: &str| {
        let number = value
            .parse::<u64>()
            .is_ok_and(|number| number.to_string() == value);
        number || ["true", "false"].contains(&value)
    };
    let line = |(key, value): (&String, &String)| {
        if plain(value) {
            format!("{key} = {value}\n")
        } else {
            // Strings of JSON are strings of TOML.
            format!("{key} = {}\n", Value::from(value.as_str()))
        }
    };
    now.options.iter().map(line).collect()
}

fn retried(done: &Retried) -> String {
    match done.requests {
        0 => "no request is held\n".to_owned(),
        1 => "1 request is tried again\n".to_owned(),
        many => format!("{many} requests are tried again\n"),
    }
}

fn quiesced(done: &Quiesced) -> String {
    let stable = if done.synced {
        ", and all is stable"
    } else {
        ""
    };
    format!(
        "nothing is in flight (after {} ms){stable}; the disk goes on by itself in {} s\n",
        done.drained_ms,
        done.left_ms / 1000
    )
}

fn resized(done: &Resized) -> String {
    format!("the disk has {} now\n", sized(done.size_bytes))
}

fn advised(done: &Advised) -> String {
    format!(
        "bytes {} to {}: {}; now {} windows in memory, {} of extents, {} of them pinned\n",
        done.start,
        done.end,
        harmless(&done.done),
        done.resident_windows,
        size::display(done.resident_bytes),
        size::display(done.pinned_bytes),
    )
}

fn way(now: &PathNow) -> String {
    let reason = harmless(&now.path_reason);
    format!("requests go by the {}: {reason}\n", now.path)
}
