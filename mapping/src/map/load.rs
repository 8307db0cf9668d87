//! Reading extents from a source and publishing them, window by window.

use std::ops::{ControlFlow, Range};

use crate::error::Error;
use crate::map::filling::is_left_alone;
use crate::map::shared::{Load, Shared, Writer};
use crate::map::slab::{AHEAD, REFERENCED, SlabBox, bytes_for};
use crate::map::table::{CALM, IN_CLOCK, PINNED, SPOILT};
use crate::source::ExtentSource;
use crate::source::extent::{Extent, Kind, Packed, carve};
use crate::sync::Ordering;

/// How windows are to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Somebody waits for it: others may be evicted.
    Wanted,
    /// Ahead of a stream: others may be evicted; the first window is marked, so that its first use asks
    /// for more.
    Ahead,
    /// By advice: only as far as the budget reaches.
    Advised,
}

impl Shared {
    /// Takes the first run of windows to be loaded off `windows`, at most `most` of them. Ahead of streams those are
    /// left out that are being filled and were not seen quiet.
    pub(crate) fn next_missing(
        &self,
        windows: &mut Range<usize>,
        most: usize,
        style: Style,
    ) -> Option<Range<usize>> {
        let writer = self.lock();
        let table = self.table(&writer);
        windows.end = windows.end.min(table.len());
        let lacks = |&window: &usize| {
            self.with_slab(&table, window, |slab| slab.changing())
                .unwrap_or_else(|| style != Style::Ahead || !is_left_alone(table.state(window)))
        };
        let start = windows.clone().find(lacks);
        let Some(start) = start else {
            windows.start = windows.end;
            return None;
        };
        let limit = windows.end.min(start.saturating_add(most));
        let end = (start..limit)
            .find(|window| !lacks(window))
            .unwrap_or(limit);
        windows.start = end;
        Some(start..end)
    }

    /// Reads and publishes `windows`, whether loaded or not.
    pub(crate) fn load_windows<S: ExtentSource + ?Sized>(
        &self,
        source: &S,
        windows: Range<usize>,
        style: Style,
    ) -> Result<(), Error> {
        if windows.len() == 1 && self.mend(source, windows.start, style)? {
            return Ok(());
        }
        let load = self.begin_load(&windows)?;
        let range = load.range.clone();
        self.settle(source, &range)?;
        let mut publisher = Publisher {
            load: &load,
            window: windows.start,
            at: range.start,
            entries: Vec::new(),
            style,
            first: windows.start,
            result: Ok(()),
        };
        source
            .fill(range, &mut |extent| publisher.push(extent))
            .map_err(|error| self.failed(error))?;
        publisher.finish(windows.end)
    }

    /// No cache holds anything of the range.
    pub(crate) fn settle<S: ExtentSource + ?Sized>(
        &self,
        source: &S,
        range: &Range<u64>,
    ) -> Result<(), Error> {
        match source.settle(range.clone()) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.lock().counts.unsettled += 1;
                Err(Error::Unsettled(range.clone()))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(crate) fn failed(&self, error: std::io::Error) -> Error {
        self.lock().counts.load_errors += 1;
        Error::Source(error)
    }

    pub(crate) fn begin_load(&self, windows: &Range<usize>) -> Result<Loading<'_>, Error> {
        let mut writer = self.lock();
        if !writer.enabled {
            return Err(Error::Disabled);
        }
        let table = self.table(&writer);
        if windows.end > table.len() {
            return Err(Error::Disabled);
        }
        let range = table.base(windows.start)..table.base(windows.end).min(table.size);
        let shift = table.shift;
        let id = writer.next_load;
        writer.next_load += 1;
        writer.loads.push(Load {
            id,
            range: range.clone(),
            stale: Vec::new(),
            cancelled: false,
        });
        Ok(Loading {
            shared: self,
            id,
            range,
            shift,
        })
    }

    /// Puts what a load has read of a window in its place, but for what is held or may be stale.
    fn publish(
        &self,
        id: u64,
        window: usize,
        entries: &[Packed],
        style: Style,
        mark: bool,
    ) -> Result<(), Error> {
        let mut guard = self.lock();
        self.publish_in(&mut guard, id, window, entries, style, mark)
    }

    /// As [`publish`](Self::publish), with the lock held.
    pub(crate) fn publish_in(
        &self,
        writer: &mut Writer,
        id: u64,
        window: usize,
        entries: &[Packed],
        style: Style,
        mark: bool,
    ) -> Result<(), Error> {
        if writer
            .loads
            .iter()
            .any(|load| load.id == id && load.cancelled)
        {
            return Err(Error::Disabled);
        }
        let table = self.table(writer);
        let cuts = self.cuts(writer, id, window);
        if cuts.iter().any(|cut| *cut == (0..table.window_end(window))) {
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut writer.scratch);
        let mut carved = std::mem::take(&mut writer.carved);
        scratch.clear();
        scratch.extend_from_slice(entries);
        for cut in cuts {
            carve(&scratch, cut, &mut carved);
            std::mem::swap(&mut scratch, &mut carved);
        }
        let result = self.place(writer, window, &scratch, style, mark);
        writer.scratch = scratch;
        writer.carved = carved;
        self.seal(writer);
        result
    }

