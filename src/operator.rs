//! What the control socket reaches: carries out what an operator asks of a
//! disk.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod advice;
mod clients;
pub mod control;
mod events;
pub mod exporter;
mod http;
pub(crate) mod http_socket;
mod image_map;
pub(crate) mod limits;
pub mod metrics;
pub(crate) mod metrics_listener;
mod options;
mod serving;
mod shown_map;
mod snapshots;
pub(crate) mod statistics;
mod stillness;
mod unsharing;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use mapping::KindName;
use serde::Serialize;
use vhost_backend::{Connected, Handle, Options};

use self::control::{Caller, Controlled};
use self::limits::Governor;
use self::options::CurrentOptions;
use self::shown_map::ShownMap;
use self::snapshots::Snapshots;
use self::unsharing::{Unshare, Whose};
use crate::disk::Disk;
use crate::disk::snapshots::SnapshotFolder;
use crate::host::feed::Feed;
use crate::host::logging;
use crate::host::sandbox::{self, InForce};
use crate::options::byte_range::ByteRange;
use crate::options::config::{IoPath, LogLevel, OnError};
use crate::options::limit;
use crate::options::settings::Settings;
use crate::protocol::done::{
    Advised, LogLevelNow, OnErrorNow, OptionsNow, PathNow, Quiesced, Resized, Resumed, Retried,
    SnapshotCancelled, SnapshotList, SnapshotTaken, UnshareCancelled, Unsharing,
};
use crate::protocol::events::Event;
use crate::protocol::extents::{Heat, Page};
use crate::protocol::info::{
    FrontEnd, ImageAwaited, Info, Sandbox, Selftest, Session, StandingThread,
};
use crate::protocol::limits::LimitsNow;
use crate::protocol::statistics::{ExtentCounts, Statistics};
use crate::protocol::{Advice, Answer, Code, Failure, Request};
use crate::swap::SwapMode;

/// How long a piece that is being unshared may keep the end waiting.
const SETTLING: Duration = Duration::from_secs(2);

/// Carries out requests for one disk.
pub(crate) struct Operator {
    offered: Options,
    disk: Arc<Disk>,
    handle: Handle,
    swap: Option<SwapMode>,
    feed: Feed<Event>,
    limits: Governor,
    /// One resize at a time.
    resizing: Arc<Mutex<()>>,
    options: CurrentOptions,
    snapshots: Snapshots,
    unshare: Unshare,
    /// Loaded by advice where requests go by the file.
    shown: ShownMap,
}

/// What was done: the answer to the request of that name.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Done {
    Info(Box<Info>),
    Selftest(Selftest),
    Resize(Resized),
    Stats(Box<Statistics>),
    Advise(Advised),
    Map(Page),
    Heat(Heat),
    LogLevel(LogLevelNow),
    IoPath(PathNow),
    Options(OptionsNow),
    OnError(OnErrorNow),
    Retry(Retried),
    Quiesce(Quiesced),
    Resume(Resumed),
    Snapshot(SnapshotTaken),
    SnapshotCancel(SnapshotCancelled),
    Snapshots(SnapshotList),
    Unshare(Unsharing),
    UnshareCancel(UnshareCancelled),
    Limits(LimitsNow),
}

impl Operator {
    /// For a disk, what is offered of it, the server that offers it, swap-grade
    /// mode, limits, the options that all of it comes from, and who is told of
    /// what happens.
    pub(crate) fn new(
        offered: Options,
        disk: Arc<Disk>,
        handle: Handle,
        swap: Option<SwapMode>,
        limits: Governor,
        options: Settings,
        feed: Feed<Event>,
    ) -> Self {
        Self {
            offered,
            disk,
            handle,
            swap,
            feed,
            limits,
            resizing: Arc::default(),
            options: CurrentOptions::new(options),
            shown: ShownMap::default(),
            snapshots: Snapshots::new(None),
            unshare: Unshare::default(),
        }
    }

    /// With a folder for snapshots, if there is one.
    pub(crate) fn with_snapshots(self, folder: Option<SnapshotFolder>) -> Self {
        Self {
            snapshots: Snapshots::new(folder),
            ..self
        }
    }

