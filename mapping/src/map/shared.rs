//! What all handles of a map share: the table, and the writer's side under one lock.
//!
//! Readers only load atomics. Everybody who changes something (the filler, holds, advice) takes the
//! lock for microseconds; extents are never read from the file system under it.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use crate::error::Error;
use crate::map::config::Config;
use crate::map::held::Holds;
use crate::map::quiesce::Quiesce;
use crate::map::slab::{SlabBox, SlabRef};
use crate::map::table::{PINNED, Table, WANTED, part_of, windows_of};
use crate::map::wish::Wishes;
use crate::source::extent::{Kind, Packed};
use crate::sync::{Arc, AtomicPtr, AtomicU64, Mutex, MutexGuard, Ordering, lock};

pub(crate) struct Shared {
    /// The writer's, for readers. Replaced under the lock only, freed after a grace period.
    table: AtomicPtr<Table>,
    pub(crate) quiesce: Arc<Quiesce>,
    pub(crate) wishes: Wishes,
    /// Counts invalidations: holds, forgets, resizes, disabling.
    pub(crate) epoch: AtomicU64,
    pub(crate) config: Config,
    /// What stamps count from.
    pub(crate) began: Instant,
    writer: Mutex<Writer>,
}

/// A load that has begun to read extents and not ended.
pub(crate) struct Load {
    pub(crate) id: u64,
    pub(crate) range: Range<u64>,
    /// Ranges whose hold ended, or that were forgotten, since the load began: what it read there may be old.
    pub(crate) stale: Vec<Range<u64>>,
    pub(crate) cancelled: bool,
}

