//! Counting what a worker does, for others to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_backend::OpKind;

/// A number for each kind of request, by [`OpKind::index`].
pub(crate) type ByKind = [u64; OpKind::ALL.len()];

/// A worker's counters as others read them; all since the start.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    disk: AtomicU64,
    file: AtomicU64,
    zeros: AtomicU64,
    polled: AtomicU64,
    bounced: AtomicU64,
    refused: AtomicU64,
    ended: [AtomicU64; OpKind::ALL.len()],
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// Sums over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Reads and writes that went straight to the device.
    pub disk_operations: u64,
    /// Reads and writes that went by the file with no copy.
    pub file_operations: u64,
    /// Reads of holes and unwritten extents, which need no I/O.
    pub zero_fills: u64,
    /// Reads and writes whose end was looked for, so that the device did not
    /// have to interrupt.
    pub polled_operations: u64,
    /// Reads and writes of the file through a buffer of ours: guest memory,
    /// offset or length do not suit direct I/O.
    pub bounced_operations: u64,
    /// Reads and writes that the device did not take at once, as its queue was
    /// full; they were tried again, or went by the file.
    pub refused_operations: u64,
    /// Requests that have ended.
    pub requests: ByKind,
    /// Bytes of reads that ended well.
    pub read_bytes: u64,
    /// Bytes of writes that ended well; zeroing and discarding do not count.
    pub written_bytes: u64,
}

impl Tally {
    /// Adds this worker to the sums.
    pub(crate) fn add_to(&self, sums: &mut Sums) {
        sums.disk_operations += self.disk.load(Ordering::Relaxed);
        sums.file_operations += self.file.load(Ordering::Relaxed);
        sums.zero_fills += self.zeros.load(Ordering::Relaxed);
        sums.polled_operations += self.polled.load(Ordering::Relaxed);
        sums.bounced_operations += self.bounced.load(Ordering::Relaxed);
        sums.refused_operations += self.refused.load(Ordering::Relaxed);
        for (sum, ended) in sums.requests.iter_mut().zip(&self.ended) {
            *sum += ended.load(Ordering::Relaxed);
        }
        sums.read_bytes += self.read_bytes.load(Ordering::Relaxed);
        sums.written_bytes += self.written_bytes.load(Ordering::Relaxed);
    }
}

/// The worker's own side: plain numbers, published once per turn.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) disk: u64,
    pub(super) file: u64,
    pub(super) zeros: u64,
    pub(super) polled: u64,
    pub(super) bounced: u64,
    pub(super) refused: u64,
    ended: ByKind,
    read_bytes: u64,
    written_bytes: u64,
    shown: Arc<Tally>,
}

impl Counts {
    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.shown)
    }

    /// A request has ended, that moved so many bytes.
    pub(super) fn end(&mut self, kind: OpKind, moved: u64) {
        if let Some(ended) = self.ended.get_mut(kind.index()) {
            *ended += 1;
        }
        match kind {
            OpKind::Read => self.read_bytes += moved,
            OpKind::Write => self.written_bytes += moved,
            OpKind::Flush | OpKind::Discard | OpKind::WriteZeroes => {}
        }
    }

    pub(super) fn publish(&self) {
        self.shown.disk.store(self.disk, Ordering::Relaxed);
        self.shown.file.store(self.file, Ordering::Relaxed);
        self.shown.zeros.store(self.zeros, Ordering::Relaxed);
        self.shown.polled.store(self.polled, Ordering::Relaxed);
        self.shown.bounced.store(self.bounced, Ordering::Relaxed);
        self.shown.refused.store(self.refused, Ordering::Relaxed);
        for (shown, ended) in self.shown.ended.iter().zip(self.ended) {
            shown.store(ended, Ordering::Relaxed);
        }
        self.shown
            .read_bytes
            .store(self.read_bytes, Ordering::Relaxed);
        self.shown
            .written_bytes
            .store(self.written_bytes, Ordering::Relaxed);
    }
}
