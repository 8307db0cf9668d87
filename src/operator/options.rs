//! The options that are in force, and what SIGHUP makes of a file of options
//! that has changed (`--config`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::options::args::Args;
use crate::options::settings::{self, Asked, Settings};
use crate::options::usage;
use crate::protocol::done::OptionsNow;

/// Options that can change while a disk is served.
const LIVE: [&str; 5] = ["io-path", "limit", "log-level", "on-enospc", "on-io-error"];

/// The options of this process.
#[derive(Debug)]
pub(super) struct CurrentOptions {
    /// Held for a moment only.
    now: Mutex<Settings>,
    /// Held by whoever reads them again, which may take its time.
    rereading: Mutex<()>,
}

impl CurrentOptions {
    /// Those that it was started with.
    pub(super) fn new(options: Settings) -> Self {
        Self {
            now: Mutex::new(options),
            rereading: Mutex::new(()),
        }
    }

    fn now(&self) -> MutexGuard<'_, Settings> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they are now, by name.
    pub(super) fn describe(&self) -> OptionsNow {
        OptionsNow {
            options: self.now().all().collect(),
        }
    }

    /// An option has another value by an operator's wish.
    pub(super) fn note(&self, key: &str, value: Option<&str>) {
        self.now().set(key, value);
    }

    /// Where options come from a file, it may have others than it had: those
    /// that can are in force from now on, by `change`, and of the others it is
    /// told what they wait for.
    pub(super) fn reread(&self, change: impl Fn(&str, &Args) -> Result<(), String>) {
        let _one = self
            .rereading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.now().clone();
        if before.get("config").is_none() {
            return;
        }
        match settings::read(usage::words()) {
            Ok(asked) => self.change_to(&asked, &before, change),
            Err(error) => log::error!("the options stay as they are: {error}"),
        }
    }

    fn change_to(
        &self,
        asked: &Asked,
        before: &Settings,
        change: impl Fn(&str, &Args) -> Result<(), String>,
    ) {
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
                    self.note(key, new);
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
}
