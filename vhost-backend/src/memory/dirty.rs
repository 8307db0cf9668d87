//! The log of guest pages that were written, kept while a guest migrates
//! (vhost-user, "Migration"). Off, it costs one branch for each request.
#![allow(unsafe_code)]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::memory::Memory;
use crate::memory::backing::SharedError;
use crate::memory::shared::Shared;

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

    /// It could not be reached: what was marked since is not known to the
    /// front-end.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// These bytes of guest memory were written. Pages beyond the log are
    /// left out (VU-36).
    pub(crate) fn mark(&self, guest: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = guest.saturating_add(len.saturating_sub(1)) / PAGE;
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
            let bits = (0xff_u8 << (page % 8)) & (0xff >> (7 ^ (until % 8)));
            // SAFETY: the byte lies within the mapping, which `self` keeps.
            // The front-end changes it at the same time, as an atomic may be.
            let byte = unsafe { AtomicU8::from_ptr(self.shared.at(byte)) };
            // Release: what was written is seen by whoever sees the bit. Also
            // where the bit is set already: it may be taken away meanwhile.
            byte.fetch_or(bits, Ordering::Release);
            // At most the last page of all, whose number is far below the type's end.
            page = until.wrapping_add(1);
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

/// Remembers what the requests of a worker write, and marks it when they have
/// ended. All room is made at the start: descriptors are the driver's, which
/// may have changed them by then. Nothing is marked that no request writes:
/// where there is [no room](Self::has_room) for one more request, it is
/// fetched later.
#[derive(Debug)]
pub(crate) struct Tracker {
    log: Arc<Log>,
    /// For each tag: its first range, or [`NONE`].
    noted: Box<[u32]>,
    ranges: Box<[Range]>,
    /// The first range that is not in use, or [`NONE`].
    free: u32,
    /// How many are not.
    free_count: usize,
    /// Ranges of the largest request.
    most: usize,
}

impl Tracker {
    /// For requests with tags below `tags`, each of `most` ranges at most.
    pub(crate) fn new(log: Arc<Log>, tags: usize, most: usize) -> Self {
        let wanted = tags.saturating_mul(RANGES_PER_REQUEST);
        let count = u32::try_from(wanted.saturating_add(most)).unwrap_or(NONE);
        let range = |index: u32| Range {
            guest: 0,
            len: 0,
            next: index
                .checked_add(1)
                .filter(|next| *next < count)
                .unwrap_or(NONE),
        };
        let ranges: Box<[Range]> = (0..count).map(range).collect();
        Self {
            log,
            noted: vec![NONE; tags].into(),
            free: if count == 0 { NONE } else { 0 },
            free_count: ranges.len(),
            ranges,
            most,
        }
    }

    /// One more request can be noted, whatever it writes. There is room at
    /// least when nothing is in flight.
    pub(crate) fn has_room(&self) -> bool {
        self.free_count >= self.most
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
        let Some(first) = slot else { return };
        let range = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(last) = self.ranges.get_mut(range(*first))
            && last.guest.checked_add(last.len) == Some(guest)
        {
            last.len = last.len.saturating_add(len);
        } else if let Some(new) = self.ranges.get_mut(range(self.free)) {
            let index = std::mem::replace(&mut self.free, new.next);
            *new = Range {
                guest,
                len,
                next: *first,
            };
            *first = index;
            self.free_count = self.free_count.saturating_sub(1);
        } else {
            // Whoever fetches has looked for room.
            log::error!("there is no room to note what a request writes");
            self.log.mark(guest, len);
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
        let mut first = std::mem::replace(noted, NONE);
        while let Some(range) = usize::try_from(first)
            .ok()
            .and_then(|index| self.ranges.get_mut(index))
        {
            self.log.mark(range.guest, range.len);
            let next = std::mem::replace(&mut range.next, self.free);
            self.free = std::mem::replace(&mut first, next);
            self.free_count = self.free_count.saturating_add(1);
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
