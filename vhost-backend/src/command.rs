//! What the session tells a worker thread, and what it is told back.
//!
//! Commands go through a channel and an eventfd that wakes the worker; each
//! is answered exactly once, so the session knows that it has taken effect.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;
use crate::memory::dirty::Logging;
use crate::memory::inflight::Region;

/// Where a ring lies, in guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

/// Bytes of a ring's parts without the words for EVENT_IDX (virtio 1.2, 2.7).
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartBytes {
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

impl PartBytes {
    /// Of a ring with `size` entries.
    pub(crate) fn of(size: u16) -> Self {
        let bytes =
            |head: u64, entry: u64| u64::from(size).saturating_mul(entry).saturating_add(head);
        Self {
            descriptors: bytes(0, 16),
            avail: bytes(4, 2),
            used: bytes(4, 8),
        }
    }
}

/// All a worker needs to begin serving a ring.
#[derive(Debug)]
pub(crate) struct RingSetup {
    /// Entries; a power of two, at most the offered queue size.
    pub size: u16,
    pub addresses: RingAddresses,
    /// First avail index to fetch. The used index is read from guest memory.
    pub next_avail: u16,
    /// Where requests in flight are recorded; says better where to go on.
    pub inflight: Option<Region>,
    /// Where writes to the used ring are logged, while there is a log.
    pub used_log: Option<u64>,
    /// `VIRTIO_RING_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `None`: the front-end asked for polling (VU-12).
    pub kick: Option<EventFd>,
    /// Requests are executed only while this is set (VU-13).
    pub enabled: bool,
}

/// How the guest's writes and its feature bits are to be understood; shared
/// with the workers, which read it as they fetch each request.
#[derive(Debug, Default)]
pub(crate) struct Mode {
    /// Writes may be cached until a FLUSH (BLK-20 to BLK-22).
    pub writeback: std::sync::atomic::AtomicBool,
}

/// One order. Queues are numbered as the front-end numbers them.
#[derive(Debug)]
pub(crate) enum Command {
    /// Requests fetched from now on use this table. With `retire` the answer
    /// waits until no request in flight uses an older one.
    Memory { memory: Arc<Memory>, retire: bool },
    /// Serve a ring.
    Start { queue: usize, setup: RingSetup },
    /// Stop fetching, finish what was fetched, forget the ring; answered with
    /// the next avail index. Answered with `None` if it was not started. What
    /// is held is left to whoever comes next if `leave` is set and it is
    /// recorded; else it is tried once more, and answered.
    Stop { queue: usize, leave: bool },
    /// The ring has moved (its addresses were sent again while it runs).
    Move {
        queue: usize,
        addresses: RingAddresses,
        used_log: Option<u64>,
    },
    /// Log what is written there from now on; the last log is not written any
    /// more. If data was not logged before, the answer waits until no request
    /// is in flight of which nobody has noted what it writes.
    Log { logging: Logging },
    /// Stop fetching; answered once nothing is in flight and all that has
    /// ended is published. What is held stays so if `leave` is set and it is
    /// recorded; else it is tried once more, and answered.
    Pause { queue: usize, leave: bool },
    /// Execute requests, or leave them in the ring.
    Enable { queue: usize, on: bool },
    /// Replace the kick of a running ring.
    Kick { queue: usize, fd: Option<EventFd> },
    /// Where interrupts go; remembered also while the ring is stopped.
    Call { queue: usize, fd: Option<EventFd> },
    /// Where a broken ring is reported (RING-4).
    Err { queue: usize, fd: Option<EventFd> },
    /// The front-end has gone, and nobody waits for its requests: of those with
    /// more than `over` bytes nothing more is begun, and what does not end well
    /// is not answered. Until a ring starts.
    Abandon { over: u64 },
    /// Leave the thread. Rings have been stopped before.
    Quit,
}

/// What came of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Done.
    Done,
    /// A ring has stopped; the next avail index, if it was started.
    Stopped(Option<u16>),
    /// The ring could not be served: it does not lie in guest memory, or its
    /// record of requests in flight is not usable.
    Refused,
}

/// A command on its way to a worker.
#[derive(Debug)]
pub(crate) struct Order {
    pub command: Command,
    pub answer: SyncSender<Answer>,
}