enum Garbage {
    Slab(#[allow(dead_code)] SlabBox),
    Table(#[allow(dead_code)] Arc<Table>),
}

/// The writer's side.
pub(crate) struct Writer {
    table: Arc<Table>,
    pub(crate) enabled: bool,
    pub(crate) loads: Vec<Load>,
    pub(crate) next_load: u64,
    pub(crate) holds: Holds,
    /// Windows the clock's hand goes over; those no longer loaded leave when the hand meets them.
    pub(crate) clock: Vec<usize>,
    pub(crate) hand: usize,
    /// Bytes of windows that may be evicted, and of pinned ones.
    pub(crate) evictable: u64,
    pub(crate) pinned: u64,
    /// Bytes promised to ranges that are being pinned right now.
    pub(crate) promised: u64,
    pub(crate) windows: u64,
    pub(crate) tally: [u64; Kind::COUNT],
    pub(crate) counts: Counts,
    pub(crate) scratch: Vec<Packed>,
    pub(crate) carved: Vec<Packed>,
    /// Parts of the table in which some window was loaded or pinned at some time: all others are zeros, and
    /// are not looked at, as they have no memory.
    touched: BTreeSet<usize>,
    /// Replaced since the last [`Shared::seal`].
    fresh: Vec<Garbage>,
    /// Replaced, and the number to wait for.
    retired: Vec<(u64, Garbage)>,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) loads: u64,
    pub(crate) load_errors: u64,
    pub(crate) unsettled: u64,
    pub(crate) evictions: u64,
    pub(crate) refused: u64,
}

impl Shared {
    /// # Errors
    /// [`Error::Memory`].
    pub(crate) fn new(size: u64, config: Config) -> Result<Shared, Error> {
        let table = Table::new(size, config.window.trailing_zeros()).ok_or(Error::Memory)?;
        let table = Arc::new(table);
        Ok(Shared {
            table: AtomicPtr::new(Arc::as_ptr(&table).cast_mut()),
            quiesce: Arc::new(Quiesce::new()),
            wishes: Wishes::new(config.queue),
            epoch: AtomicU64::new(0),
            config,
            began: Instant::now(),
            writer: Mutex::new(Writer {
                table,
                enabled: false,
                loads: Vec::new(),
                next_load: 0,
                holds: Holds::new(),
                clock: Vec::new(),
                hand: 0,
                evictable: 0,
                pinned: 0,
                promised: 0,
                windows: 0,
                tally: [0; Kind::COUNT],
                counts: Counts::default(),
                scratch: Vec::new(),
                carved: Vec::new(),
                fresh: Vec::new(),
                retired: Vec::new(),
                touched: BTreeSet::new(),
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Writer> {
        lock(&self.writer)
    }

    /// The table, for somebody whose reader is online.
    ///
    /// # Safety
    /// The caller's slot is online and has no quiescent point during `'a`.
    #[inline]
    pub(crate) unsafe fn table_of_reader<'a>(&self) -> &'a Table {
        // SAFETY: the pointer is never null; a replaced table is freed only after every online reader
        // has been quiescent.
        unsafe { &*self.table.load(Ordering::Acquire) }
    }

    /// The table, for somebody who holds the lock.
    pub(crate) fn table(&self, writer: &Writer) -> Arc<Table> {
        Arc::clone(&writer.table)
    }

    /// Shows `f` the window's slab, if it is loaded. Called with the lock held, under which slabs are freed.
    pub(crate) fn with_slab<R>(
        &self,
        table: &Table,
        window: usize,
        f: impl FnOnce(SlabRef<'_>) -> R,
    ) -> Option<R> {
        let raw = std::ptr::NonNull::new(table.window(window).load(Ordering::Acquire))?;
        // SAFETY: slabs leave the table and are freed under the lock only, which the caller holds.
        Some(f(unsafe { SlabRef::new(raw) }))
    }

    /// Puts `new` (or nothing) in the window's place and keeps the accounts.
    pub(crate) fn replace(&self, writer: &mut Writer, window: usize, new: Option<SlabBox>) {
        let table = self.table(writer);
        let pinned = table.state(window).load(Ordering::Relaxed) & PINNED != 0;
        let end = table.window_end(window);
        if let Some(slab) = &new {
            let slab = slab.view();
            writer.touch(window);
            writer.charge(slab.bytes(), pinned);
            writer.windows += 1;
            for (sum, one) in writer.tally.iter_mut().zip(slab.tally(end)) {
                *sum += one;
            }
        }
        let raw = new.map_or(std::ptr::null_mut(), SlabBox::into_raw);
        let old = table.window(window).swap(raw, Ordering::AcqRel);
        // SAFETY: what is in the table came from `into_raw`; taken out, it is ours alone to free, which
        // waits for a grace period.
        if let Some(old) = unsafe { SlabBox::from_raw(old) } {
            let slab = old.view();
            writer.discharge(slab.bytes(), pinned);
            writer.windows -= 1;
            for (sum, one) in writer.tally.iter_mut().zip(slab.tally(end)) {
                *sum -= one;
            }
            writer.fresh.push(Garbage::Slab(old));
        }
    }

    /// Calls `f` with each window that may be loaded or pinned, in order. It puts nothing in the table.
    pub(crate) fn for_touched(&self, writer: &mut Writer, mut f: impl FnMut(&mut Writer, usize)) {
        let len = self.table(writer).len();
        let touched = std::mem::take(&mut writer.touched);
        for window in touched.iter().flat_map(|&part| windows_of(part, len)) {
            f(writer, window);
        }
        writer.touched = touched;
    }

    /// Puts a table of `size` bytes in place, with the windows that lie wholly in both.
    ///
    /// # Errors
    /// [`Error::Memory`]; nothing is changed then.
    pub(crate) fn replace_table(&self, writer: &mut Writer, size: u64) -> Result<(), Error> {
        let old = self.table(writer);
        let new = Arc::new(Table::new(size, old.shift).ok_or(Error::Memory)?);
        let common = old.size.min(size) >> old.shift;
        let common = usize::try_from(common).unwrap_or(usize::MAX);
        self.for_touched(writer, |writer, window| {
            if window >= common {
                self.replace(writer, window, None);
                return;
            }
            let state = old.state(window).load(Ordering::Relaxed);
            // A wish being made in the old table may be forgotten: it is made again. A bit that nobody
            // clears would not be.
            new.state(window).store(state & !WANTED, Ordering::Relaxed);
            let slab = old
                .window(window)
                .swap(std::ptr::null_mut(), Ordering::AcqRel);
            new.window(window).store(slab, Ordering::Release);
        });
        writer.clock.retain(|&window| window < common);
        self.table
            .store(Arc::as_ptr(&new).cast_mut(), Ordering::Release);
        // Out of everybody's reach but for readers, for whom the garbage waits. Its windows are null
        // now.
        let replaced = std::mem::replace(&mut writer.table, new);
        writer.fresh.push(Garbage::Table(replaced));
        Ok(())
    }

    /// Ends a change: the number readers must announce until nobody uses what was replaced, and frees
    /// what is due.
    pub(crate) fn seal(&self, writer: &mut Writer) -> u64 {
        let target = if writer.fresh.is_empty() {
            self.quiesce.current()
        } else {
            let target = self.quiesce.raise();
            let fresh = std::mem::take(&mut writer.fresh);
            writer
                .retired
                .extend(fresh.into_iter().map(|garbage| (target, garbage)));
            target
        };
        self.reclaim(writer);
        target
    }

    /// Frees what no reader uses any more; how much is left.
    pub(crate) fn reclaim(&self, writer: &mut Writer) -> usize {
        writer
            .retired
            .retain(|(target, _)| !self.quiesce.passed(*target));
        writer.retired.len()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut writer = self.lock();
        let touched = std::mem::take(&mut writer.touched);
        // The last handle is gone, so nobody else has the table.
        let Some(table) = Arc::get_mut(&mut writer.table) else {
            return;
        };
        let len = table.len();
        for window in touched.iter().flat_map(|&part| windows_of(part, len)) {
            table.free(window);
        }
    }
}

impl Writer {
    /// Something of the window is in the table from now on.
    pub(crate) fn touch(&mut self, window: usize) {
        self.touched.insert(part_of(window));
    }

    pub(crate) fn charge(&mut self, bytes: u64, pinned: bool) {
        *(if pinned {
            &mut self.pinned
        } else {
            &mut self.evictable
        }) += bytes;
    }

    pub(crate) fn discharge(&mut self, bytes: u64, pinned: bool) {
        *(if pinned {
            &mut self.pinned
        } else {
            &mut self.evictable
        }) -= bytes;
    }

    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }
}
