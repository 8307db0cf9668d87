//! A disk in memory whose I/O ends when told to.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use libc::iovec;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{
    Completion, Device, DiscardLimits, DiskInfo, GivenBack, HostRegion, IoChannel, Op, Status, Tag,
    Topology, WriteZeroesLimits,
};

/// A request as a channel was given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Submitted {
    pub tag: Tag,
    pub op: Op,
    /// Host address and length of each piece.
    pub pieces: Vec<(usize, usize)>,
}

#[derive(Debug, Default)]
struct Desk {
    submitted: Vec<Submitted>,
    ended: Vec<Completion>,
    back: Vec<GivenBack>,
    /// Requests end at once.
    instant: bool,
    waits: usize,
}

/// Where the test and the channels of a fake disk meet.
#[derive(Debug)]
pub(crate) struct Io {
    desk: Mutex<Desk>,
    changed: Condvar,
    wake: EventFd,
}

fn tag_of(desk: &Desk, sector: u64) -> Option<Tag> {
    let offset = sector * 512;
    let is_it = |request: &&Submitted| request.op == Op::Read { offset };
    Some(desk.submitted.iter().find(is_it)?.tag)
}

impl Io {
    fn new(instant: bool) -> Arc<Self> {
        let desk = Mutex::new(Desk {
            instant,
            ..Desk::default()
        });
        Arc::new(Self {
            desk,
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK).unwrap(),
        })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap()
    }

    /// What was submitted and has not ended.
    pub(crate) fn pending(&self) -> Vec<Submitted> {
        self.desk().submitted.clone()
    }

    /// Waits until this many requests are pending.
    pub(crate) fn wait_pending(&self, count: usize) -> Vec<Submitted> {
        let enough = |desk: &mut Desk| desk.submitted.len() < count;
        let (desk, late) = self
            .changed
            .wait_timeout_while(self.desk(), Duration::from_secs(20), enough)
            .unwrap();
        assert!(
            !late.timed_out(),
            "{count} requests did not come: {:?}",
            desk.submitted
        );
        desk.submitted.clone()
    }

    /// The pending read of this sector, if it has come.
    pub(crate) fn read_of(&self, sector: u64) -> Option<Tag> {
        tag_of(&self.desk(), sector)
    }

    /// Waits until this sector is being read.
    pub(crate) fn wait_read_of(&self, sector: u64) -> Tag {
        let absent = |desk: &mut Desk| tag_of(desk, sector).is_none();
        let (desk, _) = self
            .changed
            .wait_timeout_while(self.desk(), Duration::from_secs(20), absent)
            .unwrap();
        tag_of(&desk, sector).unwrap()
    }

    /// Ends a pending request.
    pub(crate) fn end(&self, tag: Tag, status: Status) {
        let mut desk = self.desk();
        let index = desk
            .submitted
            .iter()
            .position(|request| request.tag == tag)
            .unwrap();
        desk.submitted.remove(index);
        desk.ended.push(Completion { tag, status });
        drop(desk);
        self.wake.write(1).unwrap();
    }

    /// Gives a pending request back, as one that cannot be carried out now.
    #[cfg(test)]
    pub(crate) fn give_back(&self, tag: Tag) {
        let mut desk = self.desk();
        desk.submitted.retain(|request| request.tag != tag);
        desk.back.push(GivenBack {
            tag,
            longest: Duration::from_secs(1),
            why: libc::ENOSPC,
        });
        drop(desk);
        self.wake.write(1).unwrap();
    }

    /// How often a channel was told to wait.
    pub(crate) fn waits(&self) -> usize {
        self.desk().waits
    }
}

/// A disk of [`CAPACITY`] sectors that reads as [`PATTERN`].
#[derive(Debug)]
pub(crate) struct FakeDisk {
    pub io: Arc<Io>,
    pub info: DiskInfo,
    pub capacity: AtomicU64,
    /// Opening a channel fails.
    pub broken: bool,
}

/// What a fake disk reads as.
pub(crate) const PATTERN: u8 = 0x5a;

/// Sectors of a fake disk.
pub(crate) const CAPACITY: u64 = 1000;

/// A disk that offers everything.
pub(crate) fn info() -> DiskInfo {
    DiskInfo {
        read_only: false,
        logical_block_size: 512,
        topology: Topology::default(),
        discard: Some(DiscardLimits {
            max_sectors: 100,
            alignment_sectors: 8,
        }),
        write_zeroes: Some(WriteZeroesLimits {
            max_sectors: 200,
            may_unmap: true,
        }),
        serial: *b"a serial of twenty b",
    }
}

impl FakeDisk {
    /// Requests end when the test says so, or at once.
    pub(crate) fn new(instant: bool) -> Self {
        Self {
            io: Io::new(instant),
            info: info(),
            capacity: AtomicU64::new(CAPACITY),
            broken: false,
        }
    }

