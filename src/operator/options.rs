//! The options that are in force, and what SIGHUP makes of a file of options
//! that has changed (`--config`).

use std::sync::{Mutex, PoisonError};

use crate::options::args::Args;
use crate::options::settings::{self, Asked, Settings};
use crate::options::usage;

/// Options that can change while a disk is served.
const LIVE: [&str; 2] = ["io-path", "log-level"];

/// The options of this process.
#[derive(Debug)]
pub(super) struct CurrentOptions(Mutex<Settings>);

impl CurrentOptions {
    /// Those that it was started with.
    pub(super) fn new(options: Settings) -> Self {
        Self(Mutex::new(options))
    }

    /// Where options come from a file, it may have others than it had: those
    /// that can are in force from now on, by `change`, and of the others it is
    /// told what they wait for.
    pub(super) fn reread(&self, change: impl Fn(&str, &Args) -> Result<(), String>) {
        // One at a time; a panic elsewhere has left none half done.
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.get("config").is_none() {
            return;
        }
        match settings::read(usage::words()) {
            Ok(asked) => change_to(&asked, &mut now, change),
            Err(error) => log::error!("the options stay as they are: {error}"),
        }
    }
}

fn change_to(
    asked: &Asked,
    now: &mut Settings,
    change: impl Fn(&str, &Args) -> Result<(), String>,
) {
    let before = now.clone();
    let mut later = Vec::new();
    for (key, old, new) in before.changes(&asked.settings) {
        if !LIVE.contains(&key) {
            later.push(key);
            continue;
        }
        match change(key, &asked.args) {
            Ok(()) => {
                let shown = |value: Option<&str>| value.unwrap_or("not given").to_owned();
                log::info!("{key} is {} now, and was {}", shown(new), shown(old));
                now.set(key, new);
            }
            Err(error) => log::error!("{key} stays as it is: {error}"),
        }
    }
    if !later.is_empty() {
        log::warn!(
            "other values of {} wait for a new start, or for SIGUSR2",
            later.join(", ")
        );
    }
}
