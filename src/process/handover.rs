//! A planned upgrade: the process becomes what its binary's file is by now,
//! with the same arguments, and keeps its listening socket and its image,
//! whatever has the image's name by then. Who connects meanwhile waits in the
//! socket's queue.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use clap::ValueEnum;
use vhost_backend::{LimitKey, Limits};

use crate::host::sys;
use crate::options::config::OnError;
use crate::options::limit::{self, LimitList};

/// Where LISTEN_FDS begins.
const FIRST: RawFd = 3;
/// Tells the new program when the old one began to drain: nanoseconds since
/// the host was booted.
const BEGUN: &str = "EXTENTD_HANDOVER_NS";
/// Tells the new program under which number the image is open.
const IMAGE: &str = "EXTENTD_HANDOVER_IMAGE";

/// Tells the new program that it is without what no start needs already.
const BEGUN_SANDBOX: &str = "EXTENTD_HANDOVER_SANDBOX";

/// Tells the new program the limits by now, as `--limit` has them.
const LIMITS: &str = "EXTENTD_HANDOVER_LIMITS";

/// Tells the new program what becomes of requests that the host fails by now:
/// where there is no room, and where the disk fails.
const ON_ERRORS: &str = "EXTENTD_HANDOVER_ON_ERRORS";

/// Everything that is needed later, gathered at the start: by then another
/// file has the binary's name, which is how it is upgraded.
#[derive(Debug)]
pub(crate) struct Handover {
    binary: PathBuf,
    arguments: Vec<OsString>,
    listener: UnixListener,
    image: File,
    /// `--fd`: where the new program looks for its socket.
    number: Option<RawFd>,
    sandbox: bool,
    limits: Arc<Limits>,
}

impl Handover {
    /// For a process that listens there and serves `image`; `number` is what
    /// `--fd` said.
    ///
    /// # Errors
    /// The host gives no descriptor, or does not know the binary.
    pub(crate) fn prepare(
        listener: &UnixListener,
        number: Option<RawFd>,
        image: &File,
        sandbox: bool,
        limits: Arc<Limits>,
    ) -> io::Result<Self> {
        Ok(Self {
            binary: std::env::current_exe()?,
            arguments: std::env::args_os().skip(1).collect(),
            listener: listener.try_clone()?,
            image: image.try_clone()?,
            number,
            sandbox,
            limits,
        })
    }

    /// Whether the binary can be run and will serve the same image, asked while
    /// there is still a way back.
    ///
    /// # Errors
    /// One line that says why not.
    pub(crate) fn check(&self) -> Result<(), String> {
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
    /// the disk was last served without a break; `on_errors` is what becomes of
    /// requests that the host fails.
    ///
    /// # Errors
    /// It cannot be run. It does not return otherwise.
    pub(crate) fn go(
        &self,
        begun: u64,
        (no_room, io_error): (OnError, OnError),
    ) -> io::Result<Infallible> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).env(BEGUN, begun.to_string());
        if self.number.is_none() {
            command
                .env("LISTEN_FDS", "1")
                .env("LISTEN_PID", std::process::id().to_string())
                .env_remove("LISTEN_FDNAMES");
        }
        if self.sandbox {
            command.env(BEGUN_SANDBOX, "1");
        }
        let values = self.limits.values();
        let limits: Vec<_> = LimitKey::all().map(|key| (key, values.get(key))).collect();
        command.env(LIMITS, limit::display(&limits));
        let words = [no_room, io_error].map(OnError::as_str);
        command.env(ON_ERRORS, words.join(","));
        let number = self.number.unwrap_or(FIRST);
        let image = sys::inheritable_copy(&self.image, number + 1)?;
        command.env(IMAGE, image.as_raw_fd().to_string());
        // It is the new program's.
        std::mem::forget(image);
        sys::bequeath(&self.listener, number)?;
        Err(command.exec())
    }
}

/// For a process that another one became: the image as that one had it. To be
/// closed when it has been opened anew, as it keeps the lease away.
pub(crate) fn inherited_image() -> Option<OwnedFd> {
    let number = std::env::var(IMAGE).ok()?.parse().ok()?;
    sys::inherited(number)
        .map_err(|error| log::warn!("the image was not handed over: {error}"))
        .ok()
}

/// For a process that another one became: the limits that one had.
pub(crate) fn limits() -> Option<Vec<(LimitKey, u64)>> {
    let text = std::env::var(LIMITS).ok()?;
    match limit::parse(&text) {
        Ok(LimitList(limits)) => Some(limits),
        Err(error) => {
            log::warn!("the limits were not handed over: {error}");
            None
        }
    }
}

/// For a process that another one became: what became of requests that the
/// host failed, where there was no room and where the disk failed.
pub(crate) fn on_errors() -> Option<(OnError, OnError)> {
    let text = std::env::var(ON_ERRORS).ok()?;
    let (no_room, io_error) = text.split_once(',')?;
    let word = |text| OnError::from_str(text, false).ok();
    word(no_room).zip(word(io_error))
}

/// For a process that another one became: that one has given up what no start
/// needs, and this one inherits it.
pub(crate) fn sandbox_begun() -> bool {
    std::env::var_os(BEGUN_SANDBOX).is_some_and(|begun| begun == "1")
}

/// For a process that another one became: how many milliseconds ago that one
/// began to drain.
pub(crate) fn pause_ms() -> Option<u64> {
    let begun: u64 = std::env::var(BEGUN).ok()?.parse().ok()?;
    Some(sys::boot_time_ns().saturating_sub(begun) / 1_000_000)
}
