//! What all workers of a disk know together. Only what is rare is behind a
//! lock: parts of a block that must be read before they can be written.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost_backend::device::SECTOR;
use vhost_backend::{Op, OpKind};

use super::clones::Clones;
use super::policy::Policy;
use super::stats::ByKind;
use crate::host::switches;
use crate::host::sys::DirectAlign;
use crate::options::config::MAX_QUEUES;

/// Aligned buffers of a worker.
pub(super) const BUFFERS: usize = 8;
/// Ranges that can be claimed at a time: each takes a buffer of a worker.
const MOST_CLAIMS: usize = BUFFERS * MAX_QUEUES as usize;

/// One per disk.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What direct I/O on the image takes.
    pub align: DirectAlign,
    /// Bytes that can be freed or zeroed by the file system: a power of two.
    pub unit: u32,
    /// Which errors are waited out.
    pub policy: Policy,
    /// What keeps changes from what is to be cloned first.
    pub clones: Arc<Clones>,
    punch: AtomicBool,
    zero_range: AtomicBool,
    /// Bytes that the guest may change.
    capacity: AtomicU64,
    /// Bytes that the image has.
    end: AtomicU64,
    /// The part of a block at the end goes by the page cache.
    buffered_tail: bool,
    lost_writes: AtomicBool,
    errors: [AtomicU64; OpKind::ALL.len()],
    /// Some worker was given a small request.
    small: AtomicBool,
    /// Counts changes by the file that may have changed the file system's
    /// records: they are durable only by a sync of the file.
    changes: AtomicU64,
    /// How many of them are known to be durable.
    synced: AtomicU64,
    /// Block ranges, in units of `align.offset`, that are being read, changed
    /// and written back.
    claimed: Mutex<Vec<(u64, u64)>>,
}

impl Shared {
    /// For an image with these properties.
    pub(crate) fn new(align: DirectAlign, unit: u32) -> Self {
        Self {
            align,
            unit,
            policy: Policy::default(),
            clones: Arc::default(),
            punch: AtomicBool::new(true),
            zero_range: AtomicBool::new(true),
            capacity: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(u64::MAX),
            buffered_tail: false,
            lost_writes: AtomicBool::new(false),
            errors: Default::default(),
            small: AtomicBool::new(false),
            // Whoever had the image before may not have synced it.
            changes: AtomicU64::new(1),
            synced: AtomicU64::new(0),
            claimed: Mutex::new(Vec::with_capacity(MOST_CLAIMS)),
        }
    }

    /// As [`new`](Self::new), but nothing is ever freed, or zeroed but by
    /// writing zeros.
    pub(crate) fn keeping_blocks(align: DirectAlign, unit: u32) -> Self {
        Self {
            punch: AtomicBool::new(false),
            zero_range: AtomicBool::new(false),
            ..Self::new(align, unit)
        }
    }

    /// As it is, but the part of a block at the end goes by the page cache.
    pub(crate) fn with_buffered_tail(self, buffered_tail: bool) -> Self {
        Self {
            buffered_tail,
            ..self
        }
    }

    /// Where that part begins: no direct I/O reaches beyond.
    pub(super) fn tail(&self) -> u64 {
        if !self.buffered_tail {
            return u64::MAX;
        }
        let capacity = self.capacity.load(Ordering::SeqCst);
        capacity - capacity % u64::from(self.align.offset)
    }

    /// Where an operation on the whole blocks around what ends at `end` has to
    /// end: at the end of the disk, which must not become longer by it.
    pub(super) fn last(&self, end: u64, align: u64) -> u64 {
        let capacity = self.capacity.load(Ordering::SeqCst);
        end.next_multiple_of(align).min(capacity).max(end)
    }

    /// A worker was given a small request. Costs a load where another came
    /// not long before.
    pub(super) fn note_small(&self) {
        if !self.small.load(Ordering::Relaxed) {
            self.small.store(true, Ordering::Relaxed);
        }
    }

    /// Whether one came since this was last asked.
    pub(super) fn take_small(&self) -> bool {
        self.small.load(Ordering::Relaxed) && self.small.swap(false, Ordering::Relaxed)
    }

    /// The image has so many bytes. If that is within a sector, the rest of it
    /// reads as zeros.
    pub(crate) fn set_end(&self, bytes: u64) {
        self.end.store(bytes, Ordering::SeqCst);
    }

    /// The image ends here, within a sector.
    pub(super) fn ends_within_sector(&self, at: u64) -> bool {
        !at.is_multiple_of(SECTOR) && at == self.end.load(Ordering::SeqCst)
    }

