//! Lookups.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::error::Error;
use crate::map::shared::Shared;
use crate::map::slab::{AHEAD, Place, REFERENCED, SlabRef, USE, USED, WARM, find};
use crate::map::table::Table;
use crate::map::wish::Wish;
use crate::source::extent::{Extent, Kind, Reason};
use crate::sync::{Arc, Ordering};

/// The answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The extent that contains the offset, as far as it reaches within its window.
    Found(Extent),
    /// The window is not loaded; the filler has been asked for it.
    Missing,
}

/// Looks offsets up for one thread, without locks.
///
/// What it found may be acted on until the next [`Reader::quiescent`] or [`Reader::offline`] of this
/// reader: those tell the map that nothing looked up before is going to be used any more (raw I/O that
/// has been submitted counts as used by the caller, who tracks it). Call one of them regularly, say
/// once per turn of an event loop, and `offline` before sleeping: a reader that does neither keeps every
/// [`Fence`](crate::Fence) from passing and replaced memory from being freed.
pub struct Reader {
    shared: Arc<Shared>,
    slot: usize,
    online: bool,
    /// The number last announced.
    seen: u64,
    /// Where the last lookup found something; only ever a hint.
    window: usize,
    index: usize,
    /// The last answer, which is good as long as nothing was replaced since this number was read.
    last: Extent,
    as_of: u64,
    hits: u64,
    misses: u64,
    changing: u64,
    /// Fences go on waiting for it when it is gone.
    abandoned: bool,
}

/// A moment in the life of a [`Reader`]; see [`Reader::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("slot", &self.slot)
            .field("online", &self.online)
            .finish()
    }
}

impl Reader {
    pub(crate) fn new(shared: &Arc<Shared>) -> Result<Reader, Error> {
        let slot = shared.quiesce.register().ok_or(Error::TooManyReaders)?;
        let counts = shared.quiesce.slot(slot);
        let (hits, misses, changing) = (
            counts.hits.load(Ordering::Relaxed),
            counts.misses.load(Ordering::Relaxed),
            counts.changing.load(Ordering::Relaxed),
        );
        Ok(Reader {
            shared: Arc::clone(shared),
            slot,
            online: false,
            seen: 0,
            window: usize::MAX,
            index: 0,
            last: Extent {
                start: 0,
                len: 0,
                disk: 0,
                kind: Kind::Hole,
            },
            as_of: 0,
            hits,
            misses,
            changing,
            abandoned: false,
        })
    }

    /// When this is dropped no fence passes any more that would have had to wait for it: what was looked up may be in
    /// use for ever.
    #[cfg(not(loom))]
    pub(crate) fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// What is known about the byte at `offset`. Never blocks, never allocates; goes online if need be.
    ///
    /// Offsets beyond the file are [`Reason::BeyondEnd`].
    #[inline]
    pub fn lookup(&mut self, offset: u64) -> Lookup {
        // Whoever replaces something raises the number before anybody is told that it is done, so this
        // is never older than what the table would tell.
        if offset.wrapping_sub(self.last.start) < self.last.len
            && self.online
            && self.shared.quiesce.now() == self.as_of
        {
            self.hits += 1;
            return Lookup::Found(self.last);
        }
        self.search(offset)
    }

    #[inline]
    fn search(&mut self, offset: u64) -> Lookup {
        if !self.online {
            self.go_online();
        }
        let as_of = self.shared.quiesce.now();
        // SAFETY: this reader is online, and the reference does not leave this call, during which it
        // has no quiescent point.
        let table = unsafe { self.shared.table_of_reader() };
        if offset >= table.size {
            return Lookup::Found(beyond(table.size));
        }
        let window = table.window_of(offset);
        let Some(raw) = NonNull::new(table.window(window).load(Ordering::Acquire)) else {
            return self.missing(table, window);
        };
        // SAFETY: as above: a slab taken out of the table is freed only after this reader's next
        // quiescent point.
        let slab = unsafe { SlabRef::new(raw) };
        let flags = slab.flags().load(Ordering::Relaxed);
        if flags & (REFERENCED | WARM | AHEAD) != (REFERENCED | WARM) {
            self.touch(table, slab, window, flags);
        }
        let base = table.base(window);
        let at = low32(offset - base);
        let entries = slab.entries();
        let hint = if window == self.window {
            self.index
        } else {
            guess(entries.len(), at, table.shift)
        };
        self.window = window;
        match find(entries, at, hint) {
            Place::In(index) => {
                self.index = index;
                let extent = entries[index].unpack(base);
                if extent.kind == Kind::Opaque(Reason::Changing) {
                    self.wait_for(table, window);
                } else {
                    if flags & USED != USED && extent.kind.on_disk() {
                        count_use(slab);
                    }
                    self.hits += 1;
                    (self.last, self.as_of) = (extent, as_of);
                }
                Lookup::Found(extent)
            }
            Place::Before(index) => {
                self.index = index.saturating_sub(1);
                self.hits += 1;
                let start = index
                    .checked_sub(1)
                    .map_or(0, |before| entries[before].end());
                let end = entries
                    .get(index)
                    .map_or_else(|| table.window_end(window), |next| next.start());
                let len = u64::from(end - start);
                self.last = Extent {
                    start: base + u64::from(start),
                    len,
                    disk: 0,
                    kind: Kind::Hole,
                };
                self.as_of = as_of;
                Lookup::Found(self.last)
            }
        }
    }

