//! The extents of an image as its file system tells them, with what the map
//! has in memory, for people to look at. Walking changes nothing: it writes
//! nothing out, loads nothing and takes no lease.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use mapping::{Extent, ExtentSource, Fiemap, Identity, Kind, SyncPolicy};

use super::shown_map::ShownMap;
use crate::disk::Disk;
use crate::protocol::extents::{Heat, MOST, Page, Piece};

/// The extents of `range` of the disk, at most `most` of them.
///
/// # Errors
/// The file system cannot tell.
pub(super) fn page(
    disk: &Disk,
    shown: &ShownMap,
    range: Range<u64>,
    most: u32,
) -> io::Result<Page> {
    let most = usize::try_from(most.clamp(1, MOST)).unwrap_or(1);
    let size = disk.capacity_bytes();
    let path = disk.disk_path().ok();
    let pieces = if disk.is_block_device() {
        walk(&Identity::new(size), range.clone(), most)?
    } else {
        let align = path.map_or(512, |path| path.device().logical_block());
        let source = Fiemap::new(Arc::clone(disk.image()))
            .sync(SyncPolicy::Never)
            .align(align);
        walk(&source, range.clone(), most)?
    };
    let used = path.map(|path| path.map().clone());
    let loaded = match &used {
        Some(map) if map.enabled() => used.clone(),
        // What was loaded by advice meanwhile.
        _ => shown.map().or_else(|| used.clone()),
    };
    let in_memory = |range: Range<u64>| InMemory {
        resident: loaded
            .as_ref()
            .map_or_else(Vec::new, |map| map.resident(range.clone())),
        pinned: used.as_ref().map_or_else(Vec::new, |map| map.pinned(range)),
    };
    Ok(assemble(size, range, pieces, in_memory, most))
}

/// Longest time that requests are watched for.
const LONGEST_MS: u32 = 10_000;

/// Which windows of `range` requests look up, in so many milliseconds from now,
/// or since this was last asked; blocks meanwhile.
///
/// # Errors
/// Why no request looks anything up, or for how long it can be watched.
pub(super) fn heat(disk: &Disk, range: Range<u64>, during_ms: u32) -> Result<Heat, String> {
    if during_ms > LONGEST_MS {
        return Err(format!(
            "{during_ms} ms is too long: give {LONGEST_MS} at most"
        ));
    }
    let path = disk.disk_path()?;
    let map = path.map();
    if !map.enabled() {
        return Err(format!(
            "requests go by the file ({}), and look nothing up",
            path.situation().reason
        ));
    }
    if during_ms > 0 {
        map.cool(range.clone());
        std::thread::sleep(Duration::from_millis(during_ms.into()));
    }
    let most = usize::try_from(MOST).unwrap_or(usize::MAX);
    let mut used = map.used(range);
    let next = used.get(most).map(|part| part.start);
    used.truncate(most);
    Ok(Heat {
        size_bytes: disk.capacity_bytes(),
        window_bytes: map.config().window,
        used: pairs(&used),
        next,
    })
}

/// What a map has of a range.
#[derive(Default)]
struct InMemory {
    resident: Vec<Range<u64>>,
    /// Loaded or not.
    pinned: Vec<Range<u64>>,
}

