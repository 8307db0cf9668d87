//! Taking ranges of the map away while they change.

use std::ops::Range;

use crate::error::Error;
use crate::map::load::Style;
use crate::map::quiesce::Fence;
use crate::map::shared::{Shared, Writer};
use crate::map::slab::SlabBox;
use crate::map::table::SPOILT;
use crate::source::extent::carve;
use crate::sync::{Arc, Ordering};

/// A range that is being changed; see [`Map::hold`](crate::Map::hold). Dropping it releases the range.
///
/// After the release, lookups there go on finding [`Reason::Changing`](crate::Reason::Changing) until the
/// filler has read the window again, which it does when somebody asks and no hold has ended there for
/// [`Config::quiet`](crate::Config::quiet). A window that is *being filled*, in which holes and unwritten extents
/// were held several times in a row, is not kept at all until that has ended: a thousand first writes cost one read.
#[must_use = "dropping a hold releases its range"]
pub struct Hold {
    shared: Arc<Shared>,
    range: Range<u64>,
    target: u64,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Hold {
    pub(crate) fn new(shared: &Arc<Shared>, range: Range<u64>) -> Result<Hold, Error> {
        let mut writer = shared.lock();
        let range = shared.widen(&writer, &range)?;
        if let Some(other) = writer.holds.first_over(&range) {
            return Err(Error::Overlap(other));
        }
        writer.holds.add(range.clone());
        shared.take_away(&mut writer, &range);
        let target = shared.seal(&mut writer);
        drop(writer);
        Ok(Hold {
            shared: Arc::clone(shared),
            range,
            target,
        })
    }

    /// The bytes held: the range asked for, widened to [`Config::grain`](crate::Config::grain), but not
    /// beyond the file.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Passes once no reader acts on an extent of the range that it looked up before it was held.
    /// Passed from the start if nothing was loaded there.
    pub fn fence(&self) -> Fence {
        Fence::new(&self.shared.quiesce, self.target)
    }

    /// Holds all from the smaller start to the larger end of the present range and `range`; a fence made
    /// after this covers all of it.
    ///
    /// # Errors
    /// [`Error::Overlap`] and [`Error::Range`] as for [`Map::hold`](crate::Map::hold); the hold is then unchanged.
    pub fn extend(&mut self, range: Range<u64>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let mut writer = shared.lock();
        let asked = shared.widen(&writer, &range)?;
        let whole = self.range.start.min(asked.start)..self.range.end.max(asked.end);
        for part in [whole.start..self.range.start, self.range.end..whole.end] {
            if let Some(other) = (!part.is_empty())
                .then(|| writer.holds.first_over(&part))
                .flatten()
            {
                return Err(Error::Overlap(other));
            }
        }
        if whole != self.range {
            writer.holds.remove(&self.range);
            writer.holds.add(whole.clone());
            shared.take_away(&mut writer, &whole);
            self.target = shared.seal(&mut writer).max(self.target);
            self.range = whole;
        }
        Ok(())
    }

    /// Lets the range be loaded again. The same as dropping the hold.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut writer = self.shared.lock();
        writer.holds.remove(&self.range);
        self.shared.spoil_loads(&mut writer, &self.range);
        self.shared.note_release(&writer, &self.range);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// The range, checked against the file and widened to the grain.
    fn widen(&self, writer: &Writer, range: &Range<u64>) -> Result<Range<u64>, Error> {
        let size = self.table(writer).size;
        if range.is_empty() || range.end > size {
            return Err(Error::Range(range.clone()));
        }
        let mask = self.config.grain - 1;
        // No overflow: sizes are far below 2^63.
        Ok(range.start & !mask..((range.end + mask) & !mask).min(size))
    }

    /// Makes lookups in `range` find nothing to act on: windows wholly inside are unloaded, of others just
    /// the range is carved out, unless they are being filled.
    fn take_away(&self, writer: &mut Writer, range: &Range<u64>) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let table = self.table(writer);
        for window in self.windows_over(writer, range) {
            let inside = self.inside(writer, window, range);
            let whole = inside == (0..table.window_end(window));
            let mut carved = std::mem::take(&mut writer.carved);
            let loaded = self.with_slab(&table, window, |slab| {
                let keep = self.spoils(&table, window, slab, &inside).keep;
                let keep = keep.filter(|_| !whole);
                if keep.is_some() {
                    carve(slab.entries(), inside, &mut carved);
                }
                keep
            });
            if let Some(keep) = loaded {
                // Short of memory, the whole window goes: that is always safe.
                let new = keep.and_then(|(flags, stamp)| SlabBox::new(&carved, flags, stamp));
                self.replace(writer, window, new);
            }
            writer.carved = carved;
        }
        // What was carved may have grown.
        self.make_room(writer, 0, Style::Wanted);
    }

