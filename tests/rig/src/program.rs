//! Programs that tests run.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The extentd under test: `$EXTENTD`, else the one that cargo built for the
/// suite that asks.
#[macro_export]
macro_rules! extentd {
    () => {
        $crate::program::named("EXTENTD", env!("CARGO_BIN_EXE_extentd"))
    };
}

/// The extentctl under test: `$EXTENTCTL`, else the one that cargo built for
/// the suite that asks.
#[macro_export]
macro_rules! extentctl {
    () => {
        $crate::program::named("EXTENTCTL", env!("CARGO_BIN_EXE_extentctl"))
    };
}

/// The program that a variable of the environment names, else the one at
/// `built`. Suites ask by [`extentd!`](crate::extentd) and
/// [`extentctl!`](crate::extentctl), as cargo tells only them where it built.
pub fn named(variable: &str, built: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| built.into(), PathBuf::from)
}

/// Runs a program; what it wrote, or why it failed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}
