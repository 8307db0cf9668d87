//! The life of the process: open, listen, serve, stop or become another.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use vhost_backend::{Endpoint, Handle, Limits, Server, Visit};

use crate::disk::snapshots::{SnapshotError, SnapshotFolder};
use crate::disk::{Disk, DiskError, room};
use crate::host::allocations;
use crate::host::feed::{self, Feed, Listener};
use crate::host::keeper::{self, Keeper};
use crate::host::limits;
use crate::host::logging;
use crate::host::reach::{self, NoAnswer};
use crate::host::sandbox::{self, Kind};
use crate::host::socket::{self, Inherited, SocketError, SocketFile};
use crate::host::switches;
use crate::host::sys;
use crate::operator::Operator;
use crate::operator::control;
use crate::operator::http_socket::{self, ListenError};
use crate::operator::limits::Governor;
use crate::operator::metrics;
use crate::operator::metrics_listener;
use crate::options::address::Address;
use crate::options::config::{Config, Socket};
use crate::options::settings::Settings;
use crate::process::activation::Activation;
use crate::process::confine;
use crate::process::descriptor_store::{self, DescriptorStore};
use crate::process::handover::{self, Handover};
use crate::process::limits::{self as process_limits, LimitError};
use crate::process::service_manager::{self, NotifyState};
use crate::process::signals::{Signals, Wish};
use crate::process::socket_files::SocketFiles;
use crate::process::watch;
use crate::protocol::events::Event;
use crate::swap::{self, SwapError, SwapMode};