    /// A quiescent point: nothing looked up before is going to be used. About a nanosecond unless
    /// something was replaced in the meantime. A reader that is offline stays so.
    #[inline]
    pub fn quiescent(&mut self) {
        if self.online {
            self.publish_counts();
            self.seen = self.shared.quiesce.announce(self.slot, self.seen);
        }
    }

    /// Names this moment, for a reader whose users go on using what they looked up after they have
    /// returned to their event loop (raw I/O in flight, say): once nothing looked up before the mark is
    /// used any more, [`Reader::quiescent_since`] tells so, while what was looked up after it may still be
    /// in use. A fence then covers the I/O as well. Marks of an unchanged map are equal. The reader goes
    /// online.
    #[inline]
    pub fn mark(&mut self) -> Mark {
        if !self.online {
            self.go_online();
        }
        Mark(self.shared.quiesce.now())
    }

    /// Nothing looked up before `mark`, made by this reader, is going to be used. Marks are given in the
    /// order in which they were made.
    pub fn quiescent_since(&mut self, mark: Mark) {
        if self.online {
            self.publish_counts();
            self.seen =
                self.shared
                    .quiesce
                    .announce_as_of(self.slot, self.seen, mark.0.max(self.seen));
        }
    }

    /// As [`Reader::quiescent`], and holds nothing back until the next lookup: for a thread about to sleep.
    pub fn offline(&mut self) {
        if self.online {
            self.publish_counts();
            self.online = false;
            self.seen = 0;
            self.shared.quiesce.offline(self.slot);
        }
    }

    #[cold]
    fn go_online(&mut self) {
        self.online = true;
        self.seen = self.shared.quiesce.announce(self.slot, 0);
    }

    fn publish_counts(&self) {
        let slot = self.shared.quiesce.slot(self.slot);
        slot.hits.store(self.hits, Ordering::Relaxed);
        slot.misses.store(self.misses, Ordering::Relaxed);
        slot.changing.store(self.changing, Ordering::Relaxed);
    }

    #[cold]
    fn touch(&self, table: &Table, slab: SlabRef<'_>, window: usize, flags: u8) {
        slab.flags()
            .store(flags & !AHEAD | REFERENCED | WARM, Ordering::Relaxed);
        if flags & AHEAD != 0 {
            self.shared.wishes.ask(
                table,
                Wish {
                    window,
                    ahead: true,
                },
            );
        }
    }

    #[cold]
    fn missing(&mut self, table: &Table, window: usize) -> Lookup {
        self.misses += 1;
        self.shared.wishes.ask(
            table,
            Wish {
                window,
                ahead: false,
            },
        );
        Lookup::Missing
    }

    #[cold]
    fn wait_for(&mut self, table: &Table, window: usize) {
        self.changing += 1;
        self.shared.wishes.ask(
            table,
            Wish {
                window,
                ahead: false,
            },
        );
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.publish_counts();
        if !self.abandoned {
            self.shared.quiesce.unregister(self.slot);
        }
    }
}

/// Only a hint: of two readers at a time one may count for both. Once it is full nothing is stored any more, so that
/// readers do not disturb each other.
#[cold]
fn count_use(slab: SlabRef<'_>) {
    let flags = slab.flags().load(Ordering::Relaxed);
    if flags & USED != USED {
        slab.flags().store(flags + USE, Ordering::Relaxed);
    }
}

fn beyond(size: u64) -> Extent {
    Extent {
        start: size,
        len: u64::MAX - size,
        disk: 0,
        kind: Kind::Opaque(Reason::BeyondEnd),
    }
}

/// Where among evenly spread entries `at` would be: right at once for the worst fragmented files.
#[inline]
fn guess(count: usize, at: u32, shift: u32) -> usize {
    usize::try_from((count as u64 * u64::from(at)) >> shift).unwrap_or(0)
}

/// An offset within a window, which is at most 1 GiB.
#[inline]
#[allow(clippy::cast_possible_truncation)]
fn low32(within: u64) -> u32 {
    within as u32
}
