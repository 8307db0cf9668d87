//! The process under test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::host::{self, LIMIT};

/// A running extentd; killed when dropped.
pub struct Daemon {
    child: Option<Child>,
    pub socket: PathBuf,
}

impl Daemon {
    /// Serves `image` on `socket`; returns when it listens.
    pub fn start(socket: &Path, image: &Path, arguments: &[&str]) -> Self {
        let binary =
            std::env::var_os("EXTENTD").unwrap_or_else(|| env!("CARGO_BIN_EXE_extentd").into());
        // setpriv, so that it never outlives the test that started it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(binary)
            .arg("--socket-path")
            .arg(socket)
            .arg("--blk-file")
            .arg(image);
        let child = command.args(arguments).spawn().unwrap();
        let mut daemon = Self {
            child: Some(child),
            socket: socket.to_owned(),
        };
        daemon.wait_listening();
        daemon
    }

    /// A connect() would count as a front-end, so this looks into the kernel's table.
    fn wait_listening(&mut self) {
        let start = Instant::now();
        let listening = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.get(3) == Some(&"00010000") && fields.get(7).map(Path::new) == Some(&self.socket)
        };
        while !std::fs::read_to_string("/proc/net/unix")
            .unwrap()
            .lines()
            .any(listening)
        {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "the process under test ended at its start");
            assert!(
                start.elapsed() < LIMIT,
                "the process under test does not listen"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Ends it with SIGTERM as a service manager would.
    pub fn terminate(mut self) -> ExitStatus {
        let child = self.child.take().unwrap();
        host::signal(child.id(), "TERM");
        host::wait_exit(child)
    }

    /// CPU time used so far, user and system, in clock ticks (10 ms).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<_> = after_name.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
