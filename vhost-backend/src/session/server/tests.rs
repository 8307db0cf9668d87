//! A scripted front-end against a server with a fake disk.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::device::{Device, Status};
use crate::memory::{Memory, RegionSpec};
use crate::session::features::PROTOCOL;
use crate::testing::fake::{FakeDisk, Io};
use crate::testing::guest::{Driver, Guest, WRITE, header};

pub(super) const NEED_REPLY: u32 = 8;
pub(super) const USER: u64 = 0x7f00_0000_0000;
pub(super) const SIZE: u64 = 0x10_0000;
const RING: u64 = 0x1000;
pub(super) const FEATURES: u64 = 1 << 30 | 1 << 32 | 1 << 9;

/// A server on a thread of its own, with a disk whose requests end when told.
pub(super) struct Running {
    pub(super) path: PathBuf,
    pub(super) io: Arc<Io>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(super) fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("session-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let disk = FakeDisk::new(false);
        let io = Arc::clone(&disk.io);
        let options = Options {
            queues: 2,
            queue_size: 64,
            workers: 1,
            cpus: Vec::new(),
            poll: crate::PollTime::Never,
        };
        let mut server = Server::new(Arc::new(disk), options).unwrap();
        let handle = server.handle();
        let thread = std::thread::spawn(move || server.run(Endpoint::Listener(listener)).unwrap());
        Self {
            path,
            io,
            handle,
            thread: Some(thread),
        }
    }

    fn stop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for request in self.io.pending() {
            self.io.end(request.tag, Status::Ok);
        }
        self.handle.stop();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A front-end that has negotiated everything.
pub(super) struct FrontEnd {
    pub(super) stream: UnixStream,
    pub(super) call: EventFd,
    pub(super) kick: EventFd,
    pub(super) file: File,
    pub(super) driver: Driver,
}

impl FrontEnd {
    pub(super) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // SAFETY: the name is a C string; a fresh descriptor is owned here.
        let file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(SIZE).unwrap();
        let spec = RegionSpec {
            guest: 0,
            size: SIZE,
            user: USER,
            offset: 0,
        };
        let memory = Arc::new(Memory::new(&[spec], vec![file.try_clone().unwrap()]).unwrap());
        let driver = Driver::new(&Guest { memory }, RING, 16);
        let event = || EventFd::new(0).unwrap();
        Self {
            stream,
            call: event(),
            kick: event(),
            file,
            driver,
        }
    }

    pub(super) fn negotiated(path: &Path) -> Self {
        let mut front = Self::connect(path);
        assert_ne!(front.get(1) & FEATURES, 0);
        assert_eq!(front.get(15), PROTOCOL.bits());
        front.send(16, 0, &PROTOCOL.bits().to_ne_bytes(), &[]);
        assert_eq!(front.ask(3, &[], &[]), 0);
        assert_eq!(front.ask(2, &FEATURES.to_ne_bytes(), &[]), 0);
        front
    }

