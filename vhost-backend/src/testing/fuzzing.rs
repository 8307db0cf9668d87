//! What fuzz targets need of the inside (feature `fuzzing`): one queue over
//! memory that the target owns, and requests judged over plain bytes.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod chains;
mod records;

use std::fs::File;
use std::ptr::with_exposed_provenance;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, sync_channel};

use crate::command::{Answer, Mode, RingAddresses, RingSetup};
use crate::device::{DiskInfo, Op, Status};
use crate::held::Holding;
use crate::limits::gate::Gate;
use crate::memory::copy::Unreachable;
use crate::memory::{Memory, RegionSpec};
use crate::queue::chain::Scratch;
use crate::queue::disk::Disk;
use crate::queue::epochs::Epochs;
use crate::queue::request::{self, ChainReader, Data, Parsed, Terms};
use crate::queue::tags::Tags;
use crate::queue::{Common, Queue};
use crate::session::config_space::ConfigSpace;
use crate::session::device_state::DeviceState;
use crate::testing::fake::{self, FakeDisk, Io};
use crate::testing::guest::memfd;

pub use chains::{Found, walk};
pub use records::{Claim, Recovered, mark, recover};

/// What a read puts into its buffers.
pub const PATTERN: u8 = fake::PATTERN;

/// A file of this many bytes that can be shared as guest memory.
#[must_use]
pub fn memory_file(bytes: u64) -> File {
    memfd(bytes)
}

/// A region of guest memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Guest physical address.
    pub guest: u64,
    /// Length.
    pub size: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// Guest addresses of the descriptor table, the available and the used ring.
pub type Place = [u64; 3];

fn addresses([descriptors, avail, used]: Place) -> RingAddresses {
    RingAddresses {
        descriptors,
        avail,
        used,
    }
}

/// A request as the disk was given it.
#[derive(Debug)]
pub struct Submitted {
    /// The descriptor head.
    pub head: u16,
    /// What to do.
    pub op: Op,
    /// What its pieces of guest memory hold now.
    pub data: Vec<u8>,
}

/// What a guest reads of its disk's configuration.
#[must_use]
pub fn config_space(
    info: &DiskInfo,
    capacity: u64,
    queues: u16,
    queue_size: u16,
    writeback: bool,
) -> [u8; 256] {
    let space = ConfigSpace {
        info,
        capacity,
        queues,
        queue_size,
        writeback,
    };
    space.bytes()
}

/// A saved state as it would be saved again, if it is one.
#[must_use]
pub fn device_state(bytes: &[u8]) -> Option<Vec<u8>> {
    DeviceState::decode(bytes).map(|state| state.encode())
}

/// A queue with a disk whose requests end when told to.
pub struct Rig {
    queue: Queue,
    common: Common<FakeDisk>,
    io: Arc<Io>,
    stopping: Option<Receiver<Answer>>,
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.queue.fmt(f)
    }
}

impl Rig {
    /// A queue for rings of up to `slots` entries of a disk of `capacity`
    /// sectors, without memory.
    #[must_use]
    pub fn new(slots: u16, info: DiskInfo, capacity: u64, writeback: bool) -> Self {
        let disk = Arc::new(FakeDisk {
            info,
            capacity: AtomicU64::new(capacity),
            ..FakeDisk::new(false)
        });
        let mode = Mode {
            writeback: AtomicBool::new(writeback),
        };
        Self {
            io: Arc::clone(&disk.io),
            queue: Queue::new(0, 0, <_>::default()),
            common: Common {
                channel: disk.roomy_channel(usize::from(slots)),
                epochs: Epochs::new(Arc::default()),
                scratch: Scratch::new(),
                disk: Disk::new(disk, Arc::new(mode)),
                tags: Tags::full(usize::from(slots)),
                dirty: None,
                gate: Gate::default(),
                timed: false,
                holding: Holding::default(),
            },
            stopping: None,
        }
    }

    /// Replaces the memory table, and moves the ring along.
    pub fn share(&mut self, file: &File, regions: &[Region]) {
        let specs: Vec<_> = (1..)
            .zip(regions)
            .map(|(number, region)| RegionSpec {
                guest: region.guest,
                size: region.size,
                user: number << 40,
                offset: region.offset,
            })
            .collect();
        let files = regions.iter().map(|_| file.try_clone().unwrap()).collect();
        let memory = Memory::new(&specs, files).unwrap();
        self.common.epochs.replace(Arc::new(memory));
        self.queue.relocate(&self.common.epochs, None);
    }

