//! Snapshots: the image as it is at one moment, while a guest uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhost_backend::Limits;

use crate::disk::Disk;
use crate::disk::snapshots::{Found, SnapshotFolder};
use crate::host::feed::Feed;
use crate::protocol::done::{Snapshot, SnapshotList, SnapshotTaken};
use crate::protocol::events::Event;

/// The disk is held for no longer, whatever the file system does: it lets
/// nobody write while it clones, so that the snapshot is one moment's all the
/// same.
const HOLD: Duration = Duration::from_secs(60);

/// Where snapshots go, if they go anywhere.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: Option<SnapshotFolder>,
    /// One at a time.
    taking: Mutex<()>,
}

impl Snapshots {
    /// Into the folder of `--snapshot-dir`.
    pub(crate) fn new(folder: Option<SnapshotFolder>) -> Self {
        Self {
            folder,
            taking: Mutex::new(()),
        }
    }

    fn folder(&self) -> Result<&SnapshotFolder, String> {
        self.folder
            .as_ref()
            .ok_or_else(|| "snapshot: extentd was started without --snapshot-dir".to_owned())
    }

    /// Those that are there.
    ///
    /// # Errors
    /// There is no folder for them, or it cannot be read.
    pub(super) fn list(&self) -> Result<SnapshotList, String> {
        let found = self.folder()?.list().map_err(|error| error.to_string())?;
        Ok(SnapshotList {
            snapshots: found.into_iter().map(snapshot).collect(),
        })
    }

    /// Takes one: requests wait while the file system clones the image. Where
    /// the disk is held still already it stays so.
    ///
    /// # Errors
    /// Requests in flight have not ended within `patience`, or the file system
    /// refuses; then there is no snapshot, and the disk goes on.
    pub(super) fn take(
        &self,
        name: &str,
        disk: &Disk,
        limits: &Arc<Limits>,
        feed: &Feed<Event>,
        patience: Duration,
    ) -> Result<SnapshotTaken, String> {
        // It guards no data, so a panic elsewhere has left nothing half done.
        let _one = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error: crate::disk::snapshots::SnapshotError| error.to_string();
        let part = self.folder()?.begin(name).map_err(failed)?;
        let begun = Instant::now();
        let held = Held::begin(limits, patience)?;
        let drained = begun.elapsed();
        {
            // What the map knows of places that are the image's own is not so
            // any more: it is loaded anew.
            let _away = disk.by_file();
            part.clone_of(disk.image()).map_err(failed)?;
        }
        drop(held);
        let paused = begun.elapsed();
        let found = part.finish().map_err(failed)?;
        feed.tell(Event::SnapshotTaken {
            name: found.name.clone(),
        });
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Ok(SnapshotTaken {
            snapshot: snapshot(found),
            drained_us: us(drained),
            paused_us: us(paused),
        })
    }
}

fn snapshot(found: Found) -> Snapshot {
    Snapshot {
        name: found.name,
        size_bytes: found.bytes,
        taken_ms: u64::try_from(found.taken.as_millis()).unwrap_or(u64::MAX),
    }
}

/// The disk held still, by us or by somebody else before; ours goes on when this
/// is dropped.
struct Held<'a>(Option<&'a Limits>);

impl<'a> Held<'a> {
    fn begin(limits: &'a Limits, patience: Duration) -> Result<Self, String> {
        if limits.held().is_some() {
            return Ok(Self(None));
        }
        limits
            .hold(HOLD, patience)
            .map_err(|error| format!("snapshot: {error}"))?;
        Ok(Self(Some(limits)))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(limits) = self.0 {
            limits.let_go();
        }
    }
}
