//! The process under test.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys;

/// How long anything may take before it is given up as stuck, unless
/// [`set_limit`] says otherwise. Nothing is proved by it.
pub const LIMIT: Duration = Duration::from_secs(180);

static SECONDS: AtomicU64 = AtomicU64::new(LIMIT.as_secs());

/// How long anything may take in this process before it is given up as stuck.
pub fn limit() -> Duration {
    Duration::from_secs(SECONDS.load(Ordering::Relaxed))
}

/// Changes [`limit`] for what begins from now on, in whole seconds.
pub fn set_limit(limit: Duration) {
    SECONDS.store(limit.as_secs().max(1), Ordering::Relaxed);
}

/// A running extentd; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: Arc<Log>,
    denials: bool,
}

/// What the process says when its sandbox was too narrow.
const DENIED: &str = "the sandbox has denied";

/// What the process has written to its standard error.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Daemon {
    /// Has `binary` serve `image` on `socket`; returns when it listens.
    ///
    /// # Errors
    /// It cannot be run, ends at its start, or does not listen in time.
    pub fn start(binary: &Path, socket: &Path, image: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_with(binary, socket, image, arguments, &[])
    }

    /// As [`start`](Self::start), with these variables in its environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        binary: &Path,
        socket: &Path,
        image: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let stderr = Stdio::piped();
        Self::start_to(binary, socket, image, arguments, variables, stderr)
    }

    /// As [`start_with`](Self::start_with), with another standard error than
    /// the one that is read here.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_to(
        binary: &Path,
        socket: &Path,
        image: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        stderr: Stdio,
    ) -> Result<Self> {
        // setpriv, so that it never outlives what started it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(binary)
            .arg("--socket-path")
            .arg(socket)
            .arg("--blk-file")
            .arg(image)
            .args(arguments)
            .envs(variables.iter().copied())
            .stderr(stderr);
        Self::spawn(&mut command, socket)
    }

    /// Runs what was prepared, which is to listen at `socket`; returns when
    /// somebody does. What is to be read here goes to a pipe as standard error.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn spawn(command: &mut Command, socket: &Path) -> Result<Self> {
        let mut child = command
            .spawn()
            .map_err(|e| Error::Host("run the process", e))?;
        let log = Arc::new(Log::default());
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || log.collect(stderr));
        }
        let mut daemon = Self {
            child,
            socket: socket.to_owned(),
            log,
            denials: false,
        };
        daemon.wait_listening()?;
        Ok(daemon)
    }

    /// A connect() would count as a front-end, so this looks into the kernel's
    /// table.
    fn wait_listening(&mut self) -> Result<()> {
        let start = Instant::now();
        let listening = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.get(3) == Some(&"00010000") && fields.get(7).map(Path::new) == Some(&self.socket)
        };
        loop {
            let table = std::fs::read_to_string("/proc/net/unix")
                .map_err(|e| Error::Host("read /proc/net/unix", e))?;
            if table.lines().any(listening) {
                return Ok(());
            }
            let ended = self.child.try_wait();
            if let Some(status) = ended.map_err(|e| Error::Host("wait for the process", e))? {
                return Err(Error::Ended(status));
            }
            if start.elapsed() > limit() {
                return Err(Error::Late("the process to listen"));
            }
            // The kernel has no event for this.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its sandbox is meant to deny something: else that is a fault.
    pub fn expect_denials(&mut self) {
        self.denials = true;
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it with SIGTERM as a service manager would.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        self.wait()
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// What wait(2) says.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGKILL)?;
        self.wait()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// What kill(2) says.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::signal(self.pid(), signal).map_err(|e| Error::Host("signal the process", e))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.wait_within(limit())
    }

    /// As [`wait`](Self::wait), with another limit.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn wait_within(&mut self, limit: Duration) -> Result<ExitStatus> {
        let failed = |e| Error::Host("wait for the process", e);
        let handle = sys::process_handle(self.pid()).map_err(failed)?;
        if !sys::readable(handle.as_raw_fd(), limit).map_err(failed)? {
            return Err(Error::Late("the end of the process"));
        }
        self.child.wait().map_err(failed)
    }

    /// CPU time used so far, user and system, in clock ticks (10 ms).
    ///
    /// # Errors
    /// The process has ended.
    pub fn cpu_ticks(&self) -> Result<u64> {
        sys::cpu_ticks(self.pid()).map_err(|e| Error::Host("read the CPU time", e))
    }

    /// The lines of its standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        let state = self.log.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Waits for a line of its standard error, also one that came before.
    ///
    /// # Errors
    /// There is none by its end, or none in time.
    pub fn wait_stderr(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let start = Instant::now();
        let mut state = self
            .log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = state.lines.iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            let left = limit().saturating_sub(start.elapsed());
            if state.ended || left.is_zero() {
                return Err(Error::Late("a line on standard error"));
            }
            let woken = self.log.more.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Log {
    /// Keeps all lines and passes them on.
    fn collect(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).split(b'\n').map_while(|l| l.ok()) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // Where our own standard error is closed, nobody wants to see it.
            let _ = writeln!(std::io::stderr(), "{line}");
            self.change(|state| state.lines.push(line));
        }
        self.change(|state| state.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut LogState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.more.notify_all();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.denials || std::thread::panicking() {
            return;
        }
        let denied = self.stderr().into_iter().find(|line| line.contains(DENIED));
        assert!(denied.is_none(), "{denied:?}");
    }
}
