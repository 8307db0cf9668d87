//! The stock daemon with a plain device model of its own: it has nothing in
//! common with our session but the disk.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use extentd::disk::Disk;
use front_end::codes::{feature, status};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_backend::{Device, IoChannel, Op, Tag};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap,
    Permissions,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

thread_local! {
    /// The disk's I/O belongs to the thread that opens it.
    static CHANNEL: RefCell<Option<<Disk as Device>::Channel>> = const { RefCell::new(None) };
}

/// What it offers.
pub fn features(read_only: bool) -> u64 {
    let always = feature::FLUSH
        | feature::EVENT_IDX
        | feature::INDIRECT
        | feature::PROTOCOL_FEATURES
        | feature::VERSION_1;
    let kind = if read_only {
        feature::RO
    } else {
        feature::DISCARD | feature::WRITE_ZEROES
    };
    always | kind
}

/// Serves one front-end on `socket`, on a thread that ends with it.
pub fn serve(disk: Arc<Disk>, socket: &Path) -> JoinHandle<()> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let backend = Stock {
        disk,
        memory: memory.clone(),
        event_idx: false,
    };
    let backend = Arc::new(RwLock::new(backend));
    let mut listener = Listener::new(socket, true).unwrap();
    std::thread::spawn(move || {
        let mut daemon = VhostUserDaemon::new("stock".to_owned(), backend, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // How it says that the front-end has gone.
        let _ = daemon.wait();
    })
}

struct Stock {
    disk: Arc<Disk>,
    memory: Memory,
    event_idx: bool,
}

/// A chain taken apart: guest ranges of what is read and what is written.
struct Chain {
    readable: Vec<(GuestAddress, u32)>,
    writable: Vec<(GuestAddress, u32)>,
}

impl Stock {
    /// Serves a chain; the bytes written.
    fn answer(&self, memory: &GuestMemoryMmap, mut chain: Chain) -> u32 {
        let last = chain.writable.pop().unwrap();
        assert_eq!(last.1, 1, "the driver gives the status a descriptor");
        let (status, written) = self.judge(memory, &chain);
        memory.write_obj(status, last.0).unwrap();
        written + 1
    }

    fn judge(&self, memory: &GuestMemoryMmap, chain: &Chain) -> (u8, u32) {
        let (header, data) = chain.readable.split_first().unwrap();
        let kind: u32 = memory.read_obj(header.0).unwrap();
        let sector: u64 = memory.read_obj(GuestAddress(header.0.0 + 8)).unwrap();
        let refused = (status::IOERR, 0);
        let sum = |parts: &[(GuestAddress, u32)]| parts.iter().map(|part| part.1).sum::<u32>();
        let info = self.disk.info();
        let fits = |sector: u64, sectors: u64| {
            let end = sector.checked_add(sectors);
            end.is_some_and(|end| end <= self.disk.capacity_sectors())
        };
        if info.read_only && [1, 11, 13].contains(&kind) {
            return refused;
        }
        match kind {
            0 | 1 => {
                let parts = if kind == 0 { &chain.writable[..] } else { data };
                let bytes = sum(parts);
                if bytes % 512 != 0 || !fits(sector, u64::from(bytes / 512)) {
                    return refused;
                }
                if bytes == 0 {
                    return (status::OK, 0);
                }
                let offset = sector * 512;
                let (op, written) = match kind {
                    0 => (Op::Read { offset }, bytes),
                    _ => (
                        Op::Write {
                            offset,
                            stable: false,
                        },
                        0,
                    ),
                };
                self.run(memory, op, parts, written)
            }
            4 => self.run(memory, Op::Flush, &[], 0),
            8 => {
                let mut id = &info.serial[..];
                for &(at, length) in &chain.writable {
                    let part = id.len().min(length as usize);
                    memory.write_slice(&id[..part], at).unwrap();
                    id = &id[part..];
                }
                (status::OK, sum(&chain.writable).min(20))
            }
            11 | 13 => {
                if sum(data) != 16 {
                    return refused;
                }
                let mut bytes = [0; 16];
                memory.read_slice(&mut bytes, data[0].0).unwrap();
                let sector = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                let sectors = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
                let flags = u32::from_le_bytes(bytes[12..].try_into().unwrap());
                if flags > u32::from(kind == 13) {
                    return (status::UNSUPP, 0);
                }
                if !fits(sector, u64::from(sectors)) {
                    return refused;
                }
                if sectors == 0 {
                    return (status::OK, 0);
                }
                let (offset, len) = (sector * 512, u64::from(sectors) * 512);
                let op = match kind {
                    11 => Op::Discard { offset, len },
                    _ => Op::WriteZeroes {
                        offset,
                        len,
                        unmap: flags == 1,
                        stable: false,
                    },
                };
                self.run(memory, op, &[], 0)
            }
            _ => (status::UNSUPP, 0),
        }
    }

    /// Carries an operation out, alone.
    fn run(
        &self,
        memory: &GuestMemoryMmap,
        op: Op,
        parts: &[(GuestAddress, u32)],
        written: u32,
    ) -> (u8, u32) {
        let mut pieces = Vec::new();
        for &(at, length) in parts {
            for slice in memory
                .get_slices(at, length as usize, Permissions::ReadWrite)
                .unwrap()
            {
                let slice = slice.unwrap();
                pieces.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        let ended = CHANNEL.with_borrow_mut(|channel| {
            let channel = channel.get_or_insert_with(|| {
                let mut channel = self.disk.channel(0, 64).unwrap();
                channel.room(64);
                channel
            });
            // SAFETY: the pieces are guest memory, which is kept while this waits
            // for the end.
            unsafe { channel.submit(Tag(0), op, &pieces) };
            let mut ended = None;
            while ended.is_none() {
                channel.flush_submissions();
                channel.reap(&mut |completion| ended = Some(completion.status));
                if ended.is_none() {
                    channel.wait(None);
                }
            }
            ended.unwrap() as u8
        });
        (ended, if ended == status::OK { written } else { 0 })
    }
}

impl VhostUserBackendMut for Stock {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        features(self.disk.info().read_only)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self.memory.memory();
        let vring = &vrings[0];
        loop {
            vring.disable_notification().unwrap();
            loop {
                let popped = vring
                    .get_mut()
                    .get_queue_mut()
                    .pop_descriptor_chain(memory.clone());
                let Some(chain) = popped else { break };
                let head = chain.head_index();
                let part = |d: virtio_queue::desc::split::Descriptor| (d.addr(), d.len());
                let parts = Chain {
                    readable: chain.clone().readable().map(part).collect(),
                    writable: chain.writable().map(part).collect(),
                };
                let written = self.answer(&memory, parts);
                vring.add_used(head, written).unwrap();
                if vring.needs_notification().unwrap() {
                    vring.signal_used_queue().unwrap();
                }
            }
            if !vring.enable_notification().unwrap() {
                return Ok(());
            }
        }
    }
}
