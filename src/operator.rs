//! What the control socket reaches: carries out what an operator asks of a
//! disk.

pub mod advice;
pub mod control;
pub mod image_map;
pub mod metrics;
pub(crate) mod metrics_listener;
pub mod statistics;

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use vhost_backend::{Connected, Device, Handle};

use self::advice::Advice;
use self::control::{Answer, Controlled, Request};
use crate::disk::Disk;
use crate::options::byte_range::ByteRange;
use crate::options::config::{Config, IoPath};
use crate::swap::SwapMode;

/// Carries out requests for one disk.
pub(crate) struct Operator {
    config: Config,
    disk: Arc<Disk>,
    handle: Handle,
    swap: Option<SwapMode>,
    /// One resize at a time.
    resizing: Mutex<()>,
}

/// What was done, or one line that says why not.
type Done = Result<Value, String>;

impl Operator {
    /// For a disk, the server that offers it, and swap-grade mode.
    pub(crate) fn new(
        config: Config,
        disk: Arc<Disk>,
        handle: Handle,
        swap: Option<SwapMode>,
    ) -> Self {
        Self {
            config,
            disk,
            handle,
            swap,
            resizing: Mutex::new(()),
        }
    }

    fn info(&self) -> Value {
        let status = self.handle.status();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "queues": self.config.queues,
            "queue_size": self.config.queue_size,
            "threads": self.config.threads,
            "cpus": self.config.cpus,
            "disk": self.disk.describe(),
            "swap": self.swap.as_ref().map(|swap| swap.describe(&self.disk)),
            "session": {
                "connected": status.connected,
                "rings_running": status.rings_running,
                "front_end": status.front_end.map(connected),
                "waiting": status.waiting.into_iter().map(connected).collect::<Vec<_>>(),
                "waits_for_image": status.awaited.is_some(),
                "image_awaited": status.awaited.map(|awaited| json!({
                    "seconds": awaited.since.elapsed().as_secs(),
                    "reason": awaited.reason,
                })),
                "features": format!("{:#x}", status.features),
                "protocol_features": format!("{:#x}", status.protocol_features),
                "memory_regions": status.memory_regions,
                "memory_bytes": status.memory_bytes,
                "writeback": status.writeback,
            },
        })
    }

    fn selftest(&self) -> Done {
        match &self.swap {
            Some(swap) => Ok(swap.selftest(&self.disk)),
            None => Err("selftest: extentd was started without --swap".to_owned()),
        }
    }

    fn resize(&self, bytes: u64) -> Done {
        // It guards no data, so a panic elsewhere has left nothing half done.
        let _one = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.disk.capacity_sectors();
        let result = self.disk.resize(bytes);
        // Also a resize that failed halfway may have changed it.
        if self.disk.capacity_sectors() != before {
            self.handle.capacity_changed();
        }
        result.map_err(|error| error.to_string())?;
        log::info!("resized to {bytes} bytes");
        Ok(json!({ "size_bytes": self.disk.capacity_bytes() }))
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
        if now != before {
            self.handle.capacity_changed();
            log::info!("the image's size has changed from {before} to {now} bytes");
        }
    }

    fn stats(&self) -> Done {
        serde_json::to_value(statistics::gather(&self.disk)).map_err(|error| error.to_string())
    }

    fn advise(&self, advice: Advice, range: ByteRange) -> Done {
        let failed = |reason: &str| format!("advise {advice}: {reason}");
        let path = self.disk.disk_path().map_err(|reason| {
            failed(&format!(
                "there is no disk path and so no map to advise: {reason}"
            ))
        })?;
        let range = range
            .of(self.disk.capacity_bytes())
            .map_err(|error| failed(&error.to_string()))?;
        let done = advice::follow(path, advice, range.clone())
            .map_err(|error| failed(&error.to_string()))?;
        let stats = path.stats();
        Ok(json!({
            "advice": advice,
            "start": range.start,
            "end": range.end,
            "done": done,
            "resident_windows": stats.resident_windows,
            "resident_bytes": stats.resident_bytes,
            "pinned_bytes": stats.pinned_bytes,
        }))
    }

    fn map(&self, range: ByteRange, most: u32) -> Done {
        let failed = |reason: String| format!("map: {reason}");
        let range = range
            .of(self.disk.capacity_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let page = image_map::page(&self.disk, range, most).map_err(|error| {
            failed(format!("the image's file system tells no extents: {error}"))
        })?;
        serde_json::to_value(page).map_err(|error| failed(error.to_string()))
    }

    fn io_path(&self, way: IoPath) -> Done {
        let guard = match (self.disk.disk_path(), self.disk.guard()) {
            (Ok(_), Some(guard)) => guard,
            // It is so already.
            (Err(_), _) if way == IoPath::File && !self.disk.is_block_device() => {
                return Ok(self.path());
            }
            (Err(reason), _) => {
                return Err(format!("io-path: there is no disk path: {reason}"));
            }
            (Ok(_), None) => return Err("io-path: the disk path has no guard".to_owned()),
        };
        match way {
            IoPath::Auto => guard.allow(),
            IoPath::File => guard.forbid(),
            IoPath::Disk => guard.try_now().map_err(|obstacle| {
                format!("io-path disk: {obstacle}: remove that obstacle; it is used as soon as it can be")
            })?,
        }
        Ok(self.path())
    }

    fn path(&self) -> Value {
        let description = self.disk.describe();
        json!({ "path": description.path, "path_reason": description.path_reason })
    }
}

/// A connection: whose, and for how long.
fn connected(one: Connected) -> Value {
    json!({
        "pid": one.peer.map(|peer| peer.pid),
        "uid": one.peer.map(|peer| peer.uid),
        "seconds": one.since.elapsed().as_secs(),
    })
}

impl Controlled for Operator {
    fn carry_out(&self, request: Request) -> Answer {
        let done = match request {
            Request::Info {} => Ok(self.info()),
            Request::Selftest {} => self.selftest(),
            Request::Resize { bytes } => self.resize(bytes),
            Request::Stats {} => self.stats(),
            Request::Advise { advice, range } => self.advise(advice, range),
            Request::Map { range, most } => self.map(range, most),
            Request::IoPath { path } => self.io_path(path),
        };
        match done {
            Ok(value) => Answer::Result(value),
            Err(line) => Answer::Error(line),
        }
    }
}
