//! The map: its counters and whole-map operations.

pub(crate) mod config;
pub(crate) mod filling;
pub(crate) mod held;
pub(crate) mod hold;
pub(crate) mod load;
pub(crate) mod mend;
pub(crate) mod quiesce;
pub(crate) mod reader;
pub(crate) mod residency;
pub(crate) mod shared;
pub(crate) mod slab;
pub(crate) mod table;
pub(crate) mod wish;

use std::ops::Range;
use std::time::{Duration, Instant};

use self::config::Config;
use self::hold::Hold;
use self::load::Style;
use self::quiesce::{Fence, Slot};
use self::reader::Reader;
use self::shared::Shared;
use crate::error::Error;
use crate::source::ExtentSource;
use crate::source::extent::{DISK_LIMIT, Kind};
use crate::sync::{Arc, AtomicU64, Ordering};

/// A lazily built map from the offsets of a file to offsets of its disk.
///
/// A cheap handle: clones are the same map. Lookups go through a [`Reader`] per thread; loading through
/// a [`Filler`](crate::Filler) or [`Map::load`].
#[derive(Clone)]
pub struct Map {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("stats", &self.stats()).finish()
    }
}

/// Counters of a map since it was made, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Lookups answered with an extent that is not changing. Counted at quiescent points.
    pub hits: u64,
    /// Lookups in windows that were not loaded.
    pub misses: u64,
    /// Lookups in ranges that are held, or were and have not been read again.
    pub changing: u64,
    /// Windows loaded.
    pub loads: u64,
    /// Loads that failed because the file system could not tell its extents.
    pub load_errors: u64,
    /// Loads put off because the page cache held data of the window.
    pub unsettled: u64,
    /// Windows evicted to keep within the budget.
    pub evictions: u64,
    /// Windows not kept although loaded, because nothing could be evicted for them.
    pub refused: u64,
    /// Wishes dropped because the filler's queue was full or locked.
    pub wishes_dropped: u64,
    /// Bytes of extents in memory, pinned ones included, replaced ones not.
    pub resident_bytes: u64,
    /// Bytes of extents that are pinned.
    pub pinned_bytes: u64,
    /// Windows in memory.
    pub resident_windows: u64,
    /// Extents in memory by kind, in the order of [`Kind::index`]; an extent counts once per window.
    pub extents: [u64; Kind::COUNT],
    /// Bytes of the window table, untouched parts included.
    pub table_bytes: u64,
    /// Ranges held now.
    pub holds: u64,
    /// Replaced windows and tables that wait for readers to pass.
    pub retired: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Whether windows may be loaded.
    pub enabled: bool,
}

impl Map {
    /// A map of a file of `size` bytes with nothing loaded, which loads nothing until [`Map::enable`]: before that
    /// the caller has to see to it that the file's extents stay where they are. Costs an allocation of untouched
    /// zero pages.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration cannot work, [`Error::Memory`] if there is no room for the table.
    pub fn new(size: u64, config: Config) -> Result<Map, Error> {
        if !config.window.is_power_of_two() || !(64 << 10..=1 << 30).contains(&config.window) {
            return Err(Error::Config(
                "the window must be a power of two from 64 KiB to 1 GiB",
            ));
        }
        if !config.grain.is_power_of_two() || config.grain > config.window {
            return Err(Error::Config(
                "the grain must be a power of two and no larger than a window",
            ));
        }
        if size >= DISK_LIMIT {
            return Err(Error::Config(
                "the file is larger than a map can cover (64 PiB)",
            ));
        }
        Ok(Map {
            shared: Arc::new(Shared::new(size, config)?),
        })
    }

