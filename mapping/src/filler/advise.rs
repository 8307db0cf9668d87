//! "badvise": what users may say about ranges of the map.

use std::ops::{ControlFlow, Range};

use crate::error::Error;
use crate::filler::Filler;
use crate::filler::stream::Access;
use crate::map::Map;
use crate::map::load::Style;
use crate::map::quiesce::Fence;
use crate::map::shared::Shared;
use crate::map::slab::bytes_for;
use crate::map::table::{IN_CLOCK, PINNED};
use crate::source::ExtentSource;
use crate::sync::{Ordering, lock};

/// Windows read between two calls of a progress callback.
const CHUNK: usize = 16;
/// Ranges with advice about their access that are remembered.
const MOST_RANGES: usize = 64;

/// How far a [`Filler::populate`] or [`Filler::pin`] has come, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes whose extents are loaded.
    pub done: u64,
    /// Bytes in all: the range, widened to whole windows.
    pub total: u64,
}

impl Map {
    /// Drops the extents of windows that lie wholly inside `range` and are not pinned. Never wrong, only
    /// slower: they are loaded again when used.
    ///
    /// # Errors
    /// [`Error::Range`] for an empty range.
    pub fn dontneed(&self, range: Range<u64>) -> Result<Fence, Error> {
        if range.is_empty() {
            return Err(Error::Range(range));
        }
        let mut writer = self.shared.lock();
        let windows = self.shared.windows_over(&writer, &range);
        for window in windows {
            let table = self.shared.table(&writer);
            let whole =
                self.shared.inside(&writer, window, &range) == (0..table.window_end(window));
            let pinned = table.state(window).load(Ordering::Relaxed) & PINNED != 0;
            if whole && !pinned {
                self.shared.replace(&mut writer, window, None);
            }
        }
        let target = self.shared.seal(&mut writer);
        Ok(Fence::new(&self.shared.quiesce, target))
    }

    /// As [`Filler::populate_with`], for a map without a filler.
    ///
    /// # Errors
    /// As [`Filler::populate_with`].
    pub fn populate_with<S: ExtentSource + ?Sized>(
        &self,
        source: &S,
        range: Range<u64>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let windows = self.windows(&range)?;
        self.populate_windows(source, windows, progress)
    }

    fn windows(&self, range: &Range<u64>) -> Result<Range<usize>, Error> {
        let writer = self.shared.lock();
        let windows = self.shared.windows_over(&writer, range);
        if windows.is_empty() {
            Err(Error::Range(range.clone()))
        } else {
            Ok(windows)
        }
    }

    fn populate_windows<S: ExtentSource + ?Sized>(
        &self,
        source: &S,
        windows: Range<usize>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let all = shared.bytes_of(&windows);
        let mut left = windows;
        while let Some(run) = shared.next_missing(&mut left, CHUNK, Style::Advised) {
            let done = shared.bytes_of(&run).end.saturating_sub(all.start);
            shared.load_windows(source, run, Style::Advised)?;
            if progress(Progress {
                done,
                total: all.end - all.start,
            })
            .is_break()
            {
                return Err(Error::Stopped);
            }
        }
        let total = all.end - all.start;
        let _ = progress(Progress { done: total, total });
        Ok(())
    }
}

impl<S: ExtentSource> Filler<S> {
    /// Asks for `range` to be loaded soon, as far as the budget reaches without evicting anything. Returns
    /// at once; `false` if too much advice waits already and this piece was dropped.
    ///
    /// # Errors
    /// [`Error::Range`] for a range that is empty or beyond the file.
    pub fn willneed(&self, range: Range<u64>) -> Result<bool, Error> {
        let windows = self.map.windows(&range)?;
        let taken = lock(&self.control.advice).add_job(windows);
        self.map.shared.wishes.poke();
        Ok(taken)
    }

    /// As [`Map::dontneed`].
    ///
    /// # Errors
    /// [`Error::Range`] for an empty range.
    pub fn dontneed(&self, range: Range<u64>) -> Result<Fence, Error> {
        self.map.dontneed(range)
    }

    /// Says how `range` will be used. The newest advice counts; the oldest of more than 64 is forgotten.
    ///
    /// # Errors
    /// [`Error::Range`] for a range that is empty or beyond the file.
    pub fn access(&self, range: Range<u64>, access: Access) -> Result<(), Error> {
        let windows = self.map.windows(&range)?;
        let mut advice = lock(&self.control.advice);
        advice
            .access
            .retain(|(old, _)| !(windows.start <= old.start && old.end <= windows.end));
        if advice.access.len() >= MOST_RANGES {
            advice.access.remove(0);
        }
        advice.access.push((windows, access));
        Ok(())
    }