    fn info(&self) -> Info {
        let status = self.handle.status();
        Info {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            queues: self.offered.queues,
            queue_size: self.offered.queue_size,
            threads: self.offered.workers,
            cpus: self.offered.cpus.clone(),
            held_ms: self
                .limits
                .limits
                .held()
                .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            snapshot: self.snapshots.making(),
            unshare: self.unshare.now(),
            disk: self.disk.describe(),
            swap: self.swap.as_ref().map(|swap| swap.describe(&self.disk)),
            sandbox: sandbox::in_force().map(given_up),
            limits: self.limits.now(),
            session: Session {
                connected: status.connected,
                rings_running: status.rings_running,
                front_end: status.front_end.map(connected),
                waiting: status.waiting.into_iter().map(connected).collect(),
                waits_for_image: status.awaited.is_some(),
                image_awaited: status.awaited.map(|awaited| ImageAwaited {
                    seconds: awaited.since.elapsed().as_secs(),
                    reason: awaited.reason,
                }),
                features: status.features,
                protocol_features: status.protocol_features,
                memory_regions: status.memory_regions,
                memory_bytes: status.memory_bytes,
                writeback: status.writeback,
            },
            standing: pulse::standing().into_iter().map(standing).collect(),
        }
    }

    /// All counters.
    pub(crate) fn statistics(&self) -> Statistics {
        statistics::gather(&self.disk, &self.limits.limits, &self.handle)
    }

    fn selftest(&self) -> Result<Selftest, String> {
        match &self.swap {
            Some(swap) => Ok(swap.selftest(&self.disk)),
            None => Err("selftest: extentd was started without --swap".to_owned()),
        }
    }

    fn resize(&self, bytes: u64) -> Result<Resized, String> {
        // It guards no data, so a panic elsewhere has left nothing half done.
        let _one = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.disk.capacity_bytes();
        let result = self.disk.resize(bytes);
        // Also a resize that failed halfway may have changed it.
        self.tell_size(before);
        result.map_err(|error| error.to_string())?;
        log::info!("resized to {bytes} bytes");
        Ok(Resized {
            size_bytes: self.disk.capacity_bytes(),
        })
    }

    /// The image may have another size than it had: then that of the disk
    /// follows, and the guest is told.
    pub(crate) fn reread(&self) {
        let _one = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.disk.capacity_bytes();
        if let Err(error) = self.disk.follow_size() {
            log::error!("the disk keeps its size: {error}");
        }
        let now = self.disk.capacity_bytes();
        if self.tell_size(before) {
            log::info!("the image's size has changed from {before} to {now} bytes");
        }
    }

    /// The disk is held still.
    pub(crate) fn is_held(&self) -> bool {
        self.limits.limits.held().is_some()
    }

    /// The file of options may have others than it had.
    pub(crate) fn reread_options(&self) {
        self.options.reread(|key, args| match key {
            "io-path" => self.io_path(args.io_path).map(drop),
            "limit" => {
                let lists = args.limit.iter().flat_map(|list| &list.0);
                self.limits.replace(&lists.copied().collect::<Vec<_>>());
                Ok(())
            }
            "on-enospc" => {
                self.disk.hold_on(Some(args.on_enospc), None);
                Ok(())
            }
            "on-io-error" => {
                self.disk.hold_on(None, Some(args.on_io_error));
                Ok(())
            }
            _ => {
                logging::show(args.log_level.map(Into::into));
                Ok(())
            }
        });
    }

    /// Chooses what becomes of requests that the host fails.
    pub(crate) fn on_error(
        &self,
        enospc: Option<OnError>,
        io_error: Option<OnError>,
    ) -> OnErrorNow {
        self.disk.hold_on(enospc, io_error);
        for (key, what) in [("on-enospc", enospc), ("on-io-error", io_error)] {
            if let Some(what) = what {
                self.options.note(key, Some(what.as_str()));
            }
        }
        OnErrorNow::new(self.disk.on_errors(), self.disk.held().counts().now)
    }