    /// Whether the ring is served.
    pub fn start(&mut self, size: u16, place: Place, next_avail: u16, event_idx: bool) -> bool {
        let setup = RingSetup {
            size,
            addresses: addresses(place),
            next_avail,
            event_idx,
            kick: None,
            enabled: true,
            inflight: None,
            used_log: None,
        };
        self.queue.start(&setup, &self.common.epochs)
    }

    /// Whether the ring lies there.
    pub fn relocate(&mut self, place: Place) -> bool {
        let Self { queue, common, .. } = self;
        queue.relocate(&common.epochs, Some(addresses(place)))
    }

    /// Requests are executed, or left in the ring.
    pub fn enable(&mut self, on: bool) {
        self.queue.enable(on);
    }

    /// Fetches one chain, if there is one.
    pub fn fetch(&mut self) -> bool {
        self.common.scratch.begin_turn();
        self.queue.fetch(1, &mut self.common) == 1
    }

    /// What was submitted and has not ended.
    #[must_use]
    pub fn pending(&self) -> Vec<Submitted> {
        let pending = self.io.pending().into_iter();
        pending
            .map(|request| Submitted {
                head: self.common.tags.head(request.tag).unwrap(),
                op: request.op,
                data: request
                    .pieces
                    .iter()
                    .flat_map(|&(host, len)| {
                        // SAFETY: buffers of a request in flight stay mapped;
                        // nobody writes them while this thread reads.
                        unsafe { std::slice::from_raw_parts(with_exposed_provenance(host), len) }
                    })
                    .copied()
                    .collect(),
            })
            .collect()
    }

    /// Ends a pending request.
    pub fn end(&mut self, head: u16, status: Status) {
        let tag = self.common.tags.of(0, head).unwrap();
        self.io.end(tag, status);
        self.common.reap(std::slice::from_mut(&mut self.queue));
    }

    /// Shows the driver what was answered.
    pub fn publish(&mut self) {
        self.queue.publish();
    }

    /// Asks for a kick; whether there is something to fetch already.
    pub fn arm(&mut self) -> bool {
        self.queue.set_polled(false);
        self.queue.arm()
    }

    /// Fetches no more.
    pub fn stop(&mut self) {
        let (answer, receiver) = sync_channel(1);
        self.queue.stop(answer, true, &mut self.common.holding);
        self.stopping = Some(receiver);
    }

    /// The answer to [`stop`](Self::stop), once nothing is in flight: the
    /// next avail index, if the ring was started.
    pub fn settle(&mut self) -> Option<Option<u16>> {
        if !self.queue.settle() {
            return None;
        }
        match self.stopping.take()?.try_recv().unwrap() {
            Answer::Stopped(next_avail) => Some(next_avail),
            other => unreachable!("{other:?}"),
        }
    }
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Judged {
    /// Answered, with these bytes before the status.
    Done(Status, Vec<u8>),
    /// To be carried out.
    Io {
        /// What to do.
        op: Op,
        /// What is left of the readable bytes, if it is to be written.
        out: Option<Vec<u8>>,
        /// Bytes to be read into what is writable.
        into: u32,
    },
}

struct Bytes<'a> {
    readable: &'a [u8],
    writable: u64,
    written: Vec<u8>,
}

impl ChainReader for Bytes<'_> {
    fn readable(&self) -> u64 {
        self.readable.len() as u64
    }

    fn writable(&self) -> u64 {
        self.writable - self.written.len() as u64
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Unreachable> {
        let (now, later) = self.readable.split_at(into.len().min(self.readable.len()));
        into[..now.len()].copy_from_slice(now);
        self.readable = later;
        Ok(now.len())
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, Unreachable> {
        let room = usize::try_from(self.writable()).unwrap().min(from.len());
        self.written.extend_from_slice(&from[..room]);
        Ok(room)
    }
}

/// Judges a request that consists of these readable bytes and this many
/// writable ones before its status.
#[must_use]
pub fn judge(
    readable: &[u8],
    writable: u64,
    info: &DiskInfo,
    capacity: u64,
    writeback: bool,
) -> Judged {
    let terms = Terms {
        info,
        capacity,
        writeback,
    };
    let mut chain = Bytes {
        readable,
        writable,
        written: Vec::new(),
    };
    match request::parse(&mut chain, &terms) {
        Parsed::Done(status, written) => {
            assert_eq!(u32::try_from(chain.written.len()), Ok(written));
            Judged::Done(status, chain.written)
        }
        Parsed::Unreachable => unreachable!("these bytes are our own"),
        Parsed::Io(op, data) => {
            assert!(chain.written.is_empty());
            Judged::Io {
                op,
                out: (data == Data::Readable).then(|| chain.readable.to_vec()),
                into: match data {
                    Data::Writable(bytes) => bytes,
                    Data::None | Data::Readable => 0,
                },
            }
        }
    }
}