/// Joins what continues, fills the gaps with holes, and stops after `most`
/// pieces.
fn walk(source: &impl ExtentSource, range: Range<u64>, most: usize) -> io::Result<Vec<Extent>> {
    let mut pieces: Vec<Extent> = Vec::new();
    // False when there is no room for the extent.
    let mut add = |extent: Extent| {
        let room = pieces.len() < most;
        match pieces.last_mut() {
            Some(before) if continues(before, &extent) => {
                before.len = before.len.saturating_add(extent.len);
            }
            _ if room => pieces.push(extent),
            _ => return false,
        }
        true
    };
    let mut at = range.start;
    let mut full = false;
    source.fill(range.clone(), &mut |extent| {
        full = !(extent.start == at || add(hole(at..extent.start))) || !add(extent);
        at = extent.end();
        if full {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    if !full && at < range.end {
        add(hole(at..range.end));
    }
    Ok(pieces)
}

fn hole(range: Range<u64>) -> Extent {
    Extent {
        start: range.start,
        len: range.end.saturating_sub(range.start),
        disk: 0,
        kind: Kind::Hole,
    }
}

fn has_place(kind: Kind) -> bool {
    !matches!(kind, Kind::Hole | Kind::Opaque(_))
}

fn continues(before: &Extent, extent: &Extent) -> bool {
    let same = before.kind == extent.kind && before.end() == extent.start;
    same && (!has_place(extent.kind) || before.disk.checked_add(before.len) == Some(extent.disk))
}

fn assemble(
    size: u64,
    range: Range<u64>,
    mut pieces: Vec<Extent>,
    in_memory: impl Fn(Range<u64>) -> InMemory,
    most: usize,
) -> Page {
    let mut end = pieces.last().map_or(range.start, Extent::end);
    let InMemory {
        resident: mut loaded,
        mut pinned,
    } = in_memory(range.start..end);
    // A long hole may have more parts in memory than an answer may have.
    let beyond = [loaded.get(most), pinned.get(most)];
    if let Some(cut) = beyond.into_iter().flatten().map(|part| part.start).min() {
        end = cut;
        for parts in [&mut loaded, &mut pinned] {
            parts.retain(|part| part.start < end);
            if let Some(last) = parts.last_mut() {
                last.end = last.end.min(end);
            }
        }
        pieces = pieces
            .iter()
            .filter_map(|extent| extent.clip(&(range.start..end)))
            .collect();
    }
    let mut parts = loaded.as_slice();
    let extents = pieces
        .iter()
        .map(|extent| {
            let mut covered = 0;
            while let [part, rest @ ..] = parts {
                let end = part.end.min(extent.end());
                covered = end
                    .saturating_sub(part.start.max(extent.start))
                    .saturating_add(covered);
                if part.end > extent.end() {
                    break;
                }
                parts = rest;
            }
            piece(extent, covered)
        })
        .collect();
    Page {
        size_bytes: size,
        extents,
        resident: pairs(&loaded),
        pinned: pairs(&pinned),
        next: (end < range.end).then_some(end),
    }
}

fn pairs(parts: &[Range<u64>]) -> Vec<(u64, u64)> {
    parts.iter().map(|part| (part.start, part.end)).collect()
}

fn piece(extent: &Extent, resident: u64) -> Piece {
    let reason = match extent.kind {
        Kind::Opaque(reason) => Some(reason.to_string()),
        _ => None,
    };
    Piece {
        start: extent.start,
        len: extent.len,
        disk: has_place(extent.kind).then_some(extent.disk),
        kind: extent.kind.name().into(),
        reason,
        resident,
    }
}

#[cfg(test)]
mod tests {
    use mapping::{Reason, Sink};

    use super::*;

    struct Listed(Vec<Extent>);

    impl ExtentSource for Listed {
        fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
            for extent in self.0.iter().filter_map(|extent| extent.clip(&range)) {
                if sink(extent).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    fn extent(start: u64, len: u64, disk: u64, kind: Kind) -> Extent {
        Extent {
            start,
            len,
            disk,
            kind,
        }
    }

    fn listed() -> Listed {
        Listed(vec![
            extent(100, 100, 1000, Kind::Written),
            extent(200, 100, 1100, Kind::Written),
            extent(300, 100, 5000, Kind::Written),
            extent(500, 100, 6000, Kind::Unwritten),
            extent(600, 50, 0, Kind::Opaque(Reason::Inline)),
        ])
    }

    fn of(resident: &[Range<u64>]) -> InMemory {
        InMemory {
            resident: resident.to_vec(),
            pinned: Vec::new(),
        }
    }

    fn told(page: &Page) -> Vec<(u64, u64, Option<u64>, &str, u64)> {
        let each = |piece: &Piece| (piece.start, piece.len, piece.disk, piece.resident);
        page.extents
            .iter()
            .map(|piece| (each(piece), piece.kind.as_str()))
            .map(|((start, len, disk, resident), kind)| (start, len, disk, kind, resident))
            .collect()
    }

    #[test]
    fn what_continues_is_joined_and_gaps_are_holes() {
        let pieces = walk(&listed(), 0..800, 100).unwrap();
        let page = assemble(800, 0..800, pieces, |_| of(&[150..320, 600..800]), 100);
        assert_eq!(
            told(&page),
            [
                (0, 100, None, "hole", 0),
                (100, 200, Some(1000), "written", 150),
                (300, 100, Some(5000), "written", 20),
                (400, 100, None, "hole", 0),
                (500, 100, Some(6000), "unwritten", 0),
                (600, 50, None, "opaque", 50),
                (650, 150, None, "hole", 150),
            ]
        );
        assert_eq!(
            page.extents[5].reason.as_deref(),
            Some("inside metadata"),
            "{page:?}"
        );
        assert_eq!(page.next, None);
    }

    #[test]
    fn pages_together_tell_what_one_tells() {
        let whole = walk(&listed(), 0..800, 100).unwrap();
        for most in 1..8 {
            let (mut at, mut all) = (0, Vec::new());
            loop {
                let pieces = walk(&listed(), at..800, most).unwrap();
                let page = assemble(800, at..800, pieces, |_| of(&[]), most);
                assert!(page.extents.len() <= most);
                all.extend(page.extents);
                let Some(next) = page.next else { break };
                assert!(next > at);
                at = next;
            }
            let expected: Vec<_> = whole.iter().map(|extent| piece(extent, 0)).collect();
            assert_eq!(all, expected, "{most} at a time");
        }
    }

    #[test]
    fn a_part_of_an_extent_has_its_own_place() {
        let pieces = walk(&listed(), 150..250, 100).unwrap();
        let page = assemble(800, 150..250, pieces, |_| of(&[]), 100);
        assert_eq!(told(&page), [(150, 100, Some(1050), "written", 0)]);
    }

    #[test]
    fn many_parts_in_memory_shorten_a_page() {
        let windows = |range: Range<u64>| {
            let parts = (0..100).map(|at| at * 10..at * 10 + 5);
            let parts = parts.filter(|part| part.start < range.end);
            InMemory {
                resident: parts.collect(),
                pinned: vec![0..5, 30..60],
            }
        };
        let pieces = walk(&Listed(Vec::new()), 0..800, 4).unwrap();
        let page = assemble(800, 0..800, pieces, windows, 4);
        assert_eq!(page.resident, [(0, 5), (10, 15), (20, 25), (30, 35)]);
        assert_eq!(page.pinned, [(0, 5), (30, 40)]);
        assert_eq!(told(&page), [(0, 40, None, "hole", 20)]);
        assert_eq!(page.next, Some(40));
    }
}
