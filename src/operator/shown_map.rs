//! A map that no request looks up: it is loaded by advice where requests go by
//! the file, and shown. What it costs and how many extents there are is told as
//! of any other, and what the file system has had to read for it, it has in
//! memory from then on.
//!
//! Nobody has the image for himself meanwhile, so it says what was, and no
//! request may ever go by it.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mapping::{Config, Error, Fiemap, Map, Stats, SyncPolicy};

use crate::disk::Disk;

/// The map, once there was advice to load something.
#[derive(Debug, Default)]
pub(super) struct ShownMap {
    /// Held while it is loaded: one at a time is enough.
    loaded: Mutex<Option<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    map: Map,
    source: Fiemap,
}

impl ShownMap {
    fn lock(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads `range`, as far as the budget reaches; how often the file system
    /// was asked for it.
    ///
    /// # Errors
    /// As [`Map::populate_with`].
    pub(super) fn populate(&self, disk: &Disk, range: Range<u64>) -> Result<u64, Error> {
        let mut loaded = self.lock();
        let size = disk.capacity_bytes();
        let Loaded { map, source } = match &mut *loaded {
            Some(loaded) => loaded,
            none => none.insert(Loaded::new(disk)?),
        };
        if map.size() != size {
            // There are no readers to wait for.
            let _ = map.resize(size)?;
        }
        let before = source.calls();
        map.populate_with(source, range, &mut |_| ControlFlow::Continue(()))?;
        Ok(source.calls().saturating_sub(before))
    }

    /// Drops what lies wholly in `range`.
    ///
    /// # Errors
    /// As [`Map::dontneed`].
    pub(super) fn dontneed(&self, range: Range<u64>) -> Result<(), Error> {
        match &*self.lock() {
            Some(loaded) => loaded.map.dontneed(range).map(drop),
            None => Ok(()),
        }
    }

    /// Drops all of it: requests have a map of their own.
    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    /// What it holds, if it was ever loaded.
    pub(super) fn stats(&self) -> Option<Stats> {
        self.lock().as_ref().map(|loaded| loaded.map.stats())
    }

    /// The map itself, if it was ever loaded.
    pub(super) fn map(&self) -> Option<Map> {
        self.lock().as_ref().map(|loaded| loaded.map.clone())
    }
}

impl Loaded {
    fn new(disk: &Disk) -> Result<Self, Error> {
        let size = disk.capacity_bytes();
        let mut config = Config {
            budget: disk.map_budget(),
            ..Config::default()
        };
        let table = config.table_bytes(size);
        config.budget = config.budget.saturating_sub(table);
        if config.budget < table / 3 {
            return Err(Error::Budget);
        }
        let map = Map::new(size, config)?;
        map.enable();
        Ok(Self {
            map,
            source: Fiemap::new(Arc::clone(disk.image())).sync(SyncPolicy::Never),
        })
    }
}
