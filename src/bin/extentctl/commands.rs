//! What commands ask for that have one answer, and how it is shown.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use extentd::operator::metrics::{self, Format};
use extentd::options::byte_range::TypedRange;
use extentd::options::size;
use extentd::protocol::Request;
use extentd::protocol::done::{
    LogLevelNow, OptionsNow, PathNow, Quiesced, Resized, Retried, SnapshotCancelled, SnapshotList,
    SnapshotTaken, UnshareCancelled, Unsharing,
};
use extentd::protocol::extents::Page;
use extentd::protocol::info::Selftest;
use extentd::protocol::statistics::Statistics;
use serde_json::Value;

use crate::advise;
use crate::ask::{LONG_PATIENCE, PATIENCE, ask, understand};
use crate::disks::Shown;
use crate::extents;
use crate::heat;
use crate::output::harmless;
use crate::picture::Picture;
use crate::status::Failure;
use crate::strip;
use crate::svg;
use crate::table::{columns, drawn, sized, table};

/// Asks one extentd.
///
/// # Errors
/// It is refused, or nobody answers.
pub fn request(request: &Request, path: &Path) -> Result<Shown, Failure> {
    let patience = match request {
        Request::Quiesce { .. } | Request::Snapshot { .. } | Request::Unshare { .. } => {
            LONG_PATIENCE
        }
        _ => PATIENCE,
    };
    let json = ask(path, request, patience)?;
    let mut failure = None;
    let text = match request {
        Request::Resize { .. } => resized(&understand(&json)?),
        Request::LogLevel { .. } => logged(&understand(&json)?),
        Request::IoPath { .. } => way(&understand(&json)?),
        Request::Retry {} => retried(&understand(&json)?),
        Request::Quiesce { .. } => quiesced(&understand(&json)?),
        Request::Snapshot { .. } => taken(&understand(&json)?),
        Request::SnapshotCancel {} => cancelled(&understand(&json)?),
        Request::Snapshots {} => snapshots(&understand(&json)?),
        Request::Unshare { .. } => unsharing(&understand(&json)?),
        Request::UnshareCancel {} => unshare_cancelled(&understand(&json)?),
        Request::Resume { .. } => "the disk goes on\n".to_owned(),
        Request::Options {} => as_file(&understand(&json)?),
        Request::Selftest {} => {
            if !understand::<Selftest>(&json)?.holds {
                failure = Some("selftest: not all of it holds".to_owned().into());
            }
            table(&json)
        }
        Request::Stats {} => table(&without_buckets(json.clone())),
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
    let statistics: Statistics = understand(&json)?;
    let text = metrics::exposition(vec![statistics.into()], Format::OpenMetrics);
    Ok(Shown {
        json,
        text,
        failure: None,
    })
}

/// How a map is shown.
#[derive(Clone, Copy)]
pub enum View<'a> {
    /// At most so many extents, a line each.
    List(u32),
    /// Drawn with characters.
    Strip,
    /// Drawn into a file.
    Svg(&'a Path),
}

/// The extents of a range, page by page, and which windows are in use if
/// that is to be watched for a while.
///
/// # Errors
/// As [`request`], or the file cannot be written.
pub fn map(
    path: &Path,
    range: &TypedRange,
    view: View<'_>,
    heat: Option<Duration>,
) -> Result<Shown, Failure> {
    let range = advise::in_bytes(path, range)?;
    let levels = match heat {
        Some(time) => Some(heat::watch(path, range, time)?),
        None => None,
    };
    let ask = |request: &Request| understand(&ask(path, request, PATIENCE)?);
    let nothing = || Failure::from("there is nothing to show".to_owned());
    let columns = match view {
        View::List(limit) => {
            let mut all: Option<Page> = None;
            extents::each_page(range, Some(limit), ask, |page| {
                extents::append(&mut all, page);
            })?;
            let page = all.ok_or_else(nothing)?;
            let mut json = serde_json::to_value(&page).map_err(|error| error.to_string())?;
            if let (Some(levels), Value::Object(fields)) = (levels, &mut json) {
                let levels = serde_json::to_value(levels).map_err(|error| error.to_string())?;
                fields.insert("heat".to_owned(), levels);
            }
            let text = extents::list(&page);
            return Ok(Shown {
                json,
                text,
                failure: None,
            });
        }
        View::Strip => strip::columns(terminal_width()),
        View::Svg(_) => svg::COLUMNS,
    };
    let mut picture = None;
    extents::each_page(range, None, ask, |page: Page| {
        let end = range.end.unwrap_or(page.size_bytes);
        picture
            .get_or_insert_with(|| Picture::new(range.start..end, columns))
            .add(&page);
    })?;
    let mut picture = picture.ok_or_else(nothing)?;
    if let Some(levels) = levels {
        picture.warm(&levels, heat::LOOKS);
    }
    let text = match view {
        View::Svg(file) => {
            std::fs::write(file, svg::draw(&picture))
                .map_err(|error| format!("--svg {}: {error}", file.display()))?;
            format!("drawn to {}\n", harmless(&file.display().to_string()))
        }
        _ => strip::draw(&picture),
    };
    Ok(Shown {
        json: Value::Null,
        text,
        failure: None,
    })
}

/// Characters in a line; as people are used to where there is no terminal.
fn terminal_width() -> u16 {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok()
        .map(|size| size.ws_col)
        .filter(|columns| *columns > 0)
        .unwrap_or(80)
}

/// Histograms are for programs: people have how often and how long in all.
fn without_buckets(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.remove("buckets");
        for field in fields.values_mut() {
            *field = without_buckets(field.take());
        }
    }
    value
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

fn taken(done: &SnapshotTaken) -> String {
    format!(
        "{}: {}; requests waited for {}.{:03} ms, and {} of them later for their part, at most {}.{:03} ms; whole after {} ms\n",
        harmless(&done.snapshot.name),
        size::display(done.snapshot.size_bytes),
        done.paused_us / 1000,
        done.paused_us % 1000,
        done.waited_requests,
        done.longest_wait_us / 1000,
        done.longest_wait_us % 1000,
        done.took_us / 1000,
    )
}

fn cancelled(done: &SnapshotCancelled) -> String {
    format!("{} is given up\n", harmless(&done.name))
}

fn snapshots(list: &SnapshotList) -> String {
    let mut rows = columns(["name", "size", "taken"]);
    for one in &list.snapshots {
        let taken = UNIX_EPOCH.checked_add(Duration::from_millis(one.taken_ms));
        let taken = humantime::format_rfc3339_seconds(taken.unwrap_or(UNIX_EPOCH));
        rows.add_row([
            harmless(&one.name),
            size::display(one.size_bytes),
            taken.to_string(),
        ]);
    }
    let mut text = drawn(rows);
    if let Some(making) = &list.making {
        text.push_str(&format!(
            "{} is being made: {} of {} are cloned\n",
            harmless(&making.name),
            size::display(making.cloned_bytes),
            size::display(making.size_bytes)
        ));
    }
    text
}

fn unsharing(now: &Unsharing) -> String {
    format!(
        "{} are shared, and become the image's own: extentctl info tells how far it is\n",
        size::display(now.shared_bytes)
    )
}

fn unshare_cancelled(done: &UnshareCancelled) -> String {
    format!(
        "it ends; {} are the image's own by it\n",
        size::display(done.unshared_bytes)
    )
}

fn resized(done: &Resized) -> String {
    format!("the disk has {} now\n", sized(done.size_bytes))
}

fn logged(now: &LogLevelNow) -> String {
    match now.level {
        Some(level) => format!("the log shows {level} and what is graver\n"),
        None => "the log shows what RUST_LOG says, and info without it\n".to_owned(),
    }
}

fn way(now: &PathNow) -> String {
    let reason = harmless(&now.path_reason);
    format!("requests go by the {}: {reason}\n", now.path)
}
