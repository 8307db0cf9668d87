//! The life of `extentd-nbd`: open, listen, serve until a signal.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::host::keeper::Keeper;
use crate::host::limits;
use crate::host::logging;
use crate::host::reach::{self, NoAnswer};
use crate::host::sandbox::{self, Kind, Needs, Plan};
use crate::host::socket::{self, Inherited, SocketError};
use crate::host::sys;
use crate::nbd::{self, Snapshot, SnapshotError};
use crate::process::service_manager::{self, NotifyState};
use crate::process::signals::{Signals, Wish};
use crate::process::socket_files::SocketFiles;

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdSocket {
    /// A path, where the process makes a socket.
    Path(PathBuf),
    /// A listening socket that was inherited under this number, as an option
    /// of that name says.
    Inherited(RawFd, &'static str),
}

/// What is served, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdConfig {
    /// Where clients connect.
    pub socket: NbdSocket,
    /// The snapshot.
    pub file: PathBuf,
    /// Older ones, from which it is told to differ.
    pub since: Vec<PathBuf>,
    /// Give up what is not needed.
    pub sandbox: bool,
}

impl NbdConfig {
    /// The paths that are needed, with their options.
    fn paths(&self) -> Vec<(&'static str, PathBuf)> {
        let mut paths = vec![("--file", self.file.clone())];
        if let NbdSocket::Path(path) = &self.socket {
            paths.push(("--socket-path", path.clone()));
        }
        paths.extend(self.since.iter().map(|older| ("--since", older.clone())));
        paths
    }
}

/// Why the process cannot start or go on: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The file system of a path.
    #[error("{0}")]
    Silent(#[from] NoAnswer),
    /// `--file` or `--since`.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// `--socket-path` or `--fd`.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// The inherited socket is one connection.
    #[error("{0} {1}: this socket is connected: pass one that listens")]
    Connected(&'static str, RawFd),
    /// The host refuses a thread or a descriptor.
    #[error(
        "cannot {what}: {source}: check the limits on tasks (TasksMax=, ulimit -u), open files (LimitNOFILE=, ulimit -n) and memory"
    )]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> NbdError {
    move |source| NbdError::Host { what, source }
}

/// Serves the snapshot until SIGTERM or SIGINT, which end the process with
/// status 0.
///
/// # Errors
/// It could not start, or the socket cannot be used any more.
pub fn run(config: &NbdConfig) -> Result<(), NbdError> {
    // First: no descriptor of our own may have the number.
    let inherited = match config.socket {
        NbdSocket::Inherited(fd, option) => Some((socket::inherit(fd, option)?, fd, option)),
        NbdSocket::Path(_) => None,
    };
    limits::raise();
    reach::all(config.paths())?;
    if config.sandbox {
        sandbox::begin(&Plan {
            image: config.file.clone(),
            folder: None,
            needs: Needs::default(),
            begun: false,
        });
    }
    let blocked = Signals::block().map_err(host("watch for signals"))?;
    let keeper = Keeper::spawn().map_err(host("start the thread that ends it"))?;
    let signals = Signals::watch(blocked).map_err(host("watch for signals"))?;
    logging::start(|| sandbox::enter(Kind::Log)).map_err(host("start the log's thread"))?;
    let snapshot = Snapshot::open(&config.file, &config.since)?;
    let (listener, file) = match (&config.socket, inherited) {
        (NbdSocket::Path(path), _) => {
            socket::bind(path, "--socket-path").map(|(listener, file)| (listener, Some(file)))?
        }
        (_, Some((Inherited::Listening(listener), _, _))) => (listener, None),
        (NbdSocket::Inherited(fd, option), _) => return Err(NbdError::Connected(option, *fd)),
    };
    // It is removed when this is dropped, however this ends.
    let mut files = SocketFiles::new(&keeper);
    files.socket(file);
    let asked = Arc::new(sys::event().map_err(host("make a descriptor"))?);
    let stop = Arc::clone(&asked);
    signals.on_wish(move |wish| {
        if wish == Wish::Stop {
            service_manager::tell(&NotifyState::Stopping);
            sys::event_set(&*asked);
        }
    });
    log::info!("serving {}", config.file.display());
    service_manager::tell(&NotifyState::Ready);
    sandbox::enter(Kind::Export);
    logging::wait_no_more();
    nbd::serve(&listener, &stop, Box::new(snapshot)).map_err(host("wait for clients"))
}
