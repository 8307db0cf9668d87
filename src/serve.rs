//! The life of the process: open, listen, serve, stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use sd_notify::NotifyState;
use vhost_backend::{Endpoint, Handle, Options, Server};

use crate::config::{Config, Socket};
use crate::control;
use crate::disk::{Disk, DiskError, DiskOptions};
use crate::operator::Operator;
use crate::signals::Signals;
use crate::socket::{self, Access, Inherited, SocketError, SocketFile};
use crate::swap::{self, SwapError, SwapMode};
use crate::{metrics, metrics_listener, statistics};

/// Why the process cannot start or go on: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The image.
    #[error("{0}")]
    Disk(#[from] DiskError),
    /// `--socket-path`, `--fd` or `--control-path`.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// The server.
    #[error("{0}")]
    Server(#[from] vhost_backend::Error),
    /// `--metrics-listen`.
    #[error(
        "--metrics-listen {address}: cannot listen: {source}: give a free address of this host"
    )]
    Metrics {
        /// As given.
        address: SocketAddr,
        /// What the host says.
        source: io::Error,
    },
    /// `--swap`.
    #[error("{0}")]
    Swap(#[from] SwapError),
    /// The host refuses a thread or a descriptor.
    #[error("cannot {what}: {source}: check the limits on threads and open files")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
}

/// Serves the disk until a signal asks to stop, or until a front-end that was
/// inherited as a connection leaves.
///
/// # Errors
/// It could not start, or the server could not go on.
pub fn run(config: &Config) -> Result<(), ServeError> {
    if let Some(grade) = config.swap {
        swap::protect(grade)?;
    }
    let signals = Signals::watch().map_err(host("watch for signals"))?;
    if let Some(grade) = config.swap {
        swap::prepare(grade, config)?;
    }
    let disk = Arc::new(Disk::open(&config.image, &disk_options(config))?);
    let mut server = Server::new(Arc::clone(&disk), server_options(config))?;
    let handle = server.handle();
    let swap = match config.swap {
        Some(grade) => Some(SwapMode::seal(grade)?),
        None => None,
    };
    // The files are removed when these are dropped, however this ends.
    let _control_file = match &config.control_path {
        Some(path) => Some(start_control(path, config, &disk, &handle, swap)?),
        None => None,
    };
    if let Some(address) = config.metrics_listen {
        start_metrics(address, &disk)?;
    }
    // Last: who finds the socket finds everything else ready.
    let (endpoint, _socket_file) = open_endpoint(&config.socket)?;
    signals.on_stop(move || {
        notify(NotifyState::Stopping);
        handle.stop();
    });
    let description = disk.describe();
    log::info!(
        "serving {} ({} bytes)",
        description.image.display(),
        description.size_bytes
    );
    notify(NotifyState::Ready);
    Ok(server.run(endpoint)?)
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Host { what, source }
}

fn disk_options(config: &Config) -> DiskOptions {
    DiskOptions {
        read_only: config.read_only,
        logical_block_size: config.logical_block_size,
        serial: config.serial,
        lock: config.lock,
        io_path: config.io_path,
        map_budget: config.map_budget,
        pin_reserve: config.pin_reserve,
        pin_guest_memory: config.pin_guest_memory,
        swap: config.swap,
    }
}

fn server_options(config: &Config) -> Options {
    Options {
        queues: config.queues,
        queue_size: config.queue_size,
        workers: config.threads,
        cpus: config.cpus.clone(),
        poll: config.poll,
    }
}

fn open_endpoint(socket: &Socket) -> Result<(Endpoint, Option<SocketFile>), SocketError> {
    let (fd, option) = match socket {
        Socket::Path(path) => {
            let (listener, file) = socket::bind(path, Access::Umask, "--socket-path")?;
            return Ok((Endpoint::Listener(listener), Some(file)));
        }
        Socket::Inherited(fd) => (*fd, "--fd"),
        Socket::Activated(fd) => (*fd, "LISTEN_FDS"),
    };
    Ok(match socket::inherit(fd, option)? {
        Inherited::Listening(listener) => (Endpoint::Listener(listener), None),
        Inherited::Connected(stream) => (Endpoint::Connected(stream), None),
    })
}

/// Tells a service manager, if there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

fn start_metrics(address: SocketAddr, disk: &Arc<Disk>) -> Result<(), ServeError> {
    let failed = |source| ServeError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let disk = Arc::clone(disk);
    let text = move || metrics::exposition(&statistics::gather(&disk));
    metrics_listener::start(listener, text).map_err(host("start the metrics thread"))?;
    log::info!("metrics at http://{address}/metrics");
    Ok(())
}

fn start_control(
    path: &Path,
    config: &Config,
    disk: &Arc<Disk>,
    handle: &Handle,
    swap: Option<SwapMode>,
) -> Result<SocketFile, ServeError> {
    let (listener, file) = control::bind(path)?;
    let operator = Operator::new(config.clone(), Arc::clone(disk), handle.clone(), swap);
    control::start(listener, Arc::new(operator)).map_err(host("start the control thread"))?;
    Ok(file)
}
