//! The options that are in force, and what SIGHUP makes of a file of options
//! that has changed (`--config`).

use std::sync::{Mutex, PoisonError};

use super::Operator;
use crate::host::logging;
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
}

impl Operator {
    /// Where options come from a file, it may have others than it had: those
    /// that can are in force from now on, and of the others it is told what
    /// they wait for.
    pub(crate) fn reread_options(&self) {
        // One at a time; a panic elsewhere has left none half done.
        let mut now = self
            .options
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if now.get("config").is_none() {
            return;
        }
        match settings::read(usage::words()) {
            Ok(asked) => self.change_to(&asked, &mut now),
            Err(error) => log::error!("the options stay as they are: {error}"),
        }
    }

    fn change_to(&self, asked: &Asked, now: &mut Settings) {
        let before = now.clone();
        let mut later = Vec::new();
        for (key, old, new) in before.changes(&asked.settings) {
            if !LIVE.contains(&key) {
                later.push(key);
                continue;
            }
            match self.change(key, &asked.args) {
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

    fn change(&self, key: &str, args: &Args) -> Result<(), String> {
        match key {
            "io-path" => self.io_path(args.io_path).map(drop),
            _ => {
                logging::show(args.log_level.map(Into::into));
                Ok(())
            }
        }
    }
}
