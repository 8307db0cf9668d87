//! The life of the process: open, listen, serve, stop or become another.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_backend::{Endpoint, Handle, Server};

use crate::disk::{Disk, DiskError};
use crate::host::allocations;
use crate::host::hardening::SMALL_STACK;
use crate::host::limits;
use crate::host::logging;
use crate::host::socket::{self, Access, Inherited, SocketError, SocketFile};
use crate::host::switches;
use crate::host::sys;
use crate::operator::Operator;
use crate::operator::control;
use crate::operator::metrics;
use crate::operator::metrics_listener;
use crate::operator::statistics;
use crate::options::config::{Config, Socket};
use crate::process::handover::{self, Handover};
use crate::process::service_manager::{self, NotifyState};
use crate::process::signals::{Signals, Wish};
use crate::process::watch;
use crate::swap::{self, SwapError, SwapMode};

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
        "--metrics-listen {address}: cannot listen: {source}: {}",
        if source.kind() == io::ErrorKind::PermissionDenied {
            "ports below 1024 take CAP_NET_BIND_SERVICE: give a higher one"
        } else {
            "give a free address of this host"
        }
    )]
    Metrics {
        /// As given.
        address: SocketAddr,
        /// What the host says.
        source: io::Error,
    },
    /// `--cpus`.
    #[error("--cpus: this process may not use CPU {0}: give some of {1}")]
    Cpu(usize, String),
    /// `--swap`.
    #[error("{0}")]
    Swap(#[from] SwapError),
    /// The host refuses a thread or a descriptor.
    #[error(
        "cannot {what}: {source}: check the limits on tasks (TasksMax=, pids.max, ulimit -u), open files (LimitNOFILE=, ulimit -n) and memory (LimitDATA=, LimitAS=, ulimit -d, ulimit -v)"
    )]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
}

/// Serves the disk until a signal asks to stop, or until a front-end that was
/// inherited as a connection leaves. Does not return from a handover.
///
/// # Errors
/// It could not start, or the server could not go on.
pub fn run(config: &Config) -> Result<(), ServeError> {
    switches::pass_on();
    limits::raise();
    check_cpus(config)?;
    if let Some(grade) = config.disk.swap {
        swap::protect(grade)?;
    }
    let signals = Signals::watch().map_err(host("watch for signals"))?;
    logging::start().map_err(host("start the log's thread"))?;
    watch::start().map_err(host("start the watch over its threads"))?;
    let disk = Arc::new(open_disk(config)?);
    let mut server = Server::new(Arc::clone(&disk), config.server.clone())?;
    let handle = server.handle();
    let swap = match config.disk.swap {
        Some(grade) => Some(SwapMode::seal(grade)?),
        None => None,
    };
    let operator = Operator::new(
        config.server.clone(),
        Arc::clone(&disk),
        handle.clone(),
        swap,
    );
    let operator = Arc::new(operator);
    // The files are removed when these are dropped, however this ends.
    let control_file = match &config.control_path {
        Some(path) => Some(start_control(path, &operator)?),
        None => None,
    };
    if let Some(address) = config.metrics_listen {
        start_metrics(address, &disk)?;
    }
    // Last: who finds the socket finds everything else ready.
    let (endpoint, socket_file) = open_endpoint(&config.socket)?;
    let successor = Arc::new(successor(&endpoint, config, &disk));
    let begun = Arc::new(AtomicU64::new(SERVING));
    signals.on_wish(wishes(&operator, &handle, &successor, &begun));
    let description = disk.describe();
    log::info!(
        "serving {} ({} bytes)",
        description.image,
        description.size_bytes
    );
    if let Some(pause) = handover::pause_ms() {
        log::info!("taken over after {pause} ms");
    }
    service_manager::tell(&NotifyState::Ready);
    logging::wait_no_more();
    allocations::started();
    let result = server.run(endpoint);
    if let (Ok(()), Ok(successor)) = (&result, &*successor)
        && let begun = begun.load(Ordering::Acquire)
        && ![SERVING, STOPPING].contains(&begun)
    {
        drop(control_file);
        if let Some(file) = socket_file {
            file.leave();
        }
        // Its workers end, and the image is free for the next one.
        drop(server);
        if let Ok(path) = disk.disk_path() {
            // A lease would be handed over with the image, and keep the new
            // binary from opening it.
            path.unwant();
        }
        successor.go(begun).map_err(host("run the new binary"))?;
    }
    Ok(result?)
}