    /// A handle for lookups by one thread, offline until its first lookup.
    ///
    /// # Errors
    /// [`Error::TooManyReaders`].
    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::new(&self.shared)
    }

    /// Reads the extents of all windows that overlap `range` and are not loaded, or are only in part,
    /// and publishes them. Blocks for as long as the source does: not for the data path.
    ///
    /// Ranges held, or released during the load, are left as changing. Other windows may be evicted.
    ///
    /// # Errors
    /// [`Error::Source`] if the source failed, [`Error::Unsettled`] if a cache holds data of the range,
    /// [`Error::Disabled`] if loading is disabled or the map was resized meanwhile, [`Error::Budget`].
    pub fn load<S: ExtentSource + ?Sized>(
        &self,
        source: &S,
        range: Range<u64>,
    ) -> Result<(), Error> {
        let mut windows = {
            let writer = self.shared.lock();
            self.shared.windows_over(&writer, &range)
        };
        while let Some(missing) = self
            .shared
            .next_missing(&mut windows, usize::MAX, Style::Wanted)
        {
            self.shared.load_windows(source, missing, Style::Wanted)?;
        }
        Ok(())
    }

    /// Declares that `range` is going to change: from now on every lookup inside it (widened to
    /// [`Config::grain`]) finds [`Reason::Changing`](crate::Reason::Changing) or nothing, and no load, even one
    /// begun earlier, publishes anything there until the hold is released. The rest of each window stays usable.
    ///
    /// Readers may still act on extents they looked up before: see [`Hold::fence`]. Several ranges of one
    /// window can be held at a time. Takes a lock that is never held for long.
    ///
    /// # Errors
    /// [`Error::Overlap`] if part of the range is held already: the caller queues behind that hold;
    /// [`Error::Range`] for an empty range or one that reaches beyond the file.
    pub fn hold(&self, range: Range<u64>) -> Result<Hold, Error> {
        Hold::new(&self.shared, range)
    }

    /// As [`hold`](Self::hold), but waits for holds of others to be released, for this long at most.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub fn hold_within(&self, range: &Range<u64>, patience: Duration) -> Result<Hold, Error> {
        let until = Instant::now() + patience;
        loop {
            match self.hold(range.clone()) {
                Err(Error::Overlap(_)) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                result => return result,
            }
        }
    }

    /// Forgets whatever is known about the windows that overlap `range`; loads begun earlier do not
    /// publish there. Pinned windows too, which are loaded again by the filler.
    pub fn forget(&self, range: Range<u64>) -> Fence {
        self.shared.forget(range)
    }

    /// Forgets everything and loads nothing until [`Map::enable`]: the lease is broken. Once the fence has
    /// passed and the caller's raw I/O is done, the disk is not used any more.
    pub fn disable(&self) -> Fence {
        self.shared.disable()
    }

    /// Lets windows be loaded, at first or again after [`Map::disable`]. Held ranges stay held.
    pub fn enable(&self) {
        self.shared.lock().enabled = true;
        self.shared.wishes.poke();
    }

    /// A fence that every reader has to pass which is online now, whether anything was replaced or not:
    /// for users who tell their readers something else than extents, and need to know when all have heard.
    pub fn barrier(&self) -> Fence {
        Fence::new(&self.shared.quiesce, self.shared.quiesce.raise())
    }

    /// Whether windows may be loaded.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.shared.lock().enabled
    }

    /// The file now has `size` bytes. Windows that lie wholly within both sizes stay.
    ///
    /// Shrinking must come before the file is truncated (and its fence be waited for), growing after.
    ///
    /// # Errors
    /// [`Error::Config`] if the size is larger than a map can cover, [`Error::Memory`] if there is no room for the
    /// table.
    pub fn resize(&self, size: u64) -> Result<Fence, Error> {
        if size >= DISK_LIMIT {
            return Err(Error::Config(
                "the file is larger than a map can cover (64 PiB)",
            ));
        }
        self.shared.resize(size)
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        let writer = self.shared.lock();
        self.shared.table(&writer).size
    }

    /// Counts invalidations (holds, releases, forgets, resizes, disabling). Two lookups and whatever happened
    /// between them can be compared only if the epoch is the same before and after.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::SeqCst)
    }

    /// The configuration the map was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The counters. Takes the writers' lock for a moment; not for the data path.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut writer = self.shared.lock();
        self.shared.reclaim(&mut writer);
        let table = self.shared.table(&writer);
        let slots = self.shared.quiesce.used_slots();
        let sum = |f: fn(&Slot) -> &AtomicU64| {
            slots
                .iter()
                .map(|slot| f(slot).load(Ordering::Relaxed))
                .sum()
        };
        Stats {
            hits: sum(|slot| &slot.hits),
            misses: sum(|slot| &slot.misses),
            changing: sum(|slot| &slot.changing),
            loads: writer.counts.loads,
            load_errors: writer.counts.load_errors,
            unsettled: writer.counts.unsettled,
            evictions: writer.counts.evictions,
            refused: writer.counts.refused,
            wishes_dropped: self.shared.wishes.dropped(),
            resident_bytes: writer.evictable + writer.pinned,
            pinned_bytes: writer.pinned,
            resident_windows: writer.windows,
            extents: writer.tally,
            table_bytes: table.bytes(),
            holds: writer.holds.len() as u64,
            retired: writer.retired() as u64,
            size: table.size,
            enabled: writer.enabled,
        }
    }
}
