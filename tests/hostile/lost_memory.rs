//! Memory that a front-end shares and that cannot be reached: whatever kind it
//! is of, and whatever lies there, a request or a queue fails and says so.

use std::fs::File;
use std::os::fd::AsRawFd;

use front_end::codes::status;
use front_end::{Buffer, Like, Op, Place, Region, Setup};
use front_end::{Driver, GuestMemory, Inflight, Session, Wanted, limit, wait_readable};
use rig::attached::{Attached, DATA, MEMORY};
use rig::file_systems::{EXT4, Mounted, occupy};
use rig::files::create;
use rig::small_image::content;
use rustix::fs::{MemfdFlags, SealFlags};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::regions::{SIZE, add_region, memfd, place};
use crate::served::Served;

const REACHED: &str = "cannot be reached";

/// Memory of which no page can be had.
struct Unreachable {
    what: &'static str,
    file: File,
    /// It is there until this is done.
    lose: Box<dyn Fn(&File)>,
    /// What is not there reads as zeros, and only a write needs room.
    reads: bool,
    _place: Option<Mounted>,
}

/// A tmpfs of few pages, all of them in use; unmounted when dropped.
struct Tmpfs(std::path::PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn full_tmpfs(served: &Served) -> Option<(Tmpfs, File)> {
    let folder = served.files.path().join("tmpfs");
    std::fs::create_dir(&folder).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount("none", &folder, "tmpfs", flags, c"size=64k") {
        println!("skipped: no tmpfs can be mounted here ({error})");
        return None;
    }
    let mounted = Tmpfs(folder.clone());
    let file = create(folder.join("lost"), SIZE);
    let filler = vec![1; 64 << 10];
    std::fs::write(folder.join("filler"), filler).unwrap();
    Some((mounted, file))
}

fn truncated() -> Unreachable {
    Unreachable {
        what: "a memfd that is truncated",
        file: memfd(SIZE, MemfdFlags::empty()),
        lose: Box::new(|file| file.set_len(0).unwrap()),
        reads: false,
        _place: None,
    }
}

/// Sealed as QEMU does it; `None` where this host has free huge pages.
fn huge() -> Option<Unreachable> {
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = free
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    if free.is_some_and(|free| free.trim() != "0") {
        println!("skipped: there are free huge pages");
        return None;
    }
    let file = memfd(2 << 20, MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING);
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    Some(Unreachable {
        what: "huge pages that are not there",
        file,
        lose: Box::new(|_| {}),
        reads: false,
        _place: None,
    })
}

fn full_ext4() -> Option<Unreachable> {
    let host = Mounted::new(EXT4)?;
    let file = create(host.path("lost"), SIZE);
    drop(occupy(&host, "filler"));
    Some(Unreachable {
        what: "a full ext4",
        file,
        lose: Box::new(|_| {}),
        reads: true,
        _place: Some(host),
    })
}

fn front(served: &Served, lost: &Unreachable, at: Place) -> Attached {
    let front = served.attach();
    assert_eq!(
        add_region(&front, at, lost.file.as_raw_fd()),
        0,
        "{}",
        lost.what
    );
    (lost.lose)(&lost.file);
    front
}

/// Data of a request, copied by the kernel and by the process.
fn data_fails(served: &Served, lost: &Unreachable) {
    let mut front = front(served, lost, place(0));
    for (start, length) in [(MEMORY, 4096), (MEMORY + 1, 512), (MEMORY + 8190, 4096)] {
        for op in [Op::Read, Op::Write] {
            if op == Op::Write && lost.reads {
                continue;
            }
            let buffer = Buffer {
                address: start,
                length,
                writable: op == Op::Read,
            };
            let done = front.driver.run(op, 8, &[buffer]).unwrap();
            assert_eq!(
                done.status,
                status::IOERR,
                "{}: {op:?} {start:#x}",
                lost.what
            );
            assert_eq!(done.length, 1, "{}: {op:?} {start:#x}", lost.what);
        }
    }
    let id = front.driver.get_id(MEMORY + 64).unwrap();
    assert_eq!(id.status, status::IOERR, "{}: the serial number", lost.what);
    served.said(REACHED);
    // Others go on, on the same connection.
    assert_eq!(front.read(8, 512), content(8 * 512, 512), "{}", lost.what);
}

#[test]
fn vu_20_data_in_memory_that_cannot_be_reached_fails_its_request_alone() {
    let served = Served::new(&[]);
    let kinds = [Some(truncated()), huge(), full_ext4()];
    for lost in kinds.into_iter().flatten() {
        let size = lost.file.metadata().unwrap().len();
        println!("{} of {size} bytes", lost.what);
        data_fails(&served, &lost);
        served.is_well();
    }
}

#[test]
fn vu_20_a_full_tmpfs_fails_what_is_read_to_it() {
    let served = Served::new(&[]);
    let Some((_mounted, file)) = full_tmpfs(&served) else {
        return;
    };
    let lost = Unreachable {
        what: "a full tmpfs",
        file,
        lose: Box::new(|_| {}),
        reads: false,
        _place: None,
    };
    data_fails(&served, &lost);
    drop(lost);
    served.is_well();
}

/// What a chain needs beside its data.
#[test]
fn vu_20_headers_tables_and_status_bytes_that_cannot_be_reached_fail_their_request() {
    let served = Served::new(&[]);
    for part in ["header", "half of a header", "table", "status"] {
        let lost = truncated();
        let mut front = front(&served, &lost, place(0));
        let at = MEMORY + 3 * 4096;
        // A write, if the half that is there were all of it.
        front
            .memory
            .write(MEMORY - 8, &1_u64.to_le_bytes())
            .unwrap();
        front.memory.write(DATA, &[0; 16]).unwrap();
        front.memory.write(DATA + 64, &[0xff]).unwrap();
        let header = match part {
            "header" => Buffer::readable(at, 16),
            "half of a header" => Buffer::readable(MEMORY - 8, 16),
            _ => Buffer::readable(DATA, 16),
        };
        let mut chain = vec![header];
        if part == "half of a header" {
            chain.push(Buffer::readable(DATA + 4096, 512));
        } else {
            chain.push(Buffer::writable(DATA + 4096, 512));
        }
        let status_at = if part == "status" { at } else { DATA + 64 };
        chain.push(Buffer::writable(status_at, 1));
        let seen = if part == "status" {
            DATA + 64
        } else {
            status_at
        };
        if part == "table" {
            let ring = front.driver.ring().memory();
            let table = front_end::Descriptor {
                address: at,
                length: 48,
                flags: front_end::codes::descriptor::INDIRECT,
                next: 0,
            };
            ring.set_descriptor(0, table);
            front.driver.ring_mut().offer(0);
        } else {
            front.driver.submit_chain(&chain, seen, false, 1).unwrap();
        }
        front.driver.publish().unwrap();
        front.driver.ring().wait(limit()).unwrap();
        let (_, length) = front.driver.ring_mut().pop_raw().unwrap();
        assert!(length <= 1, "{part}: {length}");
        let byte = front.memory.read(DATA + 64, 1).unwrap()[0];
        assert_ne!(byte, status::OK, "{part}");
        served.said(REACHED);
        // Its ring is elsewhere, and goes on.
        assert_eq!(front.read(8, 512), content(8 * 512, 512), "{part}");
        drop(front);
        served.is_well();
    }
}

/// A driver whose ring is in memory that may be lost, and the err eventfd.
struct Doomed {
    session: Session,
    driver: Driver,
    error: EventFd,
    file: File,
}

fn doomed(served: &Served, wanted: Wanted) -> (Doomed, GuestMemory) {
    let mut session = Session::open(served.daemon.socket(), Like::Qemu, wanted).unwrap();
    let file = memfd(MEMORY, MemfdFlags::empty());
    let mut memory = GuestMemory::default();
    let at = Place {
        guest: 0,
        user: 0x7f00_0000_0000,
        size: MEMORY,
    };
    memory.add(Region::in_file(at, file.try_clone().unwrap(), 0).unwrap());
    let setup = Setup {
        size: 64,
        features: session.features,
        indirect: 0,
    };
    let driver = Driver::new(&memory, 0, setup).unwrap();
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    let rings = [driver.ring()];
    session.start(&memory, &rings).unwrap();
    let connection = &session.connection;
    connection
        .set_vring_err(0, Some(error.as_raw_fd()))
        .unwrap();
    connection.get_features().unwrap();
    let doomed = Doomed {
        session,
        driver,
        error,
        file,
    };
    (doomed, memory)
}

#[test]
fn vu_20_a_queue_whose_ring_cannot_be_reached_stops_with_an_error() {
    let served = Served::new(&[]);
    let (doomed, memory) = doomed(&served, Wanted::default());
    doomed.file.set_len(0).unwrap();
    // Nothing here touches the memory any more.
    doomed.driver.ring().kick().unwrap();
    wait_readable(&doomed.error, limit()).unwrap();
    served.said("its ring lay in memory that was lost; the queue stops");
    // A stop is answered as ever.
    doomed.session.connection.get_vring_base(0).unwrap();
    drop((doomed, memory));
    served.is_well();
    assert_eq!(served.lines("; the queue stops"), 1);
    assert_eq!(served.lines("guest memory (regions: 1"), 1);
}

#[test]
fn vu_20_a_record_or_a_log_that_cannot_be_reached_stops_the_queue_with_an_error() {
    let served = Served::new(&[]);
    for what in ["record of requests in flight", "log of dirty pages"] {
        let (mut doomed, memory) = doomed(&served, Wanted::default());
        let lost = memfd(SIZE, MemfdFlags::empty());
        let connection = &doomed.session.connection;
        if what.starts_with("log") {
            let logged = doomed.session.features | front_end::codes::feature::LOG_ALL;
            connection.set_features(logged).unwrap();
            connection.set_log_base(&lost, SIZE, 0).unwrap();
        } else {
            let base = connection.get_vring_base(0).unwrap();
            let record = Inflight {
                file: lost.try_clone().unwrap(),
                size: SIZE,
                offset: 0,
                queues: 1,
                queue_size: 64,
            };
            connection.set_inflight_fd(&record).unwrap();
            connection
                .set_vring_base(0, base.try_into().unwrap())
                .unwrap();
            let kick = doomed.driver.ring().kick_fd();
            connection.set_vring_kick(0, Some(kick)).unwrap();
        }
        connection.get_features().unwrap();
        lost.set_len(0).unwrap();
        let data = [Buffer::writable(DATA, 512)];
        assert!(doomed.driver.submit(Op::Read, 0, &data, 1));
        doomed.driver.publish().unwrap();
        wait_readable(&doomed.error, limit()).unwrap();
        served.said(&format!(
            "{what} lay in memory that was lost; the queue stops"
        ));
        drop((doomed, memory));
        served.is_well();
    }
}

#[test]
fn vu_20_a_record_without_room_is_refused() {
    let served = Served::new(&[]);
    let Some(lost) = huge() else { return };
    let front = served.attach();
    front.session.connection.get_vring_base(0).unwrap();
    let record = Inflight {
        file: lost.file,
        size: 2 << 20,
        offset: 0,
        queues: 1,
        queue_size: 64,
    };
    let refused = front.session.connection.set_inflight_fd(&record);
    assert!(refused.is_err());
    served.said(REACHED);
    drop((front, record));
    served.is_well();
}

/// One mapping for all of it, however many places are touched.
#[test]
fn vu_20_a_large_sparse_region_that_is_touched_everywhere_takes_no_more_mappings() {
    let served = Served::new(&[]);
    let size = 1 << 30;
    let file = memfd(size, MemfdFlags::empty());
    let at = Place { size, ..place(0) };
    let mut front = served.attach();
    assert_eq!(add_region(&front, at, file.as_raw_fd()), 0);
    file.set_len(0).unwrap();
    let before = served.maps().lines().count();
    let mut in_flight = 0_u32;
    for page in 0..20_000_u64 {
        // Unaligned, so that the process copies; and as a status byte.
        let there = MEMORY + page * 8192 + 1;
        let data = [
            Buffer::writable(there, 511),
            Buffer::writable(there + 4096, 1),
        ];
        if front.driver.submit(Op::Read, page % 8000, &data, page) {
            in_flight += 1;
        }
        if in_flight < 20 {
            continue;
        }
        front.driver.publish().unwrap();
        for _ in 0..std::mem::take(&mut in_flight) {
            let done = front.driver.wait(limit()).unwrap();
            assert_eq!(done.status, status::IOERR);
        }
    }
    let after = served.maps().lines().count();
    assert!(after <= before + 16, "{before} mappings, then {after}");
    // Not a line for each.
    assert!(served.lines(REACHED) < 30, "{}", served.lines(REACHED));
    drop((front, file));
    served.is_well();
}

/// Tables of regions that are lost before they are replaced.
#[test]
fn vu_20_memory_that_is_shared_anew_serves_again() {
    let served = Served::new(&[]);
    let mut front = Attached::new(
        served.daemon.socket(),
        Like::CloudHypervisor,
        Wanted::default(),
    );
    for round in 0..20_u64 {
        let file = memfd(SIZE, MemfdFlags::empty());
        let region = Region::in_file(place(0), file.try_clone().unwrap(), 0).unwrap();
        let mut with = front.memory.clone();
        with.add(region);
        front.session.share(&with).unwrap();
        let data = [Buffer::writable(MEMORY, 4096)];
        let done = front.driver.run(Op::Read, round, &data).unwrap();
        assert_eq!(done.status, status::OK, "{round}");
        file.set_len(0).unwrap();
        let status_there = [Buffer::readable(DATA, 16), Buffer::writable(MEMORY + 9, 1)];
        front.memory.write(DATA, &[0; 16]).unwrap();
        let seen = DATA + 32;
        front
            .driver
            .submit_chain(&status_there, seen, false, round)
            .unwrap();
        front.driver.publish().unwrap();
        front.driver.wait(limit()).unwrap();
        assert_eq!(front.read(round, 512).len(), 512);
    }
    drop(front);
    served.is_well();
}

/// What the kernel makes up stands for file systems whose files come from
/// somebody else: neither is of this host's memory or disks.
#[test]
fn vu_20_memory_whose_server_may_never_answer_is_refused() {
    let served = Served::new(&[]);
    let front = served.attach();
    let file = File::open("/proc/self/status").unwrap();
    assert_ne!(add_region(&front, place(0), file.as_raw_fd()), 0);
    served.said("nobody here knows how long it takes to answer");
    drop(front);
    served.is_well();
}
