//! A service manager as systemd is one for extentd@.service: it listens for the
//! process, starts it with what it has, and keeps descriptors for it between one
//! process and the next.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use front_end::codes::protocol;
use front_end::{Daemon, LIMIT, Like, Session, Wanted};
use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::place::QUEUES;
use crate::scratch::folder;

/// As `FileDescriptorStoreMax=` has it.
const MOST: usize = 4;

/// What the process has said, and left.
#[derive(Debug, Default)]
struct State {
    ready: usize,
    /// The latest first, as systemd has them.
    stored: Vec<(String, File)>,
    /// How often something was stored.
    puts: usize,
    ends: bool,
}

#[derive(Debug, Default)]
struct Heard {
    state: Mutex<State>,
    more: Condvar,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn take(&self, text: &str, file: Option<File>) {
        let mut state = self.lock();
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once('='));
            lines.find(|(name, _)| *name == key).map(|(_, value)| value)
        };
        if value("READY") == Some("1") {
            state.ready += 1;
        }
        if value("FDSTORE") == Some("1") {
            let name = value("FDNAME").unwrap_or("stored").to_owned();
            // It would close it when the other end is gone.
            assert_eq!(value("FDPOLL"), Some("0"));
            assert!(state.stored.len() < MOST, "the store is full");
            state.stored.insert(0, (name, file.unwrap()));
            state.puts += 1;
        }
        if value("FDSTOREREMOVE") == Some("1") {
            let name = value("FDNAME").unwrap();
            state.stored.retain(|(stored, _)| stored != name);
        }
        self.more.notify_all();
    }
}

/// One service, its socket and its store.
pub struct ServiceManager {
    /// Where front-ends connect.
    pub socket: PathBuf,
    /// Where operators connect.
    pub control: PathBuf,
    listener: UnixListener,
    notify: PathBuf,
    heard: Arc<Heard>,
    binary: PathBuf,
    image: PathBuf,
    _files: TempDir,
}

impl ServiceManager {
    /// Of a service that has `binary` serve `image`.
    pub fn new(binary: &Path, image: &Path) -> Self {
        let files = folder("service");
        let [socket, control, notify] =
            ["socket", "control", "notify"].map(|name| files.path().join(name));
        let listener = UnixListener::bind(&socket).unwrap();
        let from = UnixDatagram::bind(&notify).unwrap();
        let heard = Arc::new(Heard::default());
        let hears = Arc::clone(&heard);
        std::thread::spawn(move || {
            loop {
                let mut text = [0; 4096];
                let (length, file) = from.recv_with_fd(&mut text).unwrap();
                if hears.lock().ends {
                    return;
                }
                hears.take(std::str::from_utf8(&text[..length]).unwrap(), file);
            }
        });
        Self {
            socket,
            control,
            listener,
            notify,
            heard,
            binary: binary.to_owned(),
            image: image.to_owned(),
            _files: files,
        }
    }

    /// Starts the process with all that is there, and waits until it is ready.
    ///
    /// Of several stored descriptors it gets the latest only: between two messages
    /// to the manager there are two.
    pub fn start(&self, arguments: &[&str]) -> Daemon {
        let ready = self.heard.lock().ready;
        let stored = {
            let state = self.heard.lock();
            let first = state.stored.first();
            first.map(|(name, file)| (name.clone(), file.try_clone().unwrap()))
        };
        let mut names = "extentd@vm.socket".to_owned();
        let count = 1 + usize::from(stored.is_some());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c"]);
        command.arg(match &stored {
            Some(_) => "exec 3<&0 4<&1 0</dev/null 1>&0; export LISTEN_PID=$$; exec \"$0\" \"$@\"",
            None => "exec 3<&0 0</dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"",
        });
        command.stdin(OwnedFd::from(self.listener.try_clone().unwrap()));
        if let Some((name, file)) = stored {
            names = format!("{names}:{name}");
            command.stdout(OwnedFd::from(file));
        }
        let queues = QUEUES.to_string();
        command
            .arg(&self.binary)
            .args(["--num-queues", &queues, "--threads", "2"])
            .arg("--control-path")
            .arg(&self.control)
            .arg("--blk-file")
            .arg(&self.image)
            .args(arguments)
            .env("LISTEN_FDS", count.to_string())
            .env("LISTEN_FDNAMES", names)
            .env("NOTIFY_SOCKET", &self.notify)
            .env("FDSTORE", MOST.to_string())
            .stderr(Stdio::piped());
        let daemon = Daemon::spawn(&mut command, &self.socket).unwrap();
        self.wait("the process to be ready", |state| state.ready > ready);
        daemon
    }

    fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let state = self.heard.lock();
        let missing = |state: &mut State| !holds(state);
        let waited = self.heard.more.wait_timeout_while(state, LIMIT, missing);
        let late = waited.unwrap().1.timed_out();
        assert!(!late, "waited for {what} in vain");
    }

    /// How often something was stored so far.
    pub fn puts(&self) -> usize {
        self.heard.lock().puts
    }

    /// Waits until something was stored more often than that.
    pub fn wait_stored(&self, puts: usize) {
        self.wait("something to be stored", |state| state.puts > puts);
    }

    /// Waits until just one thing is stored.
    pub fn wait_settled(&self) {
        self.wait("what is old to be removed", |state| state.stored.len() == 1);
    }

    /// Waits until nothing is stored.
    pub fn wait_empty(&self) {
        self.wait("the store to be empty", |state| state.stored.is_empty());
    }

    /// Lets go of all that is stored, as at the stop of a service.
    pub fn release(&self) {
        self.heard.lock().stored.clear();
    }

    /// Hears no more.
    pub fn go_deaf(&self) {
        std::fs::remove_file(&self.notify).unwrap();
    }

    /// A session that takes everything that `wanted` has of the protocol.
    pub fn connect(&self, like: Like, features: u64, wanted: u64) -> Session {
        let wanted = Wanted {
            features,
            protocol: protocol::ALL & wanted,
            queues: u16::try_from(QUEUES).unwrap(),
        };
        Session::open(&self.socket, like, wanted).unwrap()
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.heard.lock().ends = true;
        // Wakes the thread, which may have ended with a panic.
        let _ = UnixDatagram::unbound().and_then(|one| one.send_to(b"\n", &self.notify));
    }
}
