//! `extentctl snapshot`: asks for one, and follows how it is made.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use extentd::protocol::client::Client;
use extentd::protocol::done::SnapshotInMaking;
use extentd::protocol::info::Info;
use extentd::protocol::{Answer, Request};
use indicatif::ProgressBar;
use serde::Deserialize;

use crate::ask::PATIENCE;
use crate::bar;
use crate::commands;
use crate::disks::{self, Shown};
use crate::status::Failure;
use crate::together;

/// How often is looked whether a moment is over.
const LOOK: Duration = Duration::from_millis(2);
/// How often a bar moves.
const STEP: Duration = Duration::from_millis(100);

/// Takes one of each disk, of one moment; `by_name`: what is shown has the
/// names of disks.
///
/// # Errors
/// Not all of them were taken, or they are not of one moment.
pub fn take(
    paths: &[PathBuf],
    by_name: bool,
    as_json: bool,
    name: &str,
    within_ms: u64,
) -> Result<(), Failure> {
    let request = &Request::Snapshot {
        name: name.to_owned(),
        within_ms,
    };
    let [_, _, ..] = paths else {
        let draws = !as_json && io::stderr().is_terminal();
        return disks::show_all(paths, by_name, as_json, |path| {
            thread::scope(|scope| {
                let asked = scope.spawn(move || commands::request(request, path));
                if draws {
                    draw(path, name, &asked);
                }
                joined(asked)
            })
        });
    };
    thread::scope(|scope| {
        let (asked, early) = together::at_one_moment(paths, within_ms, || {
            let mut asked = Vec::new();
            for path in paths {
                asked.push(scope.spawn(move || commands::request(request, path)));
            }
            for (path, asked) in paths.iter().zip(&asked) {
                follow(path, name, asked, LOOK, |_| false);
            }
            asked
        })?;
        let asked: Vec<_> = asked.into_iter().map(Some).collect();
        let asked = Mutex::new(asked);
        disks::show_all(paths, by_name, as_json, |path| {
            let place = paths.iter().position(|one| one == path).unwrap_or(0);
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = asked.get_mut(place).and_then(Option::take);
            drop(asked);
            mine.map_or_else(|| Err("it was not asked".to_owned().into()), joined)
        })?;
        early.map_or(Ok(()), Err)
    })
}

type Asked<'scope> = ScopedJoinHandle<'scope, Result<Shown, Failure>>;

fn joined(asked: Asked<'_>) -> Result<Shown, Failure> {
    let ended = asked.join();
    ended.unwrap_or_else(|_| Err("it could not be asked".to_owned().into()))
}

/// Calls `act` with how a snapshot is being made, until it is told to end that,
/// or the answer is there.
fn follow(
    path: &Path,
    name: &str,
    asked: &Asked<'_>,
    pause: Duration,
    mut act: impl FnMut(&SnapshotInMaking) -> bool,
) {
    let mut client = Client::connect(path, PATIENCE).ok();
    while !asked.is_finished() {
        // Where it cannot be followed the answer is waited for.
        let answer = client
            .as_mut()
            .and_then(|client| client.call(&Request::Info {}).ok());
        if let Some(Answer::Result(info)) = answer
            && let Ok(info) = Info::deserialize(&info)
            && let Some(making) = info.snapshot.filter(|making| making.name == name)
            && !act(&making)
        {
            return;
        }
        thread::sleep(pause);
    }
}

fn draw(path: &Path, name: &str, asked: &Asked<'_>) {
    let mut shown: Option<ProgressBar> = None;
    follow(path, name, asked, STEP, |making| {
        let bar = shown.get_or_insert_with(|| bar::of_bytes(making.size_bytes));
        bar.set_position(making.cloned_bytes);
        true
    });
    if let Some(bar) = shown {
        bar.finish_and_clear();
    }
}
