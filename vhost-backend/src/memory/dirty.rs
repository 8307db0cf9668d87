//! The log of guest pages that were written, kept while a guest migrates
//! (vhost-user, "Migration"). Off, it costs one branch for each request.
#![allow(unsafe_code)]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::memory::Memory;
use crate::memory::shared::{Shared, SharedError};

/// `VHOST_LOG_PAGE`: a bit of the log stands for so many bytes.
const PAGE: u64 = 4096;

/// A bit for each page of guest physical memory, shared with the front-end,
/// which takes bits away at any time.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Shared,
}

impl Log {
    /// Maps a log of `size` bytes at `offset` of a file.
    pub(crate) fn open(file: File, offset: u64, size: u64) -> Result<Self, SharedError> {
        let shared = Shared::map(file, offset, size)?;
        Ok(Self { shared })
    }

    /// These bytes of guest memory were written. Pages beyond the log are
    /// left out (VU-36).
    pub(crate) fn mark(&self, guest: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = guest.saturating_add(len - 1) / PAGE;
        let mut page = guest / PAGE;
        while page <= last {
            let Some(byte) = usize::try_from(page / 8)
                .ok()
                .filter(|byte| *byte < self.shared.len())
            else {
                return;
            };
            // To the end of the byte or of the range.
            let until = (page | 7).min(last);
            let bits = (0xff_u8 << (page % 8)) & (0xff >> (7 - until % 8));
            // SAFETY: the byte lies within the mapping, which `self` keeps.
            // The front-end changes it at the same time, as an atomic may be.
            let byte = unsafe { AtomicU8::from_ptr(self.shared.at(byte)) };
            // Release: what was written is seen by whoever sees the bit. Also
            // where the bit is set already: it may be taken away meanwhile.
            byte.fetch_or(bits, Ordering::Release);
            page = until + 1;
        }
    }
}

#[cfg(feature = "test-switches")]
static UNMARKED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// For negative controls of tests: from now on no request marks the pages that
/// it writes, in no log of this process.
#[cfg(feature = "test-switches")]
pub fn leave_pages_unmarked() {
    UNMARKED.store(true, Ordering::Relaxed);
}

/// What is to be logged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logging {
    /// SET_LOG_BASE; used rings are logged there if their addresses say so.
    pub log: Option<Arc<Log>>,
    /// `VHOST_F_LOG_ALL`: what requests write is logged as well.
    pub data: bool,
}

/// Bytes of guest memory that a request may write.
#[derive(Debug, Clone, Copy)]
struct Range {
    guest: u64,
    len: u64,
    /// The request's next range, or [`NONE`].
    next: u32,
}

const NONE: u32 = u32::MAX;

/// Ranges for which there is room, for each request that can be in flight.
const RANGES_PER_REQUEST: usize = 16;

/// What one request may write.
#[derive(Debug, Clone, Copy)]
struct Noted {
    first: u32,
    /// Covers what there was no room for, as the first byte and the first
    /// beyond it: too many pages rather than too few.
    hull: (u64, u64),
}

impl Noted {
    const NOTHING: Self = Self {
        first: NONE,
        hull: (u64::MAX, 0),
    };
}

/// Remembers what the requests of a worker write, and marks it when they have
/// ended. All room is made at the start: descriptors are the driver's, which
/// may have changed them by then.
#[derive(Debug)]
pub(crate) struct Tracker {
    log: Arc<Log>,
    /// For each tag.
    noted: Box<[Noted]>,
    ranges: Box<[Range]>,
    /// The first range that is not in use, or [`NONE`].
    free: u32,
}

impl Tracker {
    /// For requests with tags below `tags`.
    pub(crate) fn new(log: Arc<Log>, tags: usize) -> Self {
        let count = u32::try_from(tags * RANGES_PER_REQUEST).unwrap_or(NONE);
        let range = |index: u32| Range {
            guest: 0,
            len: 0,
            next: if index + 1 < count { index + 1 } else { NONE },
        };
        Self {
            log,
            noted: vec![Noted::NOTHING; tags].into(),
            ranges: (0..count).map(range).collect(),
            free: if count == 0 { NONE } else { 0 },
        }
    }

    /// Marks in this log from now on, also for requests that were noted
    /// before (VU-39).
    pub(crate) fn replace_log(&mut self, log: Arc<Log>) {
        self.log = log;
    }

    /// The request with this tag may write these pieces of host memory, which
    /// belong to `memory`.
    #[cold]
    pub(crate) fn note(&mut self, tag: u32, memory: &Memory, pieces: &[libc::iovec]) {
        for piece in pieces {
            if let Some(guest) = memory.guest(piece.iov_base.cast()) {
                self.note_range(tag, guest, piece.iov_len as u64);
            }
        }
    }

    fn note_range(&mut self, tag: u32, guest: u64, len: u64) {
        let slot = usize::try_from(tag)
            .ok()
            .and_then(|tag| self.noted.get_mut(tag));
        let Some(noted) = slot else { return };
        let range = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(last) = self.ranges.get_mut(range(noted.first))
            && last.guest.checked_add(last.len) == Some(guest)
        {
            last.len += len;
        } else if let Some(new) = self.ranges.get_mut(range(self.free)) {
            let index = std::mem::replace(&mut self.free, new.next);
            *new = Range {
                guest,
                len,
                next: noted.first,
            };
            noted.first = index;
        } else {
            let (start, end) = noted.hull;
            noted.hull = (start.min(guest), end.max(guest.saturating_add(len)));
        }
    }

    /// All that was noted for this tag has been written.
    #[cold]
    pub(crate) fn mark(&mut self, tag: u32) {
        #[cfg(feature = "test-switches")]
        if UNMARKED.load(Ordering::Relaxed) {
            return;
        }
        let slot = usize::try_from(tag)
            .ok()
            .and_then(|tag| self.noted.get_mut(tag));
        let Some(noted) = slot else { return };
        let Noted { mut first, hull } = std::mem::replace(noted, Noted::NOTHING);
        if hull.0 < hull.1 {
            self.log.mark(hull.0, hull.1 - hull.0);
        }
        while let Some(range) = usize::try_from(first)
            .ok()
            .and_then(|index| self.ranges.get_mut(index))
        {
            self.log.mark(range.guest, range.len);
            let next = std::mem::replace(&mut range.next, self.free);
            self.free = std::mem::replace(&mut first, next);
        }
    }
}

/// The log of a ring's used part.
#[derive(Debug)]
pub(crate) struct UsedLog {
    pub log: Arc<Log>,
    /// Where the first byte of the used ring is logged; it need not be an
    /// address of guest memory (VU-38).
    pub at: u64,
}

impl UsedLog {
    /// `len` bytes of the used ring from `offset` on were written.
    #[cold]
    pub(crate) fn mark(&self, offset: u64, len: u64) {
        if let Some(at) = self.at.checked_add(offset) {
            self.log.mark(at, len);
        }
    }
}

/// What the request with this tag writes was written (VU-39), if that is
/// tracked.
pub(crate) fn mark(dirty: &mut Option<Tracker>, tag: u32) {
    if let Some(dirty) = dirty {
        dirty.mark(tag);
    }
}

#[cfg(test)]
pub(crate) mod tests;
