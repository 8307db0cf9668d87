//! A planned upgrade: the process becomes what its binary's file is by now,
//! with the same arguments, and keeps its listening socket. Who connects
//! meanwhile waits in the socket's queue.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::sys;

/// Where LISTEN_FDS begins.
const FIRST: RawFd = 3;
/// Tells the new program when the old one began to drain: nanoseconds since
/// the host was booted.
const BEGUN: &str = "EXTENTD_HANDOVER_NS";

/// Everything that is needed later, gathered at the start: by then another
/// file has the binary's name, which is how it is upgraded.
#[derive(Debug)]
pub struct Handover {
    binary: PathBuf,
    arguments: Vec<OsString>,
    listener: UnixListener,
    /// `--fd`: where the new program looks for its socket.
    number: Option<RawFd>,
}

impl Handover {
    /// For a process that listens there; `number` is what `--fd` said.
    ///
    /// # Errors
    /// The host gives no descriptor, or does not know the binary.
    pub fn prepare(listener: &UnixListener, number: Option<RawFd>) -> io::Result<Self> {
        Ok(Self {
            binary: std::env::current_exe()?,
            arguments: std::env::args_os().skip(1).collect(),
            listener: listener.try_clone()?,
            number,
        })
    }

    /// Whether the binary can be run, asked while there is still a way back.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn check(&self) -> Result<(), String> {
        let status = Command::new(&self.binary)
            .arg("--print-capabilities")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{} ends with {status}", self.binary.display())),
            Err(error) => Err(format!("cannot run {}: {error}", self.binary.display())),
        }
    }

    /// Becomes the binary. `begun` is the boot time in nanoseconds at which
    /// the disk was last served without a break.
    ///
    /// # Errors
    /// It cannot be run. It does not return otherwise.
    pub fn go(&self, begun: u64) -> io::Result<Infallible> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).env(BEGUN, begun.to_string());
        if self.number.is_none() {
            command
                .env("LISTEN_FDS", "1")
                .env("LISTEN_PID", std::process::id().to_string())
                .env_remove("LISTEN_FDNAMES");
        }
        sys::bequeath(&self.listener, self.number.unwrap_or(FIRST))?;
        Err(command.exec())
    }
}

/// For a process that another one became: how many milliseconds ago that one
/// began to drain.
pub fn pause_ms() -> Option<u64> {
    let begun: u64 = std::env::var(BEGUN).ok()?.parse().ok()?;
    Some(sys::boot_time_ns().saturating_sub(begun) / 1_000_000)
}