    fn blocks(&self, start: u64, end: u64) -> (u64, u64) {
        let block = u64::from(self.align.offset);
        (start / block, end.div_ceil(block))
    }

    /// The bytes of `range` are no whole blocks.
    pub(super) fn cuts_blocks(&self, range: &Range<u64>) -> bool {
        let block = u64::from(self.align.offset);
        !(range.start.is_multiple_of(block) && range.end.is_multiple_of(block))
    }

    /// Claims the blocks of the bytes `start..end`; false if another task has
    /// any of them.
    pub(crate) fn claim_blocks(&self, start: u64, end: u64) -> bool {
        let (first, last) = self.blocks(start, end);
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.iter().any(|&(from, to)| first < to && from < last) {
            return false;
        }
        claimed.push((first, last));
        true
    }

    /// Gives back what [`claim_blocks`](Self::claim_blocks) claimed.
    pub(crate) fn release_blocks(&self, start: u64, end: u64) {
        let range = self.blocks(start, end);
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = claimed.iter().position(|&other| other == range) {
            claimed.swap_remove(index);
        }
    }

    /// The file system can free blocks, as far as is known.
    pub(crate) fn can_punch(&self) -> bool {
        self.punch.load(Ordering::Relaxed)
    }

    /// The file system can zero blocks, as far as is known.
    pub(crate) fn can_zero_range(&self) -> bool {
        self.zero_range.load(Ordering::Relaxed)
    }

    /// fallocate(2) with this mode is not supported here.
    pub(crate) fn cannot(&self, mode: i32) {
        let (what, flag) = if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
            ("free blocks: discards free nothing", &self.punch)
        } else {
            ("zero blocks: zeros are written", &self.zero_range)
        };
        if flag.swap(false, Ordering::Relaxed) {
            log::info!("the image's file system cannot {what}");
        }
    }

    /// From now on nothing is begun that changes what lies at `bytes` or
    /// behind. What was begun before may still be under way.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.capacity.store(bytes, Ordering::SeqCst);
    }

    /// The disk has become too short for a change of the bytes before `end`
    /// since it was asked for.
    pub(super) fn is_beyond(&self, end: Option<u64>) -> bool {
        end.is_some_and(|end| end > self.capacity.load(Ordering::SeqCst))
    }

    /// A sync failed: what was written before may be gone, and the kernel
    /// does not say so a second time, so no later FLUSH may claim otherwise.
    pub(crate) fn lose_writes(&self) {
        if !self.lost_writes.swap(true, Ordering::SeqCst) {
            log::error!(
                "the image could not be synced: every FLUSH fails from now on; check the disk and restart"
            );
        }
    }

    /// A sync has failed before.
    pub(crate) fn has_lost_writes(&self) -> bool {
        self.lost_writes.load(Ordering::SeqCst)
    }

    /// The file system's records may have changed. To be called before the
    /// request that changed them is reported.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// How many changes a sync that begins now covers, and whether a sync of
    /// the device alone will do for them.
    pub(crate) fn begin_sync(&self) -> (u64, bool) {
        let covers = self.changes.load(Ordering::SeqCst);
        if switches::no_file_sync() {
            return (covers, true);
        }
        (covers, self.synced.load(Ordering::SeqCst) >= covers)
    }

    /// A sync of the file that covers so many changes has ended well.
    pub(crate) fn end_sync(&self, covers: u64) {
        self.synced.fetch_max(covers, Ordering::SeqCst);
    }

    /// Failed requests.
    pub(crate) fn errors(&self) -> ByKind {
        self.errors
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// Logs a failed request; ever more rarely, so that a broken disk does
    /// not fill the log.
    pub(crate) fn report(&self, op: Op, errno: i32) {
        if let Some(count) = self.errors.get(op.kind().index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let count: u64 = self.errors().iter().sum();
        if count.is_power_of_two() {
            let error = match errno {
                libc::ENOSPC | libc::EDQUOT => {
                    "the image's file system is full: make room, and it works again".to_owned()
                }
                libc::EFBIG => {
                    "the limit on the length of files is reached: raise it (LimitFSIZE=, ulimit -f)"
                        .to_owned()
                }
                libc::EFAULT => {
                    "the guest's memory cannot be reached there: its file was truncated, or there is no room for its pages (a full tmpfs or file system, no free huge page)"
                        .to_owned()
                }
                _ => std::io::Error::from_raw_os_error(errno).to_string(),
            };
            log::error!("{op} failed: {error} ({count} failed requests so far)");
        }
    }
}
