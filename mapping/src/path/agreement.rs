//! Whether the map is what the file system says now, extent by extent.

use std::io;
use std::ops::{ControlFlow, Range};

use crate::{Extent, ExtentSource, Kind, Lookup, Reader};

use super::core::Core;

/// Bytes that are compared together.
const PIECE: u64 = 64 << 20;
/// How often a piece is compared in which something changes meanwhile.
const TRIES: usize = 20;

/// What comparing the whole map with the file system has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Agreement {
    /// Bytes of the image that the map knows.
    pub known: u64,
    /// Bytes of which the map has nothing, or that were changing.
    pub unknown: u64,
    /// The first byte for which the two say something else.
    pub differs: Option<u64>,
}

impl Agreement {
    fn add(&mut self, other: Agreement) {
        self.known += other.known;
        self.unknown += other.unknown;
        self.differs = self.differs.or(other.differs);
    }
}

impl Core {
    /// Compares all that the map has loaded with what FIEMAP says. To be
    /// called under the lease; our own requests may change the image
    /// meanwhile. Takes as long as reading all extents does.
    ///
    /// # Errors
    /// What FIEMAP says, or too many readers of the map.
    pub(super) fn agreement(&self) -> io::Result<Agreement> {
        let mut reader = self.map.reader().map_err(io::Error::other)?;
        let size = self.map.size();
        let mut found = Agreement::default();
        let mut at = 0;
        while at < size {
            let end = (at + PIECE).min(size);
            found.add(self.agreement_of(&mut reader, at..end)?);
            reader.offline();
            at = end;
        }
        Ok(found)
    }

    fn agreement_of(&self, reader: &mut Reader, range: Range<u64>) -> io::Result<Agreement> {
        let mut found = Agreement::default();
        for _ in 0..TRIES {
            self.turn();
            let epoch = self.map.epoch();
            found = Agreement::default();
            let mut at = range.start;
            let mut compare = |extent: Extent| found.add(side_by_side(reader, &extent));
            self.filler.source().fill(range.clone(), &mut |extent| {
                compare(hole(at..extent.start));
                at = extent.end();
                compare(extent);
                ControlFlow::Continue(())
            })?;
            compare(hole(at..range.end));
            // What differs while something changes may be the change.
            if found.differs.is_none() || self.map.epoch() == epoch {
                return Ok(found);
            }
        }
        Ok(Agreement {
            known: 0,
            unknown: found.known + found.unknown,
            differs: None,
        })
    }
}

fn hole(range: Range<u64>) -> Extent {
    Extent {
        start: range.start,
        len: range.end.saturating_sub(range.start),
        disk: 0,
        kind: Kind::Hole,
    }
}

/// What the map says of the bytes of an extent.
fn side_by_side(reader: &mut Reader, extent: &Extent) -> Agreement {
    let mut found = Agreement::default();
    let mut at = extent.start;
    while at < extent.end() {
        let (end, same) = match reader.lookup(at) {
            Lookup::Found(known) if known.end() > at => {
                let same = match known.kind {
                    Kind::Opaque(_) => None,
                    kind => Some(kind == extent.kind && known.disk_at(at) == extent.disk_at(at)),
                };
                (known.end().min(extent.end()), same)
            }
            _ => (extent.end().min((at | 0xffff) + 1), None),
        };
        match same {
            None => found.unknown += end - at,
            Some(same) => {
                found.known += end - at;
                if !same {
                    found.differs = found.differs.or(Some(at));
                }
            }
        }
        at = end;
    }
    found
}
