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
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    write_zeroes: AtomicU64,
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
    /// Requests of that kind that have ended.
    fn ended(&self, kind: OpKind) -> &AtomicU64 {
        match kind {
            OpKind::Read => &self.reads,
            OpKind::Write => &self.writes,
            OpKind::Flush => &self.flushes,
            OpKind::Discard => &self.discards,
            OpKind::WriteZeroes => &self.write_zeroes,
        }
    }

    /// What this worker has done.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        self.add_to(&mut sums);
        sums
    }

    /// Adds this worker to the sums.
    pub(crate) fn add_to(&self, sums: &mut Sums) {
        sums.disk_operations += self.disk.load(Ordering::Relaxed);
        sums.file_operations += self.file.load(Ordering::Relaxed);
        sums.zero_fills += self.zeros.load(Ordering::Relaxed);
        sums.polled_operations += self.polled.load(Ordering::Relaxed);
        sums.bounced_operations += self.bounced.load(Ordering::Relaxed);
        sums.refused_operations += self.refused.load(Ordering::Relaxed);
        for (kind, sum) in OpKind::ALL.into_iter().zip(&mut sums.requests) {
            *sum += self.ended(kind).load(Ordering::Relaxed);
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
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    shown: Arc<Tally>,
}

impl Counts {
    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.shown)
    }

    /// A request has ended that is neither a read nor a write, of which there
    /// are too many for that.
    #[cold]
    pub(super) fn end_of_other(&self, kind: OpKind) {
        self.shown.ended(kind).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn publish(&self) {
        self.shown.disk.store(self.disk, Ordering::Relaxed);
        self.shown.file.store(self.file, Ordering::Relaxed);
        self.shown.zeros.store(self.zeros, Ordering::Relaxed);
        self.shown.polled.store(self.polled, Ordering::Relaxed);
        self.shown.bounced.store(self.bounced, Ordering::Relaxed);
        self.shown.refused.store(self.refused, Ordering::Relaxed);
        self.shown.reads.store(self.reads, Ordering::Relaxed);
        self.shown.writes.store(self.writes, Ordering::Relaxed);
        self.shown
            .read_bytes
            .store(self.read_bytes, Ordering::Relaxed);
        self.shown
            .written_bytes
            .store(self.written_bytes, Ordering::Relaxed);
    }
}
