//! The process under test.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// A running extentd; killed when dropped.
pub struct Daemon {
    process: front_end::Daemon,
    pub socket: PathBuf,
}

impl Daemon {
    /// Serves `image` on `socket`; returns when it listens.
    pub fn start(socket: &Path, image: &Path, arguments: &[&str]) -> Self {
        Self::start_with(socket, image, arguments, &[])
    }

    /// As [`start`](Self::start), with these variables in its environment.
    pub fn start_with(
        socket: &Path,
        image: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let binary = rig::extentd!();
        let process = front_end::Daemon::start_with(&binary, socket, image, arguments, variables);
        Self::new(process.unwrap(), socket)
    }

    /// As [`start`](Self::start), by a program that runs extentd.
    pub fn run(binary: &Path, socket: &Path, image: &Path, arguments: &[&str]) -> Self {
        let process = front_end::Daemon::start(binary, socket, image, arguments);
        Self::new(process.unwrap(), socket)
    }

    fn new(process: front_end::Daemon, socket: &Path) -> Self {
        Self {
            process,
            socket: socket.to_owned(),
        }
    }

    /// Ends it with SIGTERM as a service manager would.
    pub fn terminate(self) -> ExitStatus {
        self.process.terminate().unwrap()
    }

    /// Ends it with SIGKILL.
    pub fn kill(self) {
        self.process.kill().unwrap();
    }

    /// CPU time used so far, user and system, in clock ticks (10 ms).
    pub fn cpu_ticks(&self) -> u64 {
        self.process.cpu_ticks().unwrap()
    }
}

impl Deref for Daemon {
    type Target = front_end::Daemon;

    fn deref(&self) -> &Self::Target {
        &self.process
    }
}