    fn retry(&self) -> Retried {
        let requests = self.disk.held().counts().now;
        self.disk.held().retry();
        Retried::new(requests)
    }

    /// This process ends, or becomes another one: what is not whole by now is
    /// given up.
    pub(crate) fn leave(&self) {
        let reason = "extentd ends";
        self.disk.give_clone_up(reason);
        // It may not be under way.
        let _ended = self.unshare.cancel(reason);
    }

    /// Waits for a moment until nothing of that is under way.
    pub(crate) fn settle(&self) {
        self.leave();
        self.disk.settle_clone();
        self.unshare.wait_for_end(SETTLING);
    }

    /// Tells the guest and others of another size; whether it is one.
    fn tell_size(&self, before: u64) -> bool {
        let size_bytes = self.disk.capacity_bytes();
        let changed = size_bytes != before;
        if changed {
            self.handle.capacity_changed();
            self.feed.tell(Event::Resized { size_bytes });
        }
        changed
    }

    fn advise(&self, advice: Advice, range: ByteRange) -> Result<Advised, String> {
        let failed = |reason: &str| format!("advise {advice}: {reason}");
        let range = range
            .of(self.disk.capacity_bytes())
            .map_err(|error| failed(&error.to_string()))?;
        let followed = advice::follow(&self.disk, &self.shown, advice, range.clone())
            .map_err(|error| failed(&error.to_string()))?;
        let stats = followed.stats;
        let entries = ExtentCounts::new(stats.extents).named();
        let entries = entries.iter().filter(|(kind, _)| *kind != KindName::Hole);
        Ok(Advised {
            advice,
            start: range.start,
            end: range.end,
            done: followed.done.to_owned(),
            in_use: followed.in_use,
            fiemap_calls: followed.calls,
            took_us: u64::try_from(followed.time.as_micros()).unwrap_or(u64::MAX),
            resident_windows: stats.resident_windows,
            resident_extents: entries.map(|(_, count)| count).sum(),
            resident_bytes: stats.resident_bytes,
            pinned_bytes: stats.pinned_bytes,
        })
    }

    fn map(&self, range: ByteRange, most: u32) -> Result<Page, String> {
        let failed = |reason: String| format!("map: {reason}");
        let range = range
            .of(self.disk.capacity_bytes())
            .map_err(|error| failed(error.to_string()))?;
        image_map::page(&self.disk, &self.shown, range, most)
            .map_err(|error| failed(format!("the image's file system tells no extents: {error}")))
    }

    fn heat(&self, range: ByteRange, during_ms: u32) -> Result<Heat, String> {
        let failed = |reason: String| format!("heat: {reason}");
        let range = range
            .of(self.disk.capacity_bytes())
            .map_err(|error| failed(error.to_string()))?;
        image_map::heat(&self.disk, range, during_ms).map_err(failed)
    }

    fn log_level(&self, level: Option<LogLevel>) -> LogLevelNow {
        if let Some(level) = level {
            logging::show(Some(level.into()));
            self.options.note("log-level", Some(&level.to_string()));
        }
        LogLevelNow {
            level: logging::shown().and_then(LogLevel::of),
        }
    }

    fn io_path(&self, way: IoPath) -> Result<PathNow, String> {
        let path = match self.disk.disk_path() {
            Ok(path) => path,
            // It is so already.
            Err(_) if way == IoPath::File && !self.disk.is_block_device() => {
                return Ok(self.path());
            }
            Err(reason) => return Err(format!("io-path: there is no disk path: {reason}")),
        };
        match way {
            IoPath::Auto => path.allow(),
            IoPath::File => path.forbid(),
            IoPath::Disk => path.try_now().map_err(|obstacle| {
                format!("io-path disk: {obstacle}: remove that obstacle; it is used as soon as it can be")
            })?,
        }
        Ok(self.path())
    }

    fn whose(&self) -> Whose {
        Whose {
            disk: Arc::clone(&self.disk),
            limits: Arc::clone(&self.limits.limits),
            feed: self.feed.clone(),
            resizing: Arc::clone(&self.resizing),
        }
    }

