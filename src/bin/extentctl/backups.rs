//! `extentctl backup`, `restore`, `clone` and `unshare`: what is done with
//! snapshots and images that nobody uses.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use extentd::backup::restore::{self, From};
use extentd::backup::write::{self, Made, To};
use extentd::backup::{self, BackupError, unshare};
use extentd::host::bar::Bar;
use extentd::options::size;
use extentd::process::stoppable::Stop;
use serde_json::{Value, json};

use crate::output::{self, complain, harmless};
use crate::status::{Failure, Status};

/// A snapshot that is kept elsewhere.
#[derive(Debug, Clone, Args)]
pub struct BackupCommand {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: PathBuf,
    /// Only what differs from this older snapshot, whose backup is needed for it
    #[arg(long, value_name = "OLDER")]
    pub since: Option<PathBuf>,
    /// Where to: a folder, or - for standard output
    #[arg(long, value_name = "FOLDER|-")]
    pub to: PathBuf,
    /// Read it again when it is written, and compare it with the snapshot
    #[arg(long)]
    pub verify: bool,
}

impl BackupCommand {
    /// Writes it.
    ///
    /// # Errors
    /// There is no backup.
    pub fn run(&self, as_json: bool) -> Result<(), Failure> {
        let pipe = self.to.as_os_str() == "-";
        let refused = match (pipe, self.verify) {
            (true, true) => Some("--verify: a pipe cannot be read again: give a folder"),
            (true, false) if io::stdout().is_terminal() => {
                Some("--to -: standard output is a terminal: give it to a program or a file")
            }
            _ => None,
        };
        if let Some(line) = refused {
            return Err(line.to_owned().into());
        }
        let to = match pipe {
            true => To::Pipe,
            false => To::Folder(self.to.clone()),
        };
        let made = watched("writing", |watch| {
            write::backup(
                &self.snapshot,
                self.since.as_deref(),
                &to,
                self.verify,
                watch,
            )
        })?;
        if !pipe {
            return tell(as_json, &backup_json(&made), &backup_line(&made));
        }
        // Standard output has the backup.
        if as_json {
            complain(&backup_json(&made).to_string());
        } else {
            complain(backup_line(&made).trim_end());
        }
        Ok(())
    }
}

fn backup_json(made: &Made) -> Value {
    json!({
        "file": made.file.as_ref().map(|file| file.to_string_lossy()),
        "snapshot": made.head.name,
        "id": made.head.id.to_string(),
        "base": made.head.base.map(|base| base.to_string()),
        "size_bytes": made.head.size,
        "data_bytes": made.data,
        "zeros_bytes": made.zeros,
        "backup_bytes": made.bytes,
        "records": made.records,
    })
}

fn backup_line(made: &Made) -> String {
    let kind = match made.head.base {
        Some(_) => "an increment",
        None => "a full backup",
    };
    let file = made.file.as_ref().map(|file| {
        let file = harmless(&file.display().to_string());
        format!("{file}: ")
    });
    format!(
        "{}{kind} of {} ({}): {} of data, {} of zeros\n",
        file.unwrap_or_default(),
        harmless(&made.head.name),
        size::display(made.head.size),
        size::display(made.data),
        size::display(made.zeros),
    )
}