    pub(super) fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let size = u32::try_from(payload.len()).unwrap();
        let mut bytes = [request, flags | 1, size].map(u32::to_ne_bytes).concat();
        bytes.extend_from_slice(payload);
        assert_eq!(
            self.stream.send_with_fds(&[&bytes[..]], fds).unwrap(),
            bytes.len()
        );
    }

    pub(super) fn reply(&mut self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request, 5));
        let mut payload = vec![0; usize::try_from(word(8)).unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        payload
    }

    pub(super) fn get(&mut self, request: u32) -> u64 {
        self.send(request, 0, &[], &[]);
        u64::from_ne_bytes(self.reply(request)[..].try_into().unwrap())
    }

    /// Sends a request that is to be acknowledged.
    pub(super) fn ask(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> u64 {
        self.send(request, NEED_REPLY, payload, fds);
        u64::from_ne_bytes(self.reply(request)[..].try_into().unwrap())
    }

    pub(super) fn ring(&mut self, request: u32, value: u32) -> u64 {
        self.ask(request, &[0, value].map(u32::to_ne_bytes).concat(), &[])
    }

    pub(super) fn share_memory(&mut self) {
        let region = [0, 0, SIZE, USER, 0].map(u64::to_ne_bytes).concat();
        let fd = self.file.as_raw_fd();
        assert_eq!(self.ask(37, &region, &[fd]), 0);
    }

    fn addresses(&mut self) -> u64 {
        self.addresses_logged(0, 0)
    }

    pub(super) fn addresses_logged(&mut self, flags: u64, log: u64) -> u64 {
        let at = self.driver.at;
        // Of the first word, the second half are the flags.
        let user = [
            flags << 32,
            USER + at.descriptors,
            USER + at.used,
            USER + at.avail,
            log,
        ];
        self.ask(9, &user.map(u64::to_ne_bytes).concat(), &[])
    }

    pub(super) fn start_ring(&mut self) {
        self.start_ring_at(0);
    }

    pub(super) fn start_ring_at(&mut self, base: u32) {
        assert_eq!(self.ring(8, 16), 0);
        assert_eq!(self.ring(10, base), 0);
        assert_eq!(self.addresses(), 0);
        let (kick, call) = (self.kick.as_raw_fd(), self.call.as_raw_fd());
        assert_eq!(self.ask(12, &0_u64.to_ne_bytes(), &[kick]), 0);
        assert_eq!(self.ask(13, &0_u64.to_ne_bytes(), &[call]), 0);
        assert_eq!(self.ring(18, 1), 0);
    }

    /// Offers a read of one sector into page 9, with its status in page 8.
    pub(super) fn read_sector(&mut self) {
        self.driver.guest.write(0x8000, &header(0, 1));
        self.driver.chain(
            0,
            &[(0x8000, 16, 0), (0x9000, 512, WRITE), (0x8100, 1, WRITE)],
        );
        self.driver.offer(0);
        self.kick.write(1).unwrap();
    }

    pub(super) fn get_vring_base(&mut self) -> Vec<u8> {
        self.send(11, 0, &[0; 8], &[]);
        self.reply(11)
    }
}

#[test]
fn vu_2_vu_14_a_ring_is_started_served_drained_and_stopped() {
    let server = Running::start("happy");
    let mut front = FrontEnd::negotiated(&server.path);
    assert_eq!((front.get(17), front.get(36)), (2, 509));
    assert_eq!((front.ask(34, &[], &[]), front.ask(34, &[], &[])), (0, 0));
    assert_eq!(front.ask(2, &FEATURES.to_ne_bytes(), &[]), 0);
    front.share_memory();
    front.start_ring();
    front.read_sector();
    let pending = server.io.wait_pending(1);
    front.send(11, 0, &[0; 8], &[]);
    // Not before the request has ended.
    front.stream.set_nonblocking(true).unwrap();
    let early = front.stream.read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
    front.stream.set_nonblocking(false).unwrap();
    server.io.end(pending[0].tag, Status::Ok);
    assert_eq!(front.reply(11), [0, 1].map(u32::to_ne_bytes).concat());
    assert_eq!(front.driver.take_used(), [(0, 513)]);
    assert_eq!(front.driver.guest.read(0x9000, 512), [0x5a; 512]);
    // Once when it was given, once for the request.
    assert_eq!(front.call.read().unwrap(), 2);
}

