//! `extentctl events`: what happens, as it happens.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use extentd::options::size;
use extentd::protocol::events::{Event, EventKind, Told};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ask;
use crate::output::{self, harmless};
use crate::status::{Failure, Status};

/// Which events, and how many.
#[derive(Debug, Clone, clap::Args)]
pub struct Wanted {
    /// Of these kinds only
    #[arg(value_enum, value_name = "KIND")]
    pub kinds: Vec<EventKind>,
    /// End after so many events [default: go on until extentd ends]
    #[arg(long, value_name = "N", value_parser = extentd::options::usage::number(1..=u64::MAX))]
    pub count: Option<u64>,
}

/// Shows events of all these disks until as many have come as were asked for,
/// or the last extentd has gone; `by_name`: each line has that of its disk.
///
/// # Errors
/// Each extentd has gone, or does not answer.
pub fn watch(
    paths: &[PathBuf],
    by_name: bool,
    wanted: &Wanted,
    as_json: bool,
) -> Result<(), Failure> {
    let (sender, received) = mpsc::channel();
    for (number, path) in paths.iter().enumerate() {
        let (sender, path) = (sender.clone(), path.clone());
        let kinds = (!wanted.kinds.is_empty()).then(|| wanted.kinds.clone());
        thread::spawn(move || {
            let end = follow(number, &path, kinds, &sender);
            // Where nobody listens any more, it is over.
            let _ = sender.send((number, Err(end)));
        });
    }
    drop(sender);
    let mut shown = 0_u64;
    let mut worst: Option<Failure> = None;
    for (number, news) in received {
        let Some(path) = paths.get(number) else {
            continue;
        };
        match news {
            Ok(event) => {
                let name = by_name.then(|| path.display().to_string());
                if as_json {
                    output::print_as_it_is(&format!("{}\n", named(event, name)))?;
                } else {
                    output::print(&line(&event, name.as_deref()))?;
                }
                shown = shown.saturating_add(1);
                if wanted.count.is_some_and(|count| shown >= count) {
                    return Ok(());
                }
            }
            Err(failure) => {
                if by_name {
                    output::complain(&failure.line);
                }
                if worst
                    .as_ref()
                    .is_none_or(|worst| worst.status < failure.status)
                {
                    worst = Some(failure);
                }
            }
        }
    }
    match worst {
        // It was said already.
        Some(failure) if by_name => Err(Failure::new(failure.status, "")),
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

type News = (usize, Result<Value, Failure>);

/// Passes on what one extentd tells; why that has ended.
fn follow(
    number: usize,
    path: &Path,
    kinds: Option<Vec<EventKind>>,
    sender: &Sender<News>,
) -> Failure {
    let mut client = match ask::subscribe(path, kinds) {
        Ok(client) => client,
        Err(failure) => return failure,
    };
    loop {
        match client.next_event(None) {
            Ok(Some(event)) => {
                if sender.send((number, Ok(event))).is_err() {
                    return gone(path);
                }
            }
            Ok(None) => return gone(path),
            Err(error) => return ask::nobody(path, &error),
        }
    }
}

fn gone(path: &Path) -> Failure {
    let line = format!("--control-path {}: extentd has gone", path.display());
    Failure::new(Status::Gone, line)
}

fn named(event: Value, name: Option<String>) -> Value {
    match (event, name) {
        (Value::Object(fields), Some(name)) => {
            let mut all = serde_json::Map::from_iter([("control_path".to_owned(), json!(name))]);
            all.extend(fields);
            Value::Object(all)
        }
        (event, _) => event,
    }
}

/// One line, or two where some were lost.
fn line(event: &Value, name: Option<&str>) -> String {
    let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(number("time_ms")));
    let time = humantime::format_rfc3339_millis(time.unwrap_or(UNIX_EPOCH));
    let kind = event.get("kind").and_then(Value::as_str).unwrap_or("?");
    let start = match name {
        Some(name) => format!("{time}  {}", harmless(name)),
        None => time.to_string(),
    };
    let lost = match number("lost") {
        0 => String::new(),
        1 => format!("{start}  1 event was lost\n"),
        lost => format!("{start}  {lost} events were lost\n"),
    };
    let text = match Told::deserialize(event) {
        Ok(told) => sentence(&told.event),
        // A newer extentd tells of more.
        Err(_) => event.to_string(),
    };
    format!("{lost}{start}  {:14} {}\n", harmless(kind), harmless(&text))
}

fn sentence(event: &Event) -> String {
    match event {
        Event::FrontEndCame { pid, uid } => {
            let one = |number: &Option<u32>| number.map_or("?".to_owned(), |it| it.to_string());
            format!("pid {}, uid {}", one(pid), one(uid))
        }
        Event::FrontEndGone {} => "nobody uses the disk".to_owned(),
        Event::PathChanged { path, reason } => format!("requests go by the {path}: {reason}"),
        Event::LeaseTaken {} => "the image is exclusively ours".to_owned(),
        Event::LeaseLost {} => "somebody else wants the image".to_owned(),
        Event::Resized { size_bytes } => {
            format!("{} ({size_bytes} bytes)", size::display(*size_bytes))
        }
        Event::SnapshotBegun { name } | Event::SnapshotTaken { name } => name.clone(),
        Event::SnapshotFailed { name, reason } => format!("{name}: {reason}"),
        Event::UnshareEnded {
            reason: Some(reason),
            ..
        } => reason.clone(),
        Event::UnshareEnded { unshared_bytes, .. } => {
            format!("{} were copied", size::display(*unshared_bytes))
        }
        Event::Quiesced {} => "nothing is in flight".to_owned(),
        Event::Resumed { by_itself: true } => "by itself: nobody has resumed it".to_owned(),
        Event::Resumed { by_itself: false } => "as it was told to".to_owned(),
        Event::GuardLate { seconds } => {
            format!("the guard has not looked at the lease for {seconds} s")
        }
        Event::GuardOnTime {} => "the guard looks at the lease again".to_owned(),
        Event::RequestsHeld { reason } => reason.clone(),
        Event::RequestsReleased { seconds } => format!("none is held any more, after {seconds} s"),
        Event::RoomLow {
            free_bytes,
            unallocated_bytes,
        } => format!(
            "{} free, and {} may be asked for",
            size::display(*free_bytes),
            size::display(*unallocated_bytes)
        ),
        Event::RoomEnough { free_bytes } => format!("{} free", size::display(*free_bytes)),
        Event::ThreadStands {
            thread,
            seconds,
            doing,
        } => format!("{thread} for {seconds} s: {doing}"),
        Event::ThreadGoesOn { thread, seconds } => format!("{thread} after {seconds} s"),
        // Only those of this program come here.
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_and_so_is_what_was_lost() {
        let event = json!({
            "sequence": 9, "lost": 2, "time_ms": 1_000_000_000_123_u64,
            "kind": "path-changed", "path": "file", "reason": "so\u{1b}",
        });
        assert_eq!(
            line(&event, Some("/a")),
            "2001-09-09T01:46:40.123Z  /a  2 events were lost\n\
             2001-09-09T01:46:40.123Z  /a  path-changed   requests go by the file: so\\u{1b}\n"
        );
    }

    #[test]
    fn what_is_not_known_here_is_shown_as_it_is() {
        let event = json!({ "sequence": 9, "lost": 0, "time_ms": 0, "kind": "rain", "mm": 3 });
        let line = line(&event, None);
        assert!(line.contains("rain") && line.contains("\"mm\":3"), "{line}");
        assert_eq!(named(event, Some("/a".into()))["control_path"], "/a");
    }
}