    /// Loads under way must not publish what they read in `range`.
    pub(crate) fn spoil_loads(&self, writer: &mut Writer, range: &Range<u64>) {
        for load in &mut writer.loads {
            let overlap = load.range.start.max(range.start)..load.range.end.min(range.end);
            if overlap.is_empty() {
                continue;
            }
            match load
                .stale
                .iter_mut()
                .find(|stale| stale.start <= overlap.end && overlap.start <= stale.end)
            {
                Some(stale) => *stale = stale.start.min(overlap.start)..stale.end.max(overlap.end),
                None => load.stale.push(overlap),
            }
        }
    }

    /// Remembers for the windows at both ends (those between are not loaded) that a hold has ended.
    fn note_release(&self, writer: &Writer, range: &Range<u64>) {
        let table = self.table(writer);
        let windows = self.windows_over(writer, range);
        for window in [windows.start, windows.end.saturating_sub(1)] {
            if windows.contains(&window)
                && table.state(window).load(Ordering::Relaxed) & SPOILT == 0
            {
                table.state(window).fetch_or(SPOILT, Ordering::Relaxed);
            }
        }
    }

    /// The windows that overlap `range`.
    pub(crate) fn windows_over(&self, writer: &Writer, range: &Range<u64>) -> Range<usize> {
        let table = self.table(writer);
        let end = range.end.min(table.size);
        if range.start >= end {
            return 0..0;
        }
        table.window_of(range.start)..table.window_of(end - 1) + 1
    }

    /// The part of `range` in the window, relative to it; empty if there is none.
    pub(crate) fn inside(&self, writer: &Writer, window: usize, range: &Range<u64>) -> Range<u32> {
        let table = self.table(writer);
        let (base, end) = (table.base(window), table.window_end(window));
        let clamp = |at: u64| {
            u32::try_from(at.saturating_sub(base))
                .unwrap_or(u32::MAX)
                .min(end)
        };
        clamp(range.start)..clamp(range.end)
    }

    pub(crate) fn forget(&self, range: Range<u64>) -> Fence {
        let mut writer = self.lock();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let windows = self.windows_over(&writer, &range);
        let table = self.table(&writer);
        // Whole windows here as well: a cut anywhere else would leave extents that end within a block.
        let whole = table.base(windows.start)..table.base(windows.end).min(table.size);
        self.spoil_loads(&mut writer, &whole);
        for window in windows {
            self.replace(&mut writer, window, None);
        }
        Fence::new(&self.quiesce, self.seal(&mut writer))
    }

    pub(crate) fn disable(&self) -> Fence {
        let mut writer = self.lock();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        writer.enabled = false;
        for load in &mut writer.loads {
            load.cancelled = true;
        }
        self.for_touched(&mut writer, |writer, window| {
            self.replace(writer, window, None);
        });
        Fence::new(&self.quiesce, self.seal(&mut writer))
    }

    /// # Errors
    /// [`Error::Memory`].
    pub(crate) fn resize(&self, size: u64) -> Result<Fence, Error> {
        let mut writer = self.lock();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        // What they read is clamped to the old size.
        for load in &mut writer.loads {
            load.cancelled = true;
        }
        self.replace_table(&mut writer, size)?;
        Ok(Fence::new(&self.quiesce, self.seal(&mut writer)))
    }
}