    fn taken_of(&self) -> snapshots::Of<'_> {
        snapshots::Of {
            disk: &self.disk,
            limits: &self.limits.limits,
            feed: &self.feed,
            resizing: &self.resizing,
        }
    }

    fn path(&self) -> PathNow {
        let description = self.disk.describe();
        PathNow {
            path: description.path,
            path_reason: description.path_reason,
        }
    }
}

/// A thread that does not come round.
fn standing(one: pulse::Standing) -> StandingThread {
    StandingThread {
        thread: one.thread,
        seconds: one.time.as_secs(),
        doing: one.doing.describe().to_owned(),
    }
}

/// What the process has given up.
fn given_up(sandbox: InForce) -> Sandbox {
    Sandbox {
        seccomp: sandbox.seccomp,
        landlock_version: sandbox.landlock,
        capabilities_dropped: sandbox.capabilities,
        denied_calls: sandbox.denied,
    }
}

/// A connection: whose, and for how long.
fn connected(one: Connected) -> FrontEnd {
    FrontEnd {
        pid: one.peer.map(|peer| peer.pid),
        uid: one.peer.map(|peer| peer.uid),
        seconds: one.since.elapsed().as_secs(),
    }
}

impl Controlled for Operator {
    type Done = Done;

    fn carry_out(&self, request: Request, from: Caller) -> Answer<Done> {
        if let Some(change) = request.change() {
            log::info!("control socket: {from} asks: {change}");
        }
        let done = match request {
            Request::Info {} => Ok(Done::Info(Box::new(self.info()))),
            Request::Selftest {} => self.selftest().map(Done::Selftest),
            Request::Resize { bytes } => self.resize(bytes).map(Done::Resize),
            Request::Stats {} => Ok(Done::Stats(Box::new(self.statistics()))),
            Request::Advise { advice, range } => self.advise(advice, range).map(Done::Advise),
            Request::Map { range, most } => self.map(range, most).map(Done::Map),
            Request::Heat { range, during_ms } => self.heat(range, during_ms).map(Done::Heat),
            Request::LogLevel { level } => Ok(Done::LogLevel(self.log_level(level))),
            Request::IoPath { path } => self.io_path(path).map(|done| {
                let value = path.to_possible_value();
                self.options
                    .note("io-path", value.as_ref().map(PossibleValue::get_name));
                Done::IoPath(done)
            }),
            Request::Quiesce {
                hold_ms,
                within_ms,
                sync,
            } => stillness::quiesce(
                &self.disk,
                &self.limits.limits,
                &self.feed,
                Duration::from_millis(hold_ms),
                Duration::from_millis(within_ms),
                sync,
            )
            .map(Done::Quiesce),
            Request::Resume { hold } => {
                stillness::resume(&self.limits.limits, hold).map(Done::Resume)
            }
            Request::Snapshot { name, within_ms } => self
                .snapshots
                .take(&name, self.taken_of(), Duration::from_millis(within_ms))
                .map(Done::Snapshot),
            Request::SnapshotCancel {} => {
                self.snapshots.cancel(&self.disk).map(Done::SnapshotCancel)
            }
            Request::Snapshots {} => self.snapshots.list().map(Done::Snapshots),
            Request::Unshare { rate } => self.unshare.begin(self.whose(), rate).map(Done::Unshare),
            Request::UnshareCancel {} => self
                .unshare
                .cancel("an operator has cancelled it")
                .map(Done::UnshareCancel),
            Request::Limits { set } => {
                let now = self.limits.change(set);
                let typed = limit::display(&now.limits.given());
                let given = (!typed.is_empty()).then_some(typed);
                self.options.note("limit", given.as_deref());
                Ok(Done::Limits(now))
            }
            Request::OnError { enospc, io_error } => {
                Ok(Done::OnError(self.on_error(enospc, io_error)))
            }
            Request::Retry {} => Ok(Done::Retry(self.retry())),
            Request::Options {} => Ok(Done::Options(self.options.describe())),
        };
        match done {
            Ok(done) => Answer::Result(done),
            Err(line) => Answer::Error(Failure::new(Code::Refused, line)),
        }
    }
}
