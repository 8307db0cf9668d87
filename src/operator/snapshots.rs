//! Snapshots: the image as it is at one moment, while a guest uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use vhost_backend::Limits;

use crate::disk::Disk;
use crate::disk::cloning::Cloning;
use crate::disk::snapshots::cloner::{Cloner, Pieces};
use crate::disk::snapshots::{Found, Part, SnapshotError, SnapshotFolder};
use crate::host::feed::Feed;
use crate::protocol::done::{
    Snapshot, SnapshotCancelled, SnapshotInMaking, SnapshotList, SnapshotTaken,
};
use crate::protocol::events::Event;

/// The disk is held for no longer, whatever the file system does.
const HOLD: Duration = Duration::from_secs(60);

/// Where snapshots go, if they go anywhere.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: Option<SnapshotFolder>,
    /// One at a time.
    taking: Mutex<()>,
    /// The one that is being made, if there is one.
    making: Mutex<Option<Making>>,
}

#[derive(Debug)]
struct Making {
    name: String,
    since: Instant,
    cloning: Arc<Cloning>,
}

/// What a snapshot is taken of, and who is told.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub disk: &'a Disk,
    pub limits: &'a Arc<Limits>,
    pub feed: &'a Feed<Event>,
    /// Held while the length of the image changes.
    pub resizing: &'a Mutex<()>,
}

/// How requests waited at the moment of a snapshot.
struct Pause {
    /// The moment, since 1970.
    at: Duration,
    drained: Duration,
    paused: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Snapshots {
    /// Into the folder of `--snapshot-dir`.
    pub(crate) fn new(folder: Option<SnapshotFolder>) -> Self {
        Self {
            folder,
            taking: Mutex::new(()),
            making: Mutex::new(None),
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
            making: self.making(),
        })
    }

    /// The one that is being made, once its moment is over.
    pub(super) fn making(&self) -> Option<SnapshotInMaking> {
        let making = lock(&self.making);
        making.as_ref().map(|one| SnapshotInMaking {
            name: one.name.clone(),
            size_bytes: one.cloning.pending.size(),
            cloned_bytes: one.cloning.pending.passed(),
            waited_requests: one.cloning.waited(),
            since_ms: u64::try_from(one.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Gives up the one that is being made.
    ///
    /// # Errors
    /// There is none, or it is whole already.
    pub(super) fn cancel(&self, disk: &Disk) -> Result<SnapshotCancelled, String> {
        let name = lock(&self.making).as_ref().map(|one| one.name.clone());
        match name {
            Some(name) if disk.clones().give_up("an operator has cancelled it") => {
                Ok(SnapshotCancelled { name })
            }
            _ => Err("snapshot-cancel: none is being made that is not whole already".to_owned()),
        }
    }

    /// Takes one: requests wait until those in flight have ended, and then only
    /// those wait that change what is not cloned yet. Where the disk is held
    /// still already it stays so.
    ///
    /// # Errors
    /// Requests in flight have not ended within `patience`, the file system
    /// refuses, or it is given up; then there is no snapshot, and the disk goes
    /// on.
    pub(super) fn take(
        &self,
        name: &str,
        of: Of<'_>,
        patience: Duration,
    ) -> Result<SnapshotTaken, String> {
        // It guards no data, so a panic elsewhere has left nothing half done.
        let _one = match self.taking.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err("snapshot: one is being made: wait for it, or cancel it".to_owned());
            }
        };
        let taken = self.take_one(name, of, patience);
        *lock(&self.making) = None;
        of.disk.clones().end();
        match &taken {
            Ok(taken) => of.feed.tell(Event::SnapshotTaken {
                name: taken.snapshot.name.clone(),
            }),
            Err(reason) => of.feed.tell(Event::SnapshotFailed {
                name: name.to_owned(),
                reason: reason.clone(),
            }),
        }
        taken
    }

    fn take_one(
        &self,
        name: &str,
        of: Of<'_>,
        patience: Duration,
    ) -> Result<SnapshotTaken, String> {
        let failed = |error: SnapshotError| error.to_string();
        let begun = Instant::now();
        let part = self.folder()?.begin(name).map_err(failed)?;
        let (pause, cloning) = self.pause(&part, of, patience)?;
        let mut pieces = Pieces::default();
        if let Some(cloning) = &cloning {
            of.feed.tell(Event::SnapshotBegun {
                name: name.to_owned(),
            });
            pieces = cloner(&part, of.disk, cloning)
                .clone_rest()
                .map_err(failed)?;
            of.disk.clones().end();
        }
        let found = part.finish(pause.at).map_err(failed)?;
        Ok(SnapshotTaken {
            snapshot: snapshot(found),
            drained_us: us(pause.drained),
            paused_us: us(pause.paused),
            took_us: us(begun.elapsed()),
            waited_requests: cloning.as_ref().map_or(0, |cloning| cloning.waited()),
            longest_wait_us: cloning.map_or(0, |cloning| us(cloning.longest_wait())),
            demanded_clones: pieces.demanded,
            other_clones: pieces.ahead,
        })
    }

    /// The moment of the snapshot. What is returned besides is still to be
    /// cloned; nothing is where nobody keeps others from writing the image: then
    /// all of it is cloned at once, while no request is under way.
    fn pause(
        &self,
        part: &Part<'_>,
        of: Of<'_>,
        patience: Duration,
    ) -> Result<(Pause, Option<Arc<Cloning>>), String> {
        let failed = |error: SnapshotError| error.to_string();
        let disk = of.disk;
        // The image keeps its length until its end is cloned.
        let _length = lock(of.resizing);
        let begun = Instant::now();
        let held = Held::begin(of.limits, patience)?;
        let drained = begun.elapsed();
        let at = UNIX_EPOCH.elapsed().unwrap_or_default();
        let cloning = if disk.is_ours() {
            let bytes = disk
                .image_bytes()
                .map_err(|error| failed(part.refused(error)))?;
            let cloning = disk.clones().begin(bytes);
            *lock(&self.making) = Some(Making {
                name: part.name().to_owned(),
                since: begun,
                cloning: Arc::clone(&cloning),
            });
            cloner(part, disk, &cloning).clone_end().map_err(failed)?;
            if !disk.is_ours() {
                // Whoever takes it over did not find what there is to give up.
                disk.give_clone_up("its guest has gone");
            }
            Some(cloning)
        } else {
            // What the map knows of places that are the image's own is not so
            // any more: it is loaded anew.
            let _away = disk.by_file();
            part.clone_of(disk.image()).map_err(failed)?;
            None
        };
        if of.limits.held().is_none() && cloning.is_some() {
            return Err("snapshot: the disk went on before it was begun: try again".to_owned());
        }
        drop(held);
        let pause = Pause {
            at,
            drained,
            paused: begun.elapsed(),
        };
        Ok((pause, cloning))
    }
}

fn cloner<'a>(part: &'a Part<'a>, disk: &'a Disk, cloning: &'a Cloning) -> Cloner<'a> {
    Cloner {
        part,
        image: disk.image(),
        map: disk.map_to_forget(),
        clones: disk.clones(),
        cloning,
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
struct Held<'a>(Option<(&'a Limits, u64)>);

impl<'a> Held<'a> {
    fn begin(limits: &'a Limits, patience: Duration) -> Result<Self, String> {
        if limits.held().is_some() {
            return Ok(Self(None));
        }
        let number = limits
            .hold(HOLD, patience)
            .map_err(|error| format!("snapshot: {error}"))?;
        Ok(Self(Some((limits, number))))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some((limits, number)) = self.0 {
            limits.let_go_of(number);
        }
    }
}