/// Why the process cannot start or go on: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The file system of a path.
    #[error("{0}")]
    Silent(#[from] NoAnswer),
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
    #[error("{0}")]
    Metrics(#[from] ListenError),
    /// `--cpus`.
    #[error("--cpus: this process may not use CPU {0}: give some of {1}")]
    Cpu(usize, String),
    /// `--snapshot-dir`.
    #[error("{0}")]
    Snapshots(#[from] SnapshotError),
    /// `--limit-group`.
    #[error("{0}")]
    Limits(#[from] LimitError),
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
/// inherited as a connection leaves. Does not return from a handover. `activation`
/// is what the process was started with.
///
/// # Errors
/// It could not start, or the server could not go on.
pub fn run(config: &Config, settings: Settings, activation: Activation) -> Result<(), ServeError> {
    // First: no descriptor of our own may have the number. What is wrong with
    // it is said when it is its turn.
    let entrance = Entrance::find(&config.socket);
    switches::pass_on();
    limits::raise();
    check_cpus(config)?;
    let inherited = handover::inherited_image();
    if inherited.is_none() {
        reach::all(config.paths())?;
    }
    let handed = inherited.or_else(|| descriptor_store::image(&activation));
    confine::begin(config, handed.as_ref(), handover::sandbox_begun());
    if let Some(grade) = config.disk.swap {
        swap::protect(grade)?;
    }
    let blocked = Signals::block().map_err(host("watch for signals"))?;
    let keeper = Keeper::spawn().map_err(host("start the thread that hands over"))?;
    let signals = Signals::watch(blocked).map_err(host("watch for signals"))?;
    logging::start(|| sandbox::enter(Kind::Log)).map_err(host("start the log's thread"))?;
    let (feed, events) = feed::feed(EVENTS).map_err(host("make a descriptor"))?;
    watch::start(feed.clone()).map_err(host("start the watch over its threads"))?;
    let limits = process_limits::begin(&config.limits, handover::limits())?;
    let disk = Arc::new(open_disk(config, handed)?);
    disk.report_to(feed.clone());
    watch::look_at(Arc::clone(disk.held()));
    room::watch(&disk, feed.clone()).map_err(host("start the thread that looks for room"))?;
    let mut server = Server::with_limits(
        Arc::clone(&disk),
        config.server.clone(),
        &limits,
        disk.held(),
    )?;
    server.observe(visits(feed.clone()));
    let handle = server.handle();
    let swap = match config.disk.swap {
        Some(grade) => Some(SwapMode::seal(grade)?),
        None => None,
    };
    let snapshots = match &config.snapshot_dir {
        Some(path) => Some(SnapshotFolder::open(path, disk.image())?),
        None => None,
    };
    let group = config.limits.group.as_ref();
    let operator = Operator::new(
        config.server.clone(),
        Arc::clone(&disk),
        handle.clone(),
        swap,
        Governor {
            limits: Arc::clone(&limits),
            group: group.map(|path| path.display().to_string()),
        },
        settings,
        feed,
    );
    if let Some((no_room, io_error)) = handover::on_errors() {
        operator.on_error(Some(no_room), Some(io_error));
    }
    let operator = Arc::new(operator.with_snapshots(snapshots));
    // They are removed when this is dropped, however this ends.
    let mut files = SocketFiles::new(&keeper);
    if let Some(path) = &config.control_path {
        files.control(start_control(path, &operator, events)?);
    }
    if let Some(address) = &config.metrics_listen {
        files.metrics(start_metrics(address, &operator)?);
    }
    // Last: who finds the socket finds everything else ready.
    let (endpoint, socket_file) = entrance?.open()?;
    files.socket(socket_file);
    let successor = successor(&endpoint, config, &disk, limits).map(Arc::new);
    let begun = Arc::new(AtomicU64::new(SERVING));
    signals.on_wish(wishes(&operator, &handle, &keeper, &successor, &begun));
    let description = disk.describe();
    log::info!(
        "serving {} ({} bytes)",
        description.image,
        description.size_bytes
    );
    if let Some(pause) = handover::pause_ms() {
        log::info!("taken over after {pause} ms");
    }
    if let Endpoint::Listener(_) = &endpoint {
        keep_sessions(&mut server, &disk, activation);
    }
    sandbox::enter(Kind::Session);
    service_manager::tell(&NotifyState::Ready);
    logging::wait_no_more();
    allocations::started();
    let result = server.run(endpoint);
    operator.settle();
    if let (Ok(()), Ok(successor)) = (&result, &successor)
        && let begun = begun.load(Ordering::Acquire)
        && ![SERVING, STOPPING].contains(&begun)
    {
        files.hand_over();
        // Its workers end, and the image is free for the next one.
        drop(server);
        if let Ok(path) = disk.disk_path() {
            // A lease would be handed over with the image, and keep the new
            // binary from opening it.
            path.unwant();
        }
        let successor = Arc::clone(successor);
        let on_errors = disk.on_errors();
        let result = keeper.have(move || successor.go(begun, on_errors));
        result
            .and_then(|result| result)
            .map_err(host("run the new binary"))?;
    }
    Ok(result?)
}

/// Has sessions outlive this process in the service manager's store, if it has one,
/// and goes on with the one that is there.
fn keep_sessions(server: &mut Server<Disk>, disk: &Disk, activation: Activation) {
    let mut left = activation.left;
    let names = left.iter().map(|(name, _)| name.clone()).collect();
    if let Some(store) = DescriptorStore::find(names) {
        match descriptor_store::name_of(disk.image()) {
            Ok(image) => server.keep(Box::new(store), Some(image)),
            Err(error) => {
                log::warn!(
                    "the front-end's connection is not kept for a next process, and it has to connect again then: {error}"
                );
                return;
            }
        }
        if let Some((_, parcel)) = left.pop() {
            server.take_up(parcel);
        }
    }
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
fn open_disk(config: &Config, handed: Option<OwnedFd>) -> Result<Disk, ServeError> {
    if let (Some(grade), None) = (config.disk.swap, &handed) {
        // Where it was handed over it was prepared, which is looked at again.
        swap::prepare(grade, &config.image)?;
    }
    Ok(Disk::open_again(&config.image, handed, &config.disk)?)
}

/// Has operators told of front-ends.
fn visits(feed: Feed<Event>) -> impl Fn(Visit) + Send + 'static {
    move |visit| {
        feed.tell(match visit {
            Visit::Came(peer) => Event::FrontEndCame {
                pid: peer.map(|peer| peer.pid),
                uid: peer.map(|peer| peer.uid),
            },
            Visit::Gone => Event::FrontEndGone {},
            // The library may tell of more than is known here.
            _ => return,
        });
    }
}

/// Events that wait for the thread that tells them.
const EVENTS: usize = 256;

/// No handover has begun.
const SERVING: u64 = 0;
/// None will begin any more.
const STOPPING: u64 = u64::MAX;

/// What can take over, or why nothing can.
fn successor(
    endpoint: &Endpoint,
    config: &Config,
    disk: &Disk,
    limits: Arc<Limits>,
) -> Result<Handover, String> {
    let number = match &config.socket {
        Socket::Inherited(fd) => Some(*fd),
        Socket::Path(_) | Socket::Adopted(..) | Socket::Activated(_) => None,
    };
    match endpoint {
        Endpoint::Listener(listener) => {
            Handover::prepare(listener, number, disk.image(), config.sandbox, limits)
                .map_err(|error| format!("it could not be prepared for: {error}"))
        }
        Endpoint::Connected(_) => Err("nobody could connect to the new process".to_owned()),
    }
}

/// What signals do, such that none keeps the next one waiting; `begun` is set
/// to the time at which a handover begins.
fn wishes(
    operator: &Arc<Operator>,
    handle: &Handle,
    keeper: &Keeper,
    successor: &Result<Arc<Handover>, String>,
    begun: &Arc<AtomicU64>,
) -> impl Fn(Wish) + Send + Sync + 'static {
    let operator = Arc::downgrade(operator);
    let (handle, keeper) = (handle.clone(), keeper.clone());
    let (successor, begun) = (successor.clone(), Arc::clone(begun));
    move |wish| match wish {
        Wish::Stop => {
            begun.store(STOPPING, Ordering::Release);
            watch::stopping();
            leave(&operator);
            service_manager::tell(&NotifyState::Stopping);
            handle.stop_and_keep();
        }
        Wish::Reread => {
            if let Some(operator) = operator.upgrade() {
                let of_options = Arc::clone(&operator);
                keeper::aside(move || operator.reread());
                // Where the file of options can be opened.
                keeper.aside(move || of_options.reread_options());
            }
        }
        Wish::Handover => match &successor {
            Err(reason) => log::error!("no handover: {reason}"),
            Ok(_)
                if operator
                    .upgrade()
                    .is_some_and(|operator| operator.is_held()) =>
            {
                // The next process would not be.
                log::error!("no handover: the disk is held still: extentctl resume lets it go on");
            }
            Ok(successor) => {
                let (handle, successor) = (handle.clone(), Arc::clone(successor));
                let (begun, operator) = (Arc::clone(&begun), operator.clone());
                keeper.aside(move || match successor.check() {
                    Err(reason) => log::error!("no handover: {reason}"),
                    Ok(()) => {
                        let now = sys::boot_time_ns().clamp(1, STOPPING - 1);
                        let (order, or) = (Ordering::AcqRel, Ordering::Acquire);
                        match begun.compare_exchange(SERVING, now, order, or) {
                            Ok(_) => {
                                leave(&operator);
                                handle.stop();
                            }
                            Err(_) => log::info!("no handover: the process stops"),
                        }
                    }
                });
            }
        },
    }
}

fn leave(operator: &Weak<Operator>) {
    if let Some(operator) = operator.upgrade() {
        operator.leave();
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Host { what, source }
}

/// Where front-ends come from.
enum Entrance<'a> {
    /// The process was started with it.
    Open(Endpoint, Option<SocketFile>),
    /// To be made there.
    Path(&'a Path),
}

impl<'a> Entrance<'a> {
    fn find(socket: &'a Socket) -> Result<Self, SocketError> {
        let (fd, option) = match socket {
            Socket::Path(path) => return Ok(Self::Path(path)),
            Socket::Adopted(path, fd) => {
                let (listener, file) = socket::adopt(*fd, path)?;
                return Ok(Self::Open(Endpoint::Listener(listener), file));
            }
            Socket::Inherited(fd) => (*fd, "--fd"),
            Socket::Activated(fd) => (*fd, "LISTEN_FDS"),
        };
        let endpoint = match socket::inherit(fd, option)? {
            Inherited::Listening(listener) => Endpoint::Listener(listener),
            Inherited::Connected(stream) => Endpoint::Connected(stream),
        };
        Ok(Self::Open(endpoint, None))
    }

    fn open(self) -> Result<(Endpoint, Option<SocketFile>), SocketError> {
        match self {
            Self::Open(endpoint, file) => Ok((endpoint, file)),
            Self::Path(path) => {
                let (listener, file) = socket::bind(path, "--socket-path")?;
                Ok((Endpoint::Listener(listener), Some(file)))
            }
        }
    }
}

fn start_metrics(
    address: &Address,
    operator: &Arc<Operator>,
) -> Result<Option<SocketFile>, ServeError> {
    let (listener, address, file) = http_socket::bind(address, "--metrics-listen")?;
    let operator = Arc::clone(operator);
    let text = move |format| metrics::exposition(vec![operator.statistics().into()], format);
    metrics_listener::start(listener, text).map_err(host("start the metrics thread"))?;
    match address {
        Address::Tcp(address) => log::info!("metrics at http://{address}/metrics"),
        Address::Unix(_) => log::info!("metrics at {address}, by HTTP at /metrics"),
    }
    Ok(file)
}

fn start_control(
    path: &Path,
    operator: &Arc<Operator>,
    events: Listener<Event>,
) -> Result<SocketFile, ServeError> {
    let (listener, file) = control::bind(path)?;
    control::start(listener, Arc::clone(operator), events)
        .map_err(host("start the control thread"))?;
    Ok(file)
}
