//! Mending a window: of one that is loaded but for some ranges that have changed, only those are read.
//!
//! To read all extents of a window costs a call of the file system that looks at each; where files share extents it
//! looks each up in another tree as well. Where blocks are rewritten by the file one after the other, as after a clone,
//! that would be paid for each of them.

use std::ops::{ControlFlow, Range};

use crate::error::Error;
use crate::map::load::{Loading, Style};
use crate::map::shared::Shared;
use crate::source::ExtentSource;
use crate::source::extent::{Extent, Kind, Packed, Reason};

/// Of a window with more gaps all is read.
const MOST_GAPS: usize = 16;

impl Shared {
    /// Reads what a loaded window lacks, and publishes it. False if that is not worth it, or impossible: then all of it
    /// is to be read.
    pub(crate) fn mend<S: ExtentSource + ?Sized>(
        &self,
        source: &S,
        window: usize,
        style: Style,
    ) -> Result<bool, Error> {
        let load = self.begin_load(&(window..window + 1))?;
        let gaps = self.gaps(window);
        if gaps.is_empty() || gaps.len() > MOST_GAPS {
            return Ok(false);
        }
        let base = load.range.start;
        let mut found = Vec::new();
        for gap in &gaps {
            let range = base + u64::from(gap.start)..base + u64::from(gap.end);
            self.settle(source, &range)?;
            let mut at = range.start;
            let mut sink = |extent: Extent| {
                if let Some(part) = extent.clip(&(at..range.end)) {
                    at = part.end();
                    found.extend(packed(&part, base));
                }
                ControlFlow::Continue(())
            };
            source
                .fill(range.clone(), &mut sink)
                .map_err(|error| self.failed(error))?;
        }
        self.publish_gaps(&load, window, &gaps, &found, style)
    }

    /// The ranges of a loaded window that have changed, relative to it.
    fn gaps(&self, window: usize) -> Vec<Range<u32>> {
        let writer = self.lock();
        let table = self.table(&writer);
        if window >= table.len() {
            return Vec::new();
        }
        let changing = |entry: &&Packed| entry.kind() == Kind::Opaque(Reason::Changing);
        let gaps = self.with_slab(&table, window, |slab| {
            let gaps = slab.entries().iter().filter(changing);
            gaps.map(|gap| gap.start()..gap.end()).collect()
        });
        gaps.unwrap_or_default()
    }

    /// Puts what was found in the gaps of a window into what is known of it by now.
    fn publish_gaps(
        &self,
        load: &Loading<'_>,
        window: usize,
        gaps: &[Range<u32>],
        found: &[Packed],
        style: Style,
    ) -> Result<bool, Error> {
        let mut guard = self.lock();
        let writer = &mut *guard;
        let table = self.table(writer);
        // What was loaded anew meanwhile is as good; what was taken away has to be read again.
        let known = self.with_slab(&table, window, |slab| outside(slab.entries(), gaps));
        let Some(mut entries) = known else {
            return Ok(false);
        };
        entries.extend_from_slice(found);
        entries.sort_unstable_by_key(Packed::start);
        self.publish_in(writer, load.id, window, &entries, style, false)
            .map(|()| true)
    }
}

/// What of the entries lies in none of the ranges, which are in order.
fn outside(entries: &[Packed], ranges: &[Range<u32>]) -> Vec<Packed> {
    let mut rest = Vec::with_capacity(entries.len() + ranges.len());
    for entry in entries {
        let mut at = entry.start();
        let over = |range: &&Range<u32>| range.start < entry.end() && entry.start() < range.end;
        for range in ranges.iter().filter(over) {
            if range.start > at {
                rest.extend(entry.clip(at..range.start));
            }
            at = range.end;
        }
        if at < entry.end() {
            rest.extend(entry.clip(at..entry.end()));
        }
    }
    rest
}

/// An extent within the window that begins at `base`; none for a hole.
fn packed(extent: &Extent, base: u64) -> Option<Packed> {
    let extent = extent.within_limit();
    let relative = u32::try_from(extent.start - base).ok()?;
    let len = u32::try_from(extent.len).ok()?;
    (extent.kind != Kind::Hole).then(|| Packed::new(relative, len, extent.disk, extent.kind))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_of_ranges_stays_as_it_is() {
        let entry = |start, len| Packed::new(start, len, u64::from(start) + 512, Kind::Written);
        let entries = [entry(0, 100), entry(100, 50), entry(200, 100)];
        let parts = |ranges: &[Range<u32>]| -> Vec<(u32, u32, u64)> {
            let rest = outside(&entries, ranges);
            let parts = rest.iter();
            parts
                .map(|part| (part.start(), part.end(), part.disk()))
                .collect()
        };
        let whole = [(0, 100, 512), (100, 150, 612), (200, 300, 712)];
        assert_eq!(parts(&[]), whole);
        assert_eq!(parts(&[150..200, 300..400]), whole);
        assert_eq!(
            parts(&[10..20, 90..120, 220..300]),
            [
                (0, 10, 512),
                (20, 90, 532),
                (120, 150, 632),
                (200, 220, 712)
            ]
        );
        assert_eq!(parts(std::slice::from_ref(&(0..300))), []);
    }
}