    /// Loads `range` on the calling thread and returns when all of it is loaded, evicting nothing.
    ///
    /// Ranges held meanwhile stay changing; windows that are wholly held are left out.
    ///
    /// # Errors
    /// As [`Map::load`]; [`Error::Budget`] when the budget is used up.
    pub fn populate(&self, range: Range<u64>) -> Result<(), Error> {
        self.populate_with(range, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`populate`](Self::populate); `progress` is called after every few windows and may stop it.
    ///
    /// # Errors
    /// As [`populate`](Self::populate); [`Error::Stopped`].
    pub fn populate_with(
        &self,
        range: Range<u64>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let windows = self.map.windows(&range)?;
        self.map.populate_windows(&*self.source, windows, progress)
    }

    /// Loads `range` (widened to whole windows) and keeps it until [`Filler::unpin`], whatever the budget
    /// says. Its memory comes out of [`Config::pin_reserve`](crate::Config::pin_reserve): if that does not
    /// suffice, the call fails before anything is loaded. Pins do not nest.
    ///
    /// # Errors
    /// [`Error::Reserve`]; else as [`Filler::populate`], and then nothing new is pinned.
    pub fn pin(&self, range: Range<u64>) -> Result<(), Error> {
        self.pin_with(range, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`pin`](Self::pin), with progress as of [`populate_with`](Self::populate_with).
    ///
    /// # Errors
    /// As [`pin`](Self::pin); [`Error::Stopped`].
    pub fn pin_with(
        &self,
        range: Range<u64>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let windows = self.map.windows(&range)?;
        let shared = &self.map.shared;
        let new = shared.unpinned(&windows);
        let mut needed = 0;
        for run in &new {
            let extents = self.source.count(shared.bytes_of(run))?;
            // Every window but the first may begin with the rest of the extent before.
            let split = run.len() as u64;
            let entries = usize::try_from(extents + split).unwrap_or(usize::MAX);
            needed += bytes_for(entries) + split * bytes_for(0);
        }
        let _promise = shared.promise(needed)?;
        for run in &new {
            shared.set_pinned(run.clone(), true);
        }
        let result = self.map.populate_windows(&*self.source, windows, progress);
        match &result {
            Ok(()) => lock(&self.control.advice).pinned.extend(new),
            Err(_) => new
                .into_iter()
                .for_each(|run| shared.set_pinned(run, false)),
        }
        result
    }

    /// Lets the windows that overlap `range` be evicted again.
    ///
    /// # Errors
    /// [`Error::Range`] for a range that is empty or beyond the file.
    pub fn unpin(&self, range: Range<u64>) -> Result<(), Error> {
        let windows = self.map.windows(&range)?;
        let mut advice = lock(&self.control.advice);
        let pinned = std::mem::take(&mut advice.pinned);
        for old in pinned {
            let before = old.start..old.end.min(windows.start);
            let behind = old.start.max(windows.end)..old.end;
            advice
                .pinned
                .extend([before, behind].into_iter().filter(|rest| !rest.is_empty()));
        }
        drop(advice);
        self.map.shared.set_pinned(windows, false);
        Ok(())
    }
}

/// Part of the reserve set aside while a range is being pinned.
struct Promise<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.shared.lock().promised -= self.bytes;
    }
}

impl Shared {
    /// The bytes of the file in `windows`, of which some may have gone with a resize.
    fn bytes_of(&self, windows: &Range<usize>) -> Range<u64> {
        let writer = self.lock();
        let table = self.table(&writer);
        table.base(windows.start).min(table.size)..table.base(windows.end).min(table.size)
    }

    /// The runs of `windows` that are not pinned.
    fn unpinned(&self, windows: &Range<usize>) -> Vec<Range<usize>> {
        let writer = self.lock();
        let table = self.table(&writer);
        let mut runs: Vec<Range<usize>> = Vec::new();
        for window in windows.start..windows.end.min(table.len()) {
            if table.state(window).load(Ordering::Relaxed) & PINNED != 0 {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == window => run.end += 1,
                _ => runs.push(window..window + 1),
            }
        }
        runs
    }

    fn promise(&self, needed: u64) -> Result<Promise<'_>, Error> {
        let mut writer = self.lock();
        let reserve = self.config.pin_reserve;
        let left = reserve.saturating_sub(writer.pinned + writer.promised);
        if needed > left {
            return Err(Error::Reserve {
                needed,
                left,
                reserve,
            });
        }
        writer.promised += needed;
        Ok(Promise {
            shared: self,
            bytes: needed,
        })
    }

    fn set_pinned(&self, windows: Range<usize>, pin: bool) {
        let mut guard = self.lock();
        let writer = &mut *guard;
        let table = self.table(writer);
        for window in windows.start..windows.end.min(table.len()) {
            let state = table.state(window);
            if !pin && state.load(Ordering::Relaxed) & PINNED == 0 {
                // Nothing is written where nothing is.
                continue;
            }
            let old = if pin {
                writer.touch(window);
                state.fetch_or(PINNED, Ordering::Relaxed)
            } else {
                state.fetch_and(!PINNED, Ordering::Relaxed)
            };
            if (old & PINNED != 0) == pin {
                continue;
            }
            let Some(bytes) = self.with_slab(&table, window, |slab| slab.bytes()) else {
                continue;
            };
            writer.discharge(bytes, !pin);
            writer.charge(bytes, pin);
            if !pin && state.fetch_or(IN_CLOCK, Ordering::Relaxed) & IN_CLOCK == 0 {
                writer.clock.push(window);
            }
        }
        if !pin {
            self.make_room(writer, 0, Style::Wanted);
            self.seal(writer);
        }
    }
}
