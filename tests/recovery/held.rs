//! Requests that the host fails are held: the guest sees no error, all else
//! goes on, and all of it lands when there is room or the disk works again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use extentd::options::config::OnError;
use extentd::protocol::Request;
use extentd::protocol::client::Client;
use front_end::codes::{feature, protocol, status};
use front_end::{Buffer, Daemon, Driver, GuestMemory, Like, Op, Session, Setup, Wanted, limit};
use rig::file_systems::{BTRFS, EXT4, Made, Mounted, XFS, occupy, sync};
use rig::files::read_direct;
use rig::model::{SECTOR, content};
use rig::operator::{ask, wait_info};
use rig::scratch::folder;
use serde_json::Value;
use tempfile::TempDir;

use crate::faults::Thin;

mod ends;
mod many;

/// Bytes of a request.
const LENGTH: u32 = 4096;
const BLOCK: usize = LENGTH as usize;
/// Those that find blocks come from the start of the image.
const WRITTEN: usize = 1 << 20;
/// Bytes of the image.
const IMAGE: usize = 32 << 20;
/// Bytes of guest memory, and where data lie in it.
const MEMORY: u64 = 32 << 20;
const DATA: u64 = 8 << 20;
/// `VHOST_USER_PROTOCOL_F_DEVICE_STATE`
const DEVICE_STATE: u64 = 1 << 19;
/// Far less than a stop that waits, and far more than one that does not.
const PROMPT: Duration = Duration::from_secs(8);

/// A small file system with an image that is mostly holes.
pub struct Small {
    host: Mounted,
    pub image: PathBuf,
}

impl Small {
    /// `None`, with the reason printed, where this host cannot.
    pub fn new() -> Option<Small> {
        Small::of(Made {
            megabytes: 64,
            ..EXT4
        })
    }

    fn of(made: Made) -> Option<Small> {
        let host = Mounted::new(made)?;
        let image = host.path("image");
        std::fs::write(&image, content(3, 0..WRITTEN / SECTOR)).unwrap();
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(IMAGE as u64).unwrap();
        Some(Small { host, image })
    }

    pub fn fill(&self) {
        sync(&self.host);
        drop(occupy(&self.host, "filler"));
        sync(&self.host);
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.host.path("filler")).unwrap();
        sync(&self.host);
    }
}

/// A process, and a guest whose ring has many entries.
pub struct Guest {
    daemon: Option<Daemon>,
    pub control: PathBuf,
    pub session: Option<Session>,
    memory: GuestMemory,
    driver: Driver,
    arguments: Vec<String>,
    image: PathBuf,
    files: TempDir,
}

impl Guest {
    /// With a record of requests in flight, or without.
    pub fn new(image: &Path, recorded: bool, arguments: &[&str]) -> Guest {
        let files = folder("held");
        let control = files.path().join("control");
        let mut all = vec!["--threads", "1", "--num-queues", "1"];
        all.extend(["--control-path", control.to_str().unwrap()]);
        all.extend(arguments);
        let daemon =
            Daemon::start(&rig::extentd!(), &files.path().join("socket"), image, &all).unwrap();
        let memory = GuestMemory::flat(MEMORY).unwrap();
        let setup = Setup {
            size: 2048,
            features: feature::ALL,
            indirect: 16,
        };
        let driver = Driver::new(&memory, 0, setup).unwrap();
        let mut guest = Guest {
            arguments: all.iter().map(|&one| one.to_owned()).collect(),
            image: image.to_owned(),
            daemon: Some(daemon),
            control,
            session: None,
            memory,
            driver,
            files,
        };
        guest.attach(recorded);
        guest
    }

    fn attach(&mut self, recorded: bool) {
        let leave = if recorded {
            0
        } else {
            protocol::INFLIGHT_SHMFD
        };
        let wanted = Wanted {
            protocol: (protocol::ALL | DEVICE_STATE) & !leave,
            ..Wanted::default()
        };
        let inflight = self.session.take().and_then(|session| session.inflight);
        let mut session = Session::open(self.daemon().socket(), Like::Qemu, wanted).unwrap();
        session.inflight = inflight;
        session.start(&self.memory, &[self.driver.ring()]).unwrap();
        self.session = Some(session);
    }

