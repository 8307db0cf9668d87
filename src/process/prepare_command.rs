//! `extentctl prepare`: makes an image fit to swap on ahead of time.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::host::limits;
use crate::host::switches;
use crate::options::size;
use crate::process::stoppable::Stop;
use crate::protocol::done::ImagePrepared;
use crate::swap::prepare::{self, PrepareError, Prepared};
use crate::swap::progress::Display;

/// Status of a preparation that was interrupted: as of a shell for SIGINT.
const INTERRUPTED: u8 = 130;

/// The image, and how large it is to be.
#[derive(Debug, Clone, Args)]
pub struct PrepareCommand {
    /// The image; made if there is none
    pub image: PathBuf,

    /// Its size: bytes, or with K, M, G or T; needed for a new image, and makes a shorter one
    /// longer
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,
}

impl PrepareCommand {
    /// Prepares it; SIGINT and SIGTERM end that in good order.
    pub fn run(&self, as_json: bool) -> ExitCode {
        switches::pass_on();
        limits::raise();
        let result = match self.watched() {
            Ok(result) => result,
            Err(error) => {
                say(&format!("cannot watch for signals: {error}"));
                return ExitCode::FAILURE;
            }
        };
        match result {
            Ok(prepared) => {
                for warning in prepared.warnings() {
                    say(&format!("warning: {}: {warning}", self.image.display()));
                }
                let text = if as_json {
                    as_answer(prepared)
                } else {
                    Ok(self.summary(prepared))
                };
                match text.and_then(|text| io::stdout().write_all(text.as_bytes())) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(_) => ExitCode::FAILURE,
                }
            }
            Err(error) => {
                say(&error.to_string());
                match error {
                    PrepareError::Interrupted => ExitCode::from(INTERRUPTED),
                    _ => ExitCode::FAILURE,
                }
            }
        }
    }

    fn watched(&self) -> io::Result<Result<Prepared, PrepareError>> {
        let stop = Stop::watch()?;
        let mut display = Display::new(&self.image, say);
        Ok(prepare::prepare(&self.image, self.size, &mut |progress| {
            display.show(progress);
            if stop.asked() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }))
    }

    fn summary(&self, prepared: Prepared) -> String {
        let image = self.image.display();
        let size = size::display(prepared.size);
        if prepared.changed == 0 {
            format!("{image}: {size}, nothing was left to do\n")
        } else {
            let changed = size::display(prepared.changed);
            format!("{image}: {size}, of which {changed} were prepared\n")
        }
    }
}

fn as_answer(prepared: Prepared) -> io::Result<String> {
    let answer = ImagePrepared {
        size_bytes: prepared.size,
        changed_bytes: prepared.changed,
        extents: prepared.extents,
    };
    Ok(serde_json::to_string_pretty(&answer)? + "\n")
}

fn say(line: &str) {
    // Where standard error is closed, the status has to do.
    let _ = writeln!(io::stderr(), "extentctl: {line}");
}
