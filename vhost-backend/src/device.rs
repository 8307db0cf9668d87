//! The seam to the process: what a disk is and how I/O is handed to it.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Bytes of a sector, the unit of virtio-blk (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// What a front-end and a guest may learn of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// The disk offers no writes (`VIRTIO_BLK_F_RO`).
    pub read_only: bool,
    /// `blk_size` in bytes: a power of two, at least 512.
    pub logical_block_size: u32,
    /// The medium's physical blocks and preferred sizes.
    pub topology: Topology,
    /// DISCARD is offered with these limits.
    pub discard: Option<DiscardLimits>,
    /// WRITE_ZEROES is offered with these limits.
    pub write_zeroes: Option<WriteZeroesLimits>,
    /// The answer to GET_ID: padded with NUL.
    pub serial: [u8; 20],
}

/// `struct virtio_blk_topology`, in units of `logical_block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Topology {
    /// Logical blocks per physical block, as a power of two.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Suggested minimum I/O size in logical blocks.
    pub min_io_size: u16,
    /// Suggested optimal I/O size in logical blocks; 0 for none.
    pub opt_io_size: u32,
}

/// Limits of one DISCARD segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Longest segment in 512-byte sectors.
    pub max_sectors: u32,
    /// Alignment in 512-byte sectors at which discarding frees anything.
    pub alignment_sectors: u32,
}

/// Limits of one WRITE_ZEROES segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteZeroesLimits {
    /// Longest segment in 512-byte sectors.
    pub max_sectors: u32,
    /// A segment with the `unmap` flag may free blocks.
    pub may_unmap: bool,
}

/// One disk, shared by the session and all workers.
pub trait Device: Send + Sync + 'static {
    /// Where a worker's requests go.
    type Channel: IoChannel;

    /// The disk as it is offered; everything but the capacity stays the same
    /// for the life of the process.
    fn info(&self) -> DiskInfo;

    /// The capacity now, in 512-byte sectors. Read for every request, so it
    /// costs no more than an atomic load.
    fn capacity_sectors(&self) -> u64;

    /// Opens the I/O of worker `worker` (0, 1, ...). Called once on that
    /// worker's own thread, before its first request. No more than `slots`
    /// requests are in flight at any time, with tags below `slots`, and none
    /// before there is [room](IoChannel::room).
    ///
    /// # Errors
    /// What the host says; the process then does not start.
    fn channel(&self, worker: usize, slots: usize) -> io::Result<Self::Channel>;

    /// A worker's thread has all that it serves with: what it does not need for
    /// that can be given up. Called once on that thread.
    fn worker_ready(&self) {}

    /// The first ring is about to start: take the image for ourselves.
    ///
    /// # Errors
    /// Somebody else owns the image; no ring is started then, and the
    /// session asks again a little later.
    fn rings_started(&self) -> io::Result<()>;

    /// No ring runs, and none will for this front-end, or its guest moves to
    /// another process: let others have the image.
    fn rings_stopped(&self);
}

/// Names a request in flight; below the `slots` of its channel, and free for
/// the next request once its [`Completion`] was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

/// What to do. Ranges were checked against the capacity and are multiples of
/// 512 bytes. `stable` asks that the data is on stable storage before the
/// completion is reported (the guest runs its disk write-through).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the data buffers from `offset` on.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Store the data buffers from `offset` on.
    Write {
        /// First byte.
        offset: u64,
        /// Write-through.
        stable: bool,
    },
    /// Make every write completed before this was submitted stable.
    Flush,
    /// The range is not needed any more; it may read as anything.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeros from now on.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Blocks may be freed.
        unmap: bool,
        /// Write-through.
        stable: bool,
    },
}

impl Op {
    /// Which one, whatever its range.
    #[must_use]
    #[inline]
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Read { .. } => OpKind::Read,
            Self::Write { .. } => OpKind::Write,
            Self::Flush => OpKind::Flush,
            Self::Discard { .. } => OpKind::Discard,
            Self::WriteZeroes { .. } => OpKind::WriteZeroes,
        }
    }
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// See [`Op::Read`].
    Read,
    /// See [`Op::Write`].
    Write,
    /// See [`Op::Flush`].
    Flush,
    /// See [`Op::Discard`].
    Discard,
    /// See [`Op::WriteZeroes`].
    WriteZeroes,
}

impl OpKind {
    /// All of them.
    pub const ALL: [OpKind; 5] = [
        OpKind::Read,
        OpKind::Write,
        OpKind::Flush,
        OpKind::Discard,
        OpKind::WriteZeroes,
    ];