/// The CPUs that workers are to run on are there, and ours to use.
fn check_cpus(config: &Config) -> Result<(), ServeError> {
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_err(|error| host("ask for its CPUs")(error.into()))?;
    let most = rustix::thread::CpuSet::MAX_CPU;
    let mine = |cpu: &usize| *cpu < most && allowed.is_set(*cpu);
    match config
        .server
        .cpus
        .iter()
        .take(config.server.workers)
        .find(|&cpu| !mine(cpu))
    {
        None => Ok(()),
        Some(&cpu) => {
            let usable: Vec<String> = (0..most).filter(mine).map(|cpu| cpu.to_string()).collect();
            Err(ServeError::Cpu(cpu, usable.join(",")))
        }
    }
}

/// Opens the image: the one that was handed over, or else what has its name.
fn open_disk(config: &Config) -> Result<Disk, ServeError> {
    let handed = handover::inherited_image();
    if let (Some(grade), None) = (config.disk.swap, &handed) {
        // Where it was handed over it was prepared, which is looked at again.
        swap::prepare(grade, &config.image)?;
    }
    Ok(Disk::open_again(&config.image, handed, &config.disk)?)
}

/// No handover has begun.
const SERVING: u64 = 0;
/// None will begin any more.
const STOPPING: u64 = u64::MAX;

/// What can take over, or why nothing can.
fn successor(endpoint: &Endpoint, config: &Config, disk: &Disk) -> Result<Handover, String> {
    let number = match &config.socket {
        Socket::Inherited(fd) => Some(*fd),
        Socket::Path(_) | Socket::Adopted(..) | Socket::Activated(_) => None,
    };
    match endpoint {
        Endpoint::Listener(listener) => Handover::prepare(listener, number, disk.image())
            .map_err(|error| format!("it could not be prepared for: {error}")),
        Endpoint::Connected(_) => Err("nobody could connect to the new process".to_owned()),
    }
}

/// What signals do, such that none keeps the next one waiting; `begun` is set
/// to the time at which a handover begins.
fn wishes(
    operator: &Arc<Operator>,
    handle: &Handle,
    successor: &Arc<Result<Handover, String>>,
    begun: &Arc<AtomicU64>,
) -> impl Fn(Wish) + Send + Sync + 'static {
    let operator = Arc::downgrade(operator);
    let (handle, successor, begun) = (handle.clone(), Arc::clone(successor), Arc::clone(begun));
    move |wish| match wish {
        Wish::Stop => {
            begun.store(STOPPING, Ordering::Release);
            watch::stopping();
            service_manager::tell(&NotifyState::Stopping);
            handle.stop();
        }
        Wish::Reread => {
            if let Some(operator) = operator.upgrade() {
                aside(move || operator.reread());
            }
        }
        Wish::Handover => {
            let (handle, successor) = (handle.clone(), Arc::clone(&successor));
            let begun = Arc::clone(&begun);
            aside(
                move || match successor.as_ref().as_ref().map(Handover::check) {
                    Err(reason) => log::error!("no handover: {reason}"),
                    Ok(Err(reason)) => log::error!("no handover: {reason}"),
                    Ok(Ok(())) => {
                        let now = sys::boot_time_ns().clamp(1, STOPPING - 1);
                        let (order, or) = (Ordering::AcqRel, Ordering::Acquire);
                        match begun.compare_exchange(SERVING, now, order, or) {
                            Ok(_) => handle.stop(),
                            Err(_) => log::info!("no handover: the process stops"),
                        }
                    }
                },
            );
        }
    }
}

/// Does something that may wait for the image, or for another program.
fn aside(act: impl FnOnce() + Send + 'static) {
    let started = std::thread::Builder::new()
        .name("wish".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(act);
    if let Err(error) = started {
        log::error!(
            "the signal has no effect, as there is no thread for it ({error}): raise the limit on tasks"
        );
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Host { what, source }
}

fn open_endpoint(socket: &Socket) -> Result<(Endpoint, Option<SocketFile>), SocketError> {
    let (fd, option) = match socket {
        Socket::Path(path) => {
            let (listener, file) = socket::bind(path, Access::Umask, "--socket-path")?;
            return Ok((Endpoint::Listener(listener), Some(file)));
        }
        Socket::Adopted(path, fd) => {
            let (listener, file) = socket::adopt(*fd, path)?;
            return Ok((Endpoint::Listener(listener), file));
        }
        Socket::Inherited(fd) => (*fd, "--fd"),
        Socket::Activated(fd) => (*fd, "LISTEN_FDS"),
    };
    Ok(match socket::inherit(fd, option)? {
        Inherited::Listening(listener) => (Endpoint::Listener(listener), None),
        Inherited::Connected(stream) => (Endpoint::Connected(stream), None),
    })
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

fn start_control(path: &Path, operator: &Arc<Operator>) -> Result<SocketFile, ServeError> {
    let (listener, file) = control::bind(path)?;
    control::start(listener, Arc::clone(operator)).map_err(host("start the control thread"))?;
    Ok(file)
}