    /// A channel with room for all its requests.
    pub(crate) fn roomy_channel(&self, slots: usize) -> FakeChannel {
        let mut channel = self.channel(0, slots).unwrap();
        channel.room(slots);
        channel
    }
}

impl Device for FakeDisk {
    type Channel = FakeChannel;

    fn info(&self) -> DiskInfo {
        self.info
    }

    fn capacity_sectors(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn channel(&self, _worker: usize, slots: usize) -> io::Result<FakeChannel> {
        if self.broken {
            return Err(io::Error::other("no such disk"));
        }
        Ok(FakeChannel {
            io: Arc::clone(&self.io),
            slots,
            room: 0,
            ended: Vec::new(),
            mine: Vec::new(),
            watched: Vec::new(),
        })
    }

    fn rings_started(&self) -> io::Result<()> {
        Ok(())
    }

    fn rings_stopped(&self) {}
}

/// The I/O of a fake disk.
#[derive(Debug)]
pub(crate) struct FakeChannel {
    io: Arc<Io>,
    slots: usize,
    /// So many requests may be in flight.
    room: usize,
    /// Its own requests that ended at once.
    ended: Vec<Completion>,
    /// Its requests that the desk has, which other channels know as well.
    mine: Vec<Tag>,
    /// Negative where nothing is watched.
    watched: Vec<RawFd>,
}

impl FakeChannel {
    fn is_mine(&self, completion: &Completion) -> bool {
        self.mine.contains(&completion.tag)
    }
}

impl IoChannel for FakeChannel {
    fn room(&mut self, requests: usize) {
        assert!(self.room <= requests && requests <= self.slots);
        self.room = requests;
    }

    fn memory(&mut self, _regions: &[HostRegion]) {}

    unsafe fn submit(&mut self, tag: Tag, op: Op, data: &[iovec]) {
        let mut desk = self.io.desk();
        assert!((tag.0 as usize) < self.room, "{tag:?} has no room");
        let twice =
            desk.submitted.iter().any(|r| r.tag == tag) || self.ended.iter().any(|c| c.tag == tag);
        assert!(!twice, "{tag:?} is in flight");
        if let Op::Read { .. } = op {
            for piece in data {
                // SAFETY: the pieces of a read are writable until it has ended.
                unsafe {
                    piece
                        .iov_base
                        .cast::<u8>()
                        .write_bytes(PATTERN, piece.iov_len)
                };
            }
        }
        if desk.instant {
            self.ended.push(Completion {
                tag,
                status: Status::Ok,
            });
        } else {
            let pieces = data
                .iter()
                .map(|piece| (piece.iov_base.addr(), piece.iov_len))
                .collect();
            desk.submitted.push(Submitted { tag, op, pieces });
            self.mine.push(tag);
        }
        self.io.changed.notify_all();
    }

    fn flush_submissions(&mut self) {}

    fn give_back(&mut self, back: &mut impl FnMut(GivenBack)) {
        let mine = |one: &mut GivenBack| self.mine.contains(&one.tag);
        let given: Vec<_> = self.io.desk().back.extract_if(.., mine).collect();
        for one in given {
            self.mine.retain(|tag| *tag != one.tag);
            back(one);
        }
    }

    fn reap(&mut self, done: &mut impl FnMut(Completion)) {
        let mut ended = std::mem::take(&mut self.ended);
        let mut desk = self.io.desk();
        ended.extend(desk.ended.extract_if(.., |one| self.is_mine(one)));
        drop(desk);
        self.mine
            .retain(|tag| ended.iter().all(|one| one.tag != *tag));
        // In another order than they came.
        ended.into_iter().rev().for_each(done);
    }

    fn has_ended(&mut self) -> bool {
        !self.ended.is_empty() || self.io.desk().ended.iter().any(|one| self.is_mine(one))
    }

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        self.watched.resize(self.watched.len().max(index + 1), -1);
        self.watched[index] = fd.unwrap_or(-1);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let mut desk = self.io.desk();
        desk.waits += 1;
        if !self.ended.is_empty() || desk.ended.iter().any(|one| self.is_mine(one)) {
            return;
        }
        drop(desk);
        let own = self.io.wake.as_raw_fd();
        let mut fds: Vec<_> = std::iter::once(own)
            .chain(self.watched.iter().copied())
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let timeout = timeout.map_or(-1, |timeout| timeout.as_millis() as i32);
        // SAFETY: all entries are writable for the call.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        for fd in fds.iter().skip(1).filter(|fd| fd.revents != 0) {
            let mut count = [0u8; 8];
            // SAFETY: eight bytes are writable; eventfds do not block here.
            unsafe { libc::read(fd.fd, count.as_mut_ptr().cast(), count.len()) };
        }
        // Another channel may be the one that is meant.
        let desk = self.io.desk();
        if desk.ended.is_empty() {
            let _ = self.io.wake.read();
        }
    }
}