    /// In lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 2,
            Self::Discard => 3,
            Self::WriteZeroes => 4,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset } => write!(f, "a read at byte {offset}"),
            Self::Write { offset, .. } => write!(f, "a write at byte {offset}"),
            Self::Flush => f.write_str("a flush"),
            Self::Discard { offset, len } => {
                write!(f, "a discard of {len} bytes at byte {offset}")
            }
            Self::WriteZeroes { offset, len, .. } => {
                write!(f, "a write of {len} zeros at byte {offset}")
            }
        }
    }
}

/// How a request ended (virtio 1.2, 5.2.6): the status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoErr = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupp = 2,
}

/// A request that has ended; its buffers are not touched any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Which one.
    pub tag: Tag,
    /// How.
    pub status: Status,
}

/// A request that cannot be carried out now; its buffers are not touched any
/// more. It is not answered, and submitted again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenBack {
    /// Which one.
    pub tag: Tag,
    /// It is tried again after a pause that grows up to this.
    pub longest: Duration,
    /// Why: an errno, for people.
    pub why: i32,
}

/// A region of guest memory as it is mapped into this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRegion {
    /// The address of its first byte here.
    pub base: usize,
    /// Bytes.
    pub len: usize,
    /// Tells mappings apart that come to lie at the same address one after the
    /// other.
    pub id: u64,
    /// It is memory of this host (tmpfs, a memfd, hugetlbfs), and not a file
    /// whose pages some server may take its time to bring.
    pub in_memory: bool,
}

/// The I/O of one worker thread. Nothing here blocks but [`wait`](Self::wait),
/// and nothing allocates per request.
pub trait IoChannel {
    /// From now on this many requests may be in flight, with tags below that:
    /// no fewer than before, and no more than the `slots` that the channel was
    /// opened with. Not called while requests are fetched, so it may allocate.
    fn room(&mut self, requests: usize);

    /// Requests that are submitted from now on have their buffers in these
    /// regions. Others that were named before stay mapped until the requests
    /// that use them have ended.
    fn memory(&mut self, regions: &[HostRegion]);

    /// Takes a request. `data` are host addresses of guest memory; the list
    /// itself is only borrowed for this call. Their sum is a multiple of 512; the
    /// pieces have any length and alignment. Every request that is taken is
    /// reported by [`reap`](Self::reap) exactly once, also when it could not be
    /// issued, unless it is [given back](Self::give_back).
    ///
    /// # Safety
    /// Each piece is memory that is mapped for reads and writes until the
    /// completion is reported, and that the process accesses by raw pointers
    /// and [copies](crate::copy) only.
    unsafe fn submit(&mut self, tag: Tag, op: Op, data: &[libc::iovec]);

    /// Nobody waits any more for requests with more than `over` bytes: of those
    /// that were taken nothing more is begun, and they end with any status but
    /// `Ok` if something was left out. Called with `u64::MAX` before further
    /// requests are submitted. A device whose requests are all short may leave
    /// it out.
    fn abandon(&mut self, over: u64) {
        let _ = over;
    }

    /// Gives everything that was submitted to the kernel, with at most one
    /// system call, and none if there is nothing to give.
    fn flush_submissions(&mut self);

    /// Reports the requests that have ended, each once.
    fn reap(&mut self, done: &mut impl FnMut(Completion));

    /// Names the requests that cannot be carried out now, each once: it has
    /// ended as far as the channel is concerned. Called after each
    /// [`reap`](Self::reap). A disk that answers all with what the host says
    /// may leave it out.
    fn give_back(&mut self, back: &mut impl FnMut(GivenBack)) {
        let _ = back;
    }

    /// [`reap`](Self::reap) may have something to report. Asked many times
    /// while a worker looks for work, so it costs no more than a few loads.
    fn has_ended(&mut self) -> bool;

    /// From now on each signal of the eventfd `fd` ends a [`wait`](Self::wait),
    /// in place of the one that was watched at `index` before; `None` watches
    /// nothing there. Nobody else needs to make it silent. It stays open until
    /// the next call for this `index`. Indices are small, and an eventfd may
    /// be signalled already, which counts.
    fn watch(&mut self, index: usize, fd: Option<RawFd>);

    /// Sleeps until [`reap`](Self::reap) may have something to report, a
    /// watched eventfd is signalled, or `timeout` has passed. May return early.
    fn wait(&mut self, timeout: Option<Duration>);
}