    /// Another process goes on where this one `ends`.
    pub fn next_process(&mut self, ends: impl FnOnce(Daemon)) {
        ends(self.daemon.take().unwrap());
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        let socket = self.files.path().join("socket");
        let next = Daemon::start(&rig::extentd!(), &socket, &self.image, &arguments);
        self.daemon = Some(next.unwrap());
        self.attach(true);
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// The sectors of the request of this number, and where its data lie.
    fn at(number: usize) -> (usize, u64) {
        (number * BLOCK / SECTOR, DATA + (number * BLOCK) as u64)
    }

    /// Writes these blocks, and waits for nothing.
    pub fn write(&mut self, numbers: impl Iterator<Item = usize>) {
        for number in numbers {
            let (sector, at) = Self::at(number);
            let bytes = content(9, sector..sector + BLOCK / SECTOR);
            self.memory.write(at, &bytes).unwrap();
            let data = [Buffer::readable(at, LENGTH)];
            assert!(
                self.driver
                    .submit(Op::Write, sector as u64, &data, number as u64)
            );
        }
        self.driver.publish().unwrap();
    }

    /// So many requests end, with this status; which.
    pub fn end(&mut self, count: usize, wanted: u8) -> Vec<usize> {
        let one = |driver: &mut Driver| {
            let done = driver.wait(limit()).unwrap();
            assert_eq!(done.status, wanted, "{done:?}");
            usize::try_from(done.tag).unwrap()
        };
        let mut ended: Vec<_> = (0..count).map(|_| one(&mut self.driver)).collect();
        ended.sort_unstable();
        ended
    }

    /// Nothing has ended.
    pub fn nothing(&mut self) {
        assert_eq!(self.driver.pop().unwrap(), None);
    }

    /// Reads and writes of blocks that there are, and a flush, go on.
    pub fn others_go_on(&mut self) {
        let at = DATA + (IMAGE / 2) as u64;
        for _ in 0..10 {
            let done = self.driver.read(8, at, LENGTH).unwrap();
            assert_eq!(done.status, status::OK);
            let done = self.driver.write(8, at, LENGTH).unwrap();
            assert_eq!(done.status, status::OK);
            assert_eq!(self.driver.flush().unwrap().status, status::OK);
        }
    }

    pub fn stats(&self) -> Value {
        ask(&self.control, &Request::Stats {})
    }

    pub fn wait_held(&self, count: usize) {
        wait_info(&self.control, "held requests", |info| {
            info["disk"]["held_requests"] == count
        });
    }

    /// The process ends well.
    pub fn finish(self) {
        assert!(self.daemon.unwrap().terminate().unwrap().success());
    }

    /// Lines of the log with these words.
    pub fn said(&self, words: &str) -> usize {
        let lines = self.daemon().stderr();
        lines.iter().filter(|line| line.contains(words)).count()
    }
}

/// The image has what was written there.
pub fn landed(image: &Path, numbers: impl Iterator<Item = usize>) {
    has(&read_direct(image), numbers);
}

fn has(bytes: &[u8], numbers: impl Iterator<Item = usize>) {
    for number in numbers {
        let (sector, _) = Guest::at(number);
        let found = &bytes[sector * SECTOR..][..BLOCK];
        assert!(
            found == content(9, sector..sector + BLOCK / SECTOR),
            "block {number}"
        );
    }
}

/// Blocks that the image does not have: `count` of them.
pub fn holes(count: usize) -> std::ops::Range<usize> {
    let first = WRITTEN / BLOCK;
    first..first + count
}

/// A full file system, and a guest that has so many requests held; `None`,
/// with the reason printed, where this host cannot.
fn full(recorded: bool, count: usize) -> Option<(Small, Guest)> {
    let small = Small::new()?;
    let mut guest = Guest::new(&small.image, recorded, &[]);
    small.fill();
    guest.write(holes(count));
    guest.wait_held(count);
    Some((small, guest))
}

fn held_until_there_is_room(small: Option<Small>, arguments: &[&str]) {
    let Some(small) = small else { return };
    let mut guest = Guest::new(&small.image, true, arguments);
    let mut client = Client::connect(&guest.control, limit()).unwrap();
    client.subscribe(None).unwrap();
    let mut event = |wanted: &str| {
        loop {
            let event = client.next_event(Some(limit())).unwrap().unwrap();
            if event["kind"] == wanted {
                return event;
            }
        }
    };
    small.fill();
    guest.write(holes(16));
    guest.wait_held(16);
    let reason = event("requests-held")["reason"].to_string();
    assert!(reason.contains("file system is full"), "{reason}");
    if small.host.made.name == BTRFS.name {
        // That has no place for what is overwritten either.
        let at = DATA + (IMAGE / 2) as u64;
        assert_eq!(guest.driver.read(8, at, LENGTH).unwrap().status, status::OK);
    } else {
        guest.others_go_on();
    }
    guest.nothing();
    // It is tried again, by itself and when it is asked for.
    let before = guest.stats()["held_retries"].as_u64().unwrap();
    assert_eq!(ask(&guest.control, &Request::Retry {})["requests"], 16);
    let start = Instant::now();
    while guest.stats()["held_retries"].as_u64().unwrap() < before + 17 {
        assert!(start.elapsed() < limit());
        std::thread::sleep(Duration::from_millis(10));
    }
    guest.nothing();
    small.make_room();
    let all: Vec<_> = holes(16).collect();
    assert_eq!(guest.end(16, status::OK), all);
    event("requests-released");
    let stats = guest.stats();
    assert_eq!(stats["held_requests"], 0);
    assert_eq!(stats["held_requests_ever"], 16);
    assert_eq!(stats["failed_requests"], 0);
    let over = |line: &str| line.contains("no request is held any more");
    guest.daemon().wait_stderr(over).unwrap();
    assert_eq!(guest.said("requests are held, and the guest waits"), 1);
    assert_eq!(guest.said("no request is held any more"), 1);
    guest.finish();
    landed(&small.image, holes(16));
}

#[test]
fn writes_into_a_full_file_system_wait_until_there_is_room() {
    held_until_there_is_room(Small::new(), &[]);
}

#[test]
fn writes_into_a_full_file_system_wait_until_there_is_room_by_file() {
    held_until_there_is_room(Small::new(), &["--io-path", "file"]);
}

#[test]
fn writes_into_a_full_xfs_wait_until_there_is_room() {
    held_until_there_is_room(Small::of(XFS), &[]);
}

#[test]
fn writes_into_a_full_btrfs_wait_until_there_is_room() {
    held_until_there_is_room(Small::of(BTRFS), &[]);
}

/// Both were in flight at the same time, so either may be the last one.
#[test]
fn a_write_over_one_that_is_held_is_carried_out_and_written_over_later() {
    let Some(small) = Small::new() else { return };
    let mut guest = Guest::new(&small.image, true, &[]);
    small.fill();
    // The first block has room, the other one has none.
    let both = holes(1).start - 1..holes(1).start + 1;
    let (sector, at) = Guest::at(both.start);
    let bytes = content(9, sector..sector + 2 * BLOCK / SECTOR);
    guest.memory.write(at, &bytes).unwrap();
    let data = [Buffer::readable(at, 2 * LENGTH)];
    assert!(guest.driver.submit(Op::Write, sector as u64, &data, 77));
    guest.driver.publish().unwrap();
    guest.wait_held(1);
    let (over, back) = (DATA + (IMAGE / 2) as u64, DATA + (IMAGE / 2 + BLOCK) as u64);
    guest.memory.write(over, &[5; BLOCK]).unwrap();
    let done = guest.driver.write(sector as u64, over, LENGTH).unwrap();
    assert_eq!(done.status, status::OK);
    assert_eq!(guest.driver.flush().unwrap().status, status::OK);
    let done = guest.driver.read(sector as u64, back, LENGTH).unwrap();
    assert_eq!(done.status, status::OK);
    assert!(guest.memory.read(back, BLOCK).unwrap() == [5; BLOCK]);
    small.make_room();
    assert_eq!(guest.end(1, status::OK), [77]);
    guest.finish();
    landed(&small.image, both);
}

#[test]
fn more_requests_than_a_worker_has_in_flight_are_held_and_others_go_on() {
    let Some((small, mut guest)) = full(true, 1500) else {
        return;
    };
    guest.others_go_on();
    small.make_room();
    assert_eq!(guest.end(1500, status::OK), holes(1500).collect::<Vec<_>>());
    guest.finish();
    landed(&small.image, holes(1500));
}

#[test]
fn what_is_held_is_told_the_guest_when_an_operator_says_so() {
    let Some((_small, mut guest)) = full(true, 20) else {
        return;
    };
    let asked = Request::OnError {
        enospc: Some(OnError::Report),
        io_error: None,
    };
    assert_eq!(ask(&guest.control, &asked)["on_enospc"], "report");
    guest.end(20, status::IOERR);
    let stats = guest.stats();
    assert_eq!(stats["failed_requests"], 20);
    assert_eq!(stats["held_requests"], 0);
    guest.write(holes(1));
    guest.end(1, status::IOERR);
    guest.finish();
}

#[test]
fn writes_to_a_thin_disk_without_room_wait_until_it_has_some() {
    let Some(thin) = Thin::new() else { return };
    let image = Path::new(&thin.device);
    let mut guest = Guest::new(image, true, &[]);
    guest.write(0..16);
    guest.end(16, status::OK);
    assert_eq!(guest.driver.flush().unwrap().status, status::OK);
    thin.fill();
    guest.write(holes(16));
    guest.wait_held(16);
    guest.others_go_on();
    guest.nothing();
    thin.free();
    assert_eq!(guest.end(16, status::OK), holes(16).collect::<Vec<_>>());
    guest.finish();
    has(&std::fs::read(thin.path("disk")).unwrap(), holes(16));
}

/// A loop device fails reads behind the end of its file.
#[test]
fn requests_that_a_disk_fails_wait_until_it_works() {
    let Some(thin) = Thin::new() else { return };
    let file = File::options().write(true).open(thin.path("disk")).unwrap();
    let mut guest = Guest::new(Path::new(&thin.device), true, &["--on-io-error", "hold"]);
    file.set_len(WRITTEN as u64).unwrap();
    for number in holes(16) {
        let (sector, at) = Guest::at(number);
        let data = [Buffer::writable(at, LENGTH)];
        let (sector, tag) = (sector as u64, number as u64);
        assert!(guest.driver.submit(Op::Read, sector, &data, tag));
    }
    guest.driver.publish().unwrap();
    guest.wait_held(16);
    guest
        .daemon()
        .wait_stderr(|line| line.contains("they go on when the disk works again"))
        .unwrap();
    guest.others_go_on();
    guest.nothing();
    let (first, at) = Guest::at(holes(16).start);
    let bytes = content(9, first..first + 16 * BLOCK / SECTOR);
    file.write_all_at(&bytes, WRITTEN as u64).unwrap();
    assert_eq!(guest.end(16, status::OK), holes(16).collect::<Vec<_>>());
    assert!(guest.memory.read(at, bytes.len()).unwrap() == bytes);
    assert_eq!(guest.stats()["failed_requests"], 0);
    guest.finish();
}

#[test]
fn little_room_is_told_before_there_is_none() {
    let Some(small) = Small::new() else { return };
    let guest = Guest::new(&small.image, true, &[]);
    let room = |low: bool| {
        wait_info(&guest.control, "room", |info| {
            info["disk"]["room"]["low"] == low
        })["disk"]["room"]
            .take()
    };
    let before = room(false);
    let unallocated = (IMAGE - WRITTEN) as u64;
    assert_eq!(before["unallocated_bytes"], unallocated);
    let free = before["free_bytes"].as_u64().unwrap();
    assert_eq!(before["overcommitted"], free < unallocated);
    small.fill();
    let full = room(true);
    assert_eq!(full["free_bytes"], 0);
    assert_eq!(full["overcommitted"], true);
    small.make_room();
    room(false);
    assert_eq!(guest.said("make room before it is full"), 1);
    guest
        .daemon()
        .wait_stderr(|line| line.contains("enough for now"))
        .unwrap();
    guest.finish();
}