    fn place(
        &self,
        writer: &mut Writer,
        window: usize,
        entries: &[Packed],
        style: Style,
        mark: bool,
    ) -> Result<(), Error> {
        let table = self.table(writer);
        let state = table.state(window);
        let pinned = state.load(Ordering::Relaxed) & PINNED != 0;
        if !pinned && !self.make_room(writer, bytes_for(entries.len()), style) {
            writer.counts.refused += 1;
            return Err(Error::Budget);
        }
        let flags = if mark {
            AHEAD
        } else if style == Style::Wanted {
            REFERENCED
        } else {
            0
        };
        let slab = SlabBox::new(entries, flags, self.stamp()).ok_or(Error::Memory)?;
        self.replace(writer, window, Some(slab));
        writer.counts.loads += 1;
        state.fetch_and(!(SPOILT | CALM), Ordering::Relaxed);
        if !pinned && state.fetch_or(IN_CLOCK, Ordering::Relaxed) & IN_CLOCK == 0 {
            writer.clock.push(window);
        }
        Ok(())
    }

    /// What must not be published of a window, relative to it: ranges held, and ranges that stopped being
    /// held while the load was reading.
    fn cuts(&self, writer: &Writer, id: u64, window: usize) -> Vec<Range<u32>> {
        let table = self.table(writer);
        let base = table.base(window);
        let whole = base..base + u64::from(table.window_end(window));
        let held = writer.holds.over(&whole).cloned();
        let stale = writer
            .loads
            .iter()
            .filter(|load| load.id == id)
            .flat_map(|load| load.stale.iter().cloned());
        let inside = held
            .chain(stale)
            .map(|range| self.inside(writer, window, &range));
        inside.filter(|cut| !cut.is_empty()).collect()
    }

    /// Evicts by the clock until `bytes` more fit in the budget; whether they do.
    pub(crate) fn make_room(&self, writer: &mut Writer, bytes: u64, style: Style) -> bool {
        let fits = |writer: &Writer| writer.evictable + bytes <= self.config.budget;
        // Twice round: the first time clears the marks of what was used.
        let mut steps = writer.clock.len() * 2 + 1;
        while !fits(writer) && style != Style::Advised && steps > 0 && !writer.clock.is_empty() {
            steps -= 1;
            if writer.hand >= writer.clock.len() {
                writer.hand = 0;
            }
            let window = writer.clock[writer.hand];
            let table = self.table(writer);
            let pinned = table.state(window).load(Ordering::Relaxed) & PINNED != 0;
            let used = self.with_slab(&table, window, |slab| slab.take_referenced());
            match used {
                Some(true) if !pinned => writer.hand += 1,
                loaded => {
                    if loaded == Some(false) && !pinned {
                        self.replace(writer, window, None);
                        writer.counts.evictions += 1;
                    }
                    table.state(window).fetch_and(!IN_CLOCK, Ordering::Relaxed);
                    let hand = writer.hand;
                    writer.clock.swap_remove(hand);
                }
            }
        }
        fits(writer)
    }
}

/// A load under way; dropping it ends it.
pub(crate) struct Loading<'a> {
    shared: &'a Shared,
    pub(crate) id: u64,
    pub(crate) range: Range<u64>,
    shift: u32,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.lock().loads.retain(|load| load.id != id);
    }
}

/// Cuts the extents of a source into windows; publishes each window once the source is past it.
struct Publisher<'a> {
    load: &'a Loading<'a>,
    window: usize,
    /// Where the last extent ended.
    at: u64,
    entries: Vec<Packed>,
    style: Style,
    first: usize,
    result: Result<(), Error>,
}

impl Publisher<'_> {
    fn push(&mut self, extent: Extent) -> ControlFlow<()> {
        let Some(rest) = extent.clip(&(self.at..self.load.range.end)) else {
            return ControlFlow::Continue(());
        };
        let mut rest = rest.within_limit();
        self.at = rest.end();
        while let Some(part) = self.cut(&mut rest)? {
            if part.kind != Kind::Hole {
                let base = (self.window as u64) << self.load.shift;
                let relative = u32::try_from(part.start - base).unwrap_or(0);
                let len = u32::try_from(part.len).unwrap_or(0);
                self.entries
                    .push(Packed::new(relative, len, part.disk, part.kind));
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes the part of `rest` in its first window off, having published all windows before.
    fn cut(&mut self, rest: &mut Extent) -> ControlFlow<(), Option<Extent>> {
        if rest.len == 0 {
            return ControlFlow::Continue(None);
        }
        let window = usize::try_from(rest.start >> self.load.shift).unwrap_or(usize::MAX);
        self.publish_until(window)?;
        let end = rest.end().min((window as u64 + 1) << self.load.shift);
        let part = rest.clip(&(rest.start..end));
        let behind = rest.clip(&(end..u64::MAX));
        *rest = behind.unwrap_or(Extent { len: 0, ..*rest });
        ControlFlow::Continue(part)
    }

    fn publish_until(&mut self, end: usize) -> ControlFlow<()> {
        while self.window < end {
            let mark = self.style == Style::Ahead && self.window == self.first;
            let load = self.load;
            self.result =
                load.shared
                    .publish(load.id, self.window, &self.entries, self.style, mark);
            if self.result.is_err() {
                return ControlFlow::Break(());
            }
            self.entries.clear();
            self.window += 1;
        }
        ControlFlow::Continue(())
    }

    fn finish(mut self, end: usize) -> Result<(), Error> {
        if self.result.is_ok() {
            let _ = self.publish_until(end);
        }
        self.result
    }
}