#[test]
fn vu_6_vu_42_vu_49_refused_requests_leave_the_connection_alone() {
    let server = Running::start("refused");
    let mut front = FrontEnd::negotiated(&server.path);
    let (end, pipe) = std::io::pipe().unwrap();
    for request in [0, 20, 33, 39, 45, 4711] {
        assert_ne!(front.ask(request, &[0; 8], &[]), 0, "{request}");
    }
    assert_ne!(front.ring(8, 100), 0);
    assert_ne!(front.ring(18, 2), 0);
    assert_ne!(front.ask(2, &(1_u64 << 63).to_ne_bytes(), &[]), 0);
    assert_ne!(front.ask(5, &[0; 8], &[pipe.as_raw_fd(); 40]), 0);
    assert_ne!(front.ask(12, &7_u64.to_ne_bytes(), &[pipe.as_raw_fd()]), 0);
    assert_ne!(front.ask(25, &[0; 20], &[]), 0);
    assert_eq!(front.get(1) & FEATURES, FEATURES);
    drop(pipe);
    // Closed by another thread, and so a little later.
    let mut left = 20_000;
    while !crate::sys::is_readable(&end) {
        assert!(left > 0, "a descriptor has leaked");
        left -= 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((&end).read(&mut [0]).unwrap(), 0);
}

#[test]
fn vu_5_acknowledgements_do_not_depend_on_get_features() {
    let server = Running::start("acks");
    let mut front = FrontEnd::connect(&server.path);
    front.send(16, 0, &PROTOCOL.bits().to_ne_bytes(), &[]);
    assert_eq!(front.ask(3, &[], &[]), 0);
    assert_eq!(front.ring(8, 16), 0);
    assert_ne!(front.ring(8, 17), 0);
}

#[test]
fn vu_17_vu_20_rings_and_regions_must_fit() {
    let server = Running::start("fit");
    let mut front = FrontEnd::negotiated(&server.path);
    let region = [0, 0, 2 * SIZE, USER, 0].map(u64::to_ne_bytes).concat();
    let fd = front.file.as_raw_fd();
    assert_ne!(front.ask(37, &region, &[fd]), 0);
    front.share_memory();
    front.driver.at.descriptors = 2 * SIZE;
    assert_ne!(front.addresses(), 0);
}

#[test]
fn vu_24_memory_under_a_ring_stays_and_goes_once_it_has_stopped() {
    let server = Running::start("memory");
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.start_ring();
    let region = [0, 0, SIZE, USER, 0].map(u64::to_ne_bytes).concat();
    assert_ne!(front.ask(38, &region, &[]), 0);
    front.get_vring_base();
    assert_eq!(front.ask(38, &region, &[]), 0);
    assert_ne!(front.ask(38, &region, &[]), 0);
}

#[test]
fn vu_16_vu_18_the_base_may_come_last() {
    let server = Running::start("base");
    let mut front = FrontEnd::negotiated(&server.path);
    front.driver.avail = 5;
    front.driver.avail_idx().store(5, Ordering::Release);
    front.driver.used = 5;
    front.driver.used_idx().store(5, Ordering::Release);
    let kick = front.kick.as_raw_fd();
    assert_eq!(front.ask(12, &0_u64.to_ne_bytes(), &[kick]), 0);
    assert_eq!(front.addresses(), 0);
    assert_eq!(front.ring(8, 16), 0);
    front.share_memory();
    assert_eq!(front.ring(10, 5), 0);
    assert_eq!(front.ring(18, 1), 0);
    front.read_sector();
    let pending = server.io.wait_pending(1);
    server.io.end(pending[0].tag, Status::Ok);
    assert_eq!(
        front.get_vring_base(),
        [0, 6].map(u32::to_ne_bytes).concat()
    );
    assert_eq!(front.driver.take_used(), [(0, 513)]);
}

#[test]
fn vu_43_vu_44_vu_48_the_next_front_end_waits_until_the_first_is_drained() {
    let server = Running::start("next");
    let mut first = FrontEnd::negotiated(&server.path);
    first.share_memory();
    first.start_ring();
    first.read_sector();
    let pending = server.io.wait_pending(1);
    let mut second = FrontEnd::connect(&server.path);
    second.send(1, 0, &[], &[]);
    drop(first);
    server.io.end(pending[0].tag, Status::Ok);
    assert_ne!(second.reply(1), [0; 8]);
    let status = server.handle.status();
    assert_eq!(
        (status.rings_running, status.memory_regions, status.features),
        (0, 0, 0)
    );
}

#[test]
fn vu_1_garbage_ends_this_connection_only() {
    let server = Running::start("garbage");
    let mut front = FrontEnd::negotiated(&server.path);
    front.stream.write_all(&[0xff; 12]).unwrap();
    assert_eq!(front.stream.read(&mut [0]).unwrap_or(0), 0);
    FrontEnd::negotiated(&server.path);
}

#[test]
fn vu_15_vu_27_a_new_capacity_is_told_while_a_ring_runs() {
    let server = Running::start("capacity");
    let mut front = FrontEnd::negotiated(&server.path);
    let (mut back, theirs) = UnixStream::pair().unwrap();
    assert_eq!(front.ask(21, &[], &[theirs.as_raw_fd()]), 0);
    drop(theirs);
    server.handle.capacity_changed();
    front.share_memory();
    back.set_nonblocking(true).unwrap();
    assert_eq!(
        back.read(&mut [0; 12]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    back.set_nonblocking(false).unwrap();
    back.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    front.start_ring();
    let mut message = [0; 12];
    back.read_exact(&mut message).unwrap();
    assert_eq!(message[..], [2_u32, 1, 0].map(u32::to_ne_bytes).concat());
    // A new channel replaces the old one, which is closed.
    let (_new, theirs) = UnixStream::pair().unwrap();
    assert_eq!(front.ask(21, &[], &[theirs.as_raw_fd()]), 0);
    assert_eq!(back.read(&mut message).unwrap(), 0);
}

#[test]
fn vu_25_vu_26_configuration_of_any_length_and_errors_without_bytes() {
    let server = Running::start("config");
    let mut front = FrontEnd::negotiated(&server.path);
    let mut config = |offset: u32, size: u32| {
        let mut payload = [offset, size, 0].map(u32::to_ne_bytes).concat();
        payload.resize(12 + usize::try_from(size).unwrap(), 0);
        front.send(24, 0, &payload, &[]);
        front.reply(24)
    };
    for size in [1, 36, 48, 57, 60, 256] {
        assert_eq!(config(0, size).len(), 12 + usize::try_from(size).unwrap());
    }
    assert_eq!(
        config(0, 36)[12..20],
        crate::testing::fake::CAPACITY.to_le_bytes()
    );
    for (offset, size) in [(0, 257), (250, 10), (u32::MAX, 1), (0, 0)] {
        assert_eq!(
            config(offset, size),
            [offset, 0, 0].map(u32::to_ne_bytes).concat()
        );
    }
    let set = |flags: u32, value: u8| {
        [&[32, 1, flags].map(u32::to_ne_bytes).concat()[..], &[value]].concat()
    };
    assert_eq!(front.ask(25, &set(0, 0), &[]), 0);
    assert_eq!(front.ask(25, &set(1, 1), &[]), 0);
    assert_ne!(front.ask(25, &set(0, 2), &[]), 0);
}

#[test]
fn vu_46_stop_drains_and_then_closes_the_socket() {
    let mut server = Running::start("stop");
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.start_ring();
    front.read_sector();
    let pending = server.io.wait_pending(1);
    server.handle.stop();
    server.io.end(pending[0].tag, Status::Ok);
    server.stop();
    assert_eq!(front.driver.take_used(), [(0, 513)]);
    assert_eq!(front.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_connected_endpoint_ends_with_its_front_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let options = Options {
        queues: 1,
        queue_size: 64,
        workers: 1,
        cpus: Vec::new(),
        poll: crate::PollTime::Never,
    };
    let mut server = Server::new(Arc::new(FakeDisk::new(true)), options).unwrap();
    drop(theirs);
    server.run(Endpoint::Connected(ours)).unwrap();
}

/// A disk that somebody else has until it is asked for the second time.
struct Busy {
    disk: FakeDisk,
    asked: std::sync::atomic::AtomicUsize,
    given_back: std::sync::atomic::AtomicUsize,
}

impl Device for Busy {
    type Channel = crate::testing::fake::FakeChannel;

    fn info(&self) -> crate::DiskInfo {
        self.disk.info()
    }

    fn capacity_sectors(&self) -> u64 {
        self.disk.capacity_sectors()
    }

    fn channel(&self, worker: usize, slots: usize) -> io::Result<Self::Channel> {
        self.disk.channel(worker, slots)
    }

    fn rings_started(&self) -> io::Result<()> {
        match self.asked.fetch_add(1, Ordering::AcqRel) {
            0 => Err(io::Error::other("in use")),
            _ => Ok(()),
        }
    }

    fn rings_stopped(&self) {
        self.given_back.fetch_add(1, Ordering::AcqRel);
    }
}

#[test]
fn a_ring_starts_by_itself_as_soon_as_the_image_is_free() {
    let disk = FakeDisk::new(false);
    let io = Arc::clone(&disk.io);
    let busy = Arc::new(Busy {
        disk,
        asked: 0.into(),
        given_back: 0.into(),
    });
    let path = std::env::temp_dir().join(format!("session-{}-busy", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let options = Options {
        queues: 1,
        queue_size: 64,
        workers: 1,
        cpus: Vec::new(),
        poll: crate::PollTime::Never,
    };
    let mut server = Server::new(Arc::clone(&busy), options).unwrap();
    let handle = server.handle();
    let thread = std::thread::spawn(move || server.run(Endpoint::Listener(listener)).unwrap());
    let mut front = FrontEnd::negotiated(&path);
    front.share_memory();
    front.start_ring();
    // Messages are served meanwhile.
    assert_ne!(front.get(1), 0);
    front.read_sector();
    let pending = io.wait_pending(1);
    assert_eq!(busy.asked.load(Ordering::Acquire), 2);
    io.end(pending[0].tag, Status::Ok);
    front.get_vring_base();
    // Its guest may only be paused.
    assert_eq!(busy.given_back.load(Ordering::Acquire), 0);
    handle.stop();
    thread.join().unwrap();
    assert_eq!(busy.given_back.load(Ordering::Acquire), 1);
    std::fs::remove_file(&path).unwrap();
}