/// An image of backups.
#[derive(Debug, Clone, Args)]
pub struct RestoreCommand {
    /// The backup that is wanted, or a folder with one chain of them, or - for standard input;
    /// bases are found beside it, or given before it
    #[arg(value_name = "BACKUP", required = true)]
    pub from: Vec<PathBuf>,
    /// The new image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

impl RestoreCommand {
    /// Makes the image.
    ///
    /// # Errors
    /// There is none.
    pub fn run(&self, as_json: bool) -> Result<(), Failure> {
        let pipe = self.from.iter().any(|from| from.as_os_str() == "-");
        if pipe && self.from.len() > 1 {
            let line = "-: standard input is read alone: give no files beside it";
            return Err(line.to_owned().into());
        }
        let from = match pipe {
            true => From::Pipe,
            false => From::Files(self.from.clone()),
        };
        let done = watched("restoring", |watch| {
            restore::restore(&from, &self.image, watch)
        })?;
        let answer = json!({
            "image": self.image.to_string_lossy(),
            "snapshot": done.name,
            "size_bytes": done.size,
            "backups": done.backups,
            "data_bytes": done.data,
        });
        let line = format!(
            "{}: {} ({}) of {} backups, {} of data\n",
            harmless(&self.image.display().to_string()),
            harmless(&done.name),
            size::display(done.size),
            done.backups,
            size::display(done.data),
        );
        tell(as_json, &answer, &line)
    }
}

/// A new image that shares its blocks with a snapshot.
#[derive(Debug, Clone, Args)]
pub struct CloneCommand {
    /// The snapshot, or an image that nobody writes
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: PathBuf,
    /// The new image, on the same file system
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
}

impl CloneCommand {
    /// Makes the image.
    ///
    /// # Errors
    /// There is none.
    pub fn run(&self, as_json: bool) -> Result<(), Failure> {
        let bytes = backup::clone::clone(&self.snapshot, &self.new).map_err(failure)?;
        let answer = json!({ "image": self.new.to_string_lossy(), "size_bytes": bytes });
        let name = harmless(&self.new.display().to_string());
        tell(
            as_json,
            &answer,
            &format!("{name}: {}\n", size::display(bytes)),
        )
    }
}

/// An image that gets blocks of its own.
#[derive(Debug, Clone, Args)]
pub struct UnshareCommand {
    /// The image, which nobody uses. Not given, that of --control-path while it is served
    #[arg(value_name = "IMAGE")]
    pub image: Option<PathBuf>,
    /// Most bytes that are copied a second: bytes, or with K, M, G or T
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub rate: Option<u64>,
    /// Where it is served: return when it has ended, which Ctrl-C does not end
    #[arg(long, conflicts_with = "image")]
    pub wait: bool,
    /// End what is under way where it is served
    #[arg(long, conflicts_with_all = ["image", "rate", "wait"])]
    pub cancel: bool,
}

impl UnshareCommand {
    /// What it may be asked with.
    ///
    /// # Errors
    /// The rate is none.
    pub fn check(&self) -> Result<(), Failure> {
        if self.rate == Some(0) {
            let line = "--rate 0: nothing would be copied: give more, or leave it out";
            return Err(line.to_owned().into());
        }
        Ok(())
    }

    /// Copies what an image shares that nobody uses.
    ///
    /// # Errors
    /// Some of it is shared still.
    pub fn run(&self, image: &Path, as_json: bool) -> Result<(), Failure> {
        self.check()?;
        let done = watched("unsharing", |watch| {
            unshare::unshare(image, self.rate, watch)
        })?;
        let answer = json!({
            "image": image.to_string_lossy(),
            "size_bytes": done.size,
            "unshared_bytes": done.unshared,
        });
        let line = format!(
            "{}: {} of {} were shared, and are its own now\n",
            harmless(&image.display().to_string()),
            size::display(done.unshared),
            size::display(done.size),
        );
        tell(as_json, &answer, &line)
    }
}

/// Does something with a bar, until the end or a signal.
fn watched<T>(
    word: &'static str,
    act: impl FnOnce(&mut backup::progress::Watch<'_>) -> Result<T, BackupError>,
) -> Result<T, Failure> {
    let stop = Stop::watch().map_err(|error| format!("cannot watch for signals: {error}"))?;
    let bar = Bar::new(word);
    act(&mut |done, total| {
        bar.show(done, total);
        if stop.asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .map_err(failure)
}

fn failure(error: BackupError) -> Failure {
    let line = harmless(&error.to_string());
    match error {
        BackupError::Stopped(..) => Failure::new(Status::Interrupted, line),
        _ => line.into(),
    }
}

fn tell(as_json: bool, answer: &Value, line: &str) -> Result<(), Failure> {
    if as_json {
        output::print_json(answer)
    } else {
        output::print(line)
    }
}
