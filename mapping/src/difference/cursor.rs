//! A place in the extents of a file, which are asked for in batches: by whoever looks, or by a thread ahead of them.

use std::ops::{ControlFlow, Range};
use std::{fmt, io, iter, mem, thread, vec};

use crate::source::ExtentSource;
use crate::source::extent::{Extent, Kind};

/// Extents of one batch.
pub(super) const BATCH: usize = 512;
/// Batches that a thread is ahead.
const AHEAD: usize = 8;

type Batch = io::Result<Vec<Extent>>;

/// Goes through the extents of one file.
pub(super) struct Cursor<'a> {
    batches: Box<dyn Iterator<Item = Batch> + Send + 'a>,
    batch: iter::Peekable<vec::IntoIter<Extent>>,
    end: u64,
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = &self.batch;
        f.debug_struct("Cursor")
            .field("batch", next)
            .finish_non_exhaustive()
    }
}

impl<'a> Cursor<'a> {
    /// Asks `source` when it has to.
    pub(super) fn new<S: ExtentSource>(source: &'a S, range: Range<u64>) -> Self {
        let end = range.end;
        let mut left = range;
        Self::of(iter::from_fn(move || next(source, &mut left)), end)
    }

    /// Has a thread ask ahead, if one can be started.
    pub(super) fn ahead<S: ExtentSource + Clone + 'static>(
        source: &'a S,
        range: Range<u64>,
    ) -> Self {
        let end = range.end;
        let (sender, batches) = std::sync::mpsc::sync_channel(AHEAD);
        let (own, mut left) = (source.clone(), range.clone());
        let ask = move || {
            loop {
                let batch = next(&own, &mut left);
                let over = batch.is_none();
                // An error: nobody looks any more.
                if sender.send(batch).is_err() || over {
                    return;
                }
            }
        };
        let asked = move || match batches.recv() {
            Ok(batch) => batch,
            Err(_) => Some(Err(io::Error::other(
                "the thread that asks for extents has ended",
            ))),
        };
        match thread::Builder::new().name("extents".to_owned()).spawn(ask) {
            Ok(_) => Self::of(iter::from_fn(asked), end),
            Err(error) => {
                log::debug!("extents are not asked for ahead: {error}");
                Self::new(source, range)
            }
        }
    }

    fn of(batches: impl Iterator<Item = Batch> + Send + 'a, end: u64) -> Self {
        Self {
            batches: Box::new(batches.fuse()),
            batch: Vec::new().into_iter().peekable(),
            end,
        }
    }

    /// The extent at `offset`, which is never before the one asked for last; a hole where there is none.
    pub(super) fn at(&mut self, offset: u64) -> io::Result<Extent> {
        loop {
            match self.batch.peek() {
                Some(extent) if extent.end() <= offset => drop(self.batch.next()),
                Some(extent) if extent.start <= offset => return Ok(*extent),
                Some(behind) => return Ok(hole(offset..behind.start)),
                None => match self.batches.next() {
                    Some(batch) => self.batch = batch?.into_iter().peekable(),
                    None => return Ok(hole(offset..self.end)),
                },
            }
        }
    }
}

fn hole(range: Range<u64>) -> Extent {
    Extent {
        start: range.start,
        len: range.end - range.start,
        disk: 0,
        kind: Kind::Hole,
    }
}

/// The next batch of what is `left`; `None` behind the last one, and after an error.
fn next<S: ExtentSource>(source: &S, left: &mut Range<u64>) -> Option<Batch> {
    if left.is_empty() {
        return None;
    }
    let range = mem::replace(left, left.end..left.end);
    let mut batch = Vec::with_capacity(BATCH);
    let filled = source.fill(range, &mut |extent| {
        batch.push(extent);
        if batch.len() < BATCH {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    if batch.len() == BATCH {
        left.start = batch.last().map_or(left.end, Extent::end);
    }
    Some(filled.map(|()| batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Dies;

    impl ExtentSource for Dies {
        fn fill(&self, _: Range<u64>, _: &mut crate::Sink<'_>) -> io::Result<()> {
            panic!("on purpose")
        }
    }

    #[test]
    fn a_thread_that_dies_is_an_error_and_no_end() {
        let mut cursor = Cursor::ahead(&Dies, 0..8);
        assert!(cursor.at(0).is_err());
    }
}
