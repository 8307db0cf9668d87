//! A worker panics with requests in flight: the process ends at once, whoever
//! reads its log, and the next one takes the requests over.

use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use front_end::codes::{feature, status};
use front_end::{Driver, LIMIT, Op};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::Image;
use rig::model::{SECTOR, Value};

use crate::lane::{STEP, all};
use crate::served::{Guest, QUEUES, Served};
use crate::unread::{Kind, Log};

/// Bytes of the image, and its sectors.
const BYTES: usize = 16 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// How often all of it is read first, so that the map is there.
const READS: usize = 3;
/// Writes of a queue, and at which of all of them a worker panics.
const WRITES: usize = 32;
const AT: usize = 40;
/// What the guest writes.
const LATER: Value = 2;
/// How long the process may take to end.
const SOON: Duration = Duration::from_secs(2);

/// Where a write of a queue goes.
fn target(queue: usize, slot: usize) -> Range<usize> {
    let first = (slot * QUEUES + queue) * STEP;
    first..first + STEP
}

struct Panicking {
    _host: Mounted,
    image: Image,
    served: Served,
    guest: Guest,
}

/// Has a worker panic under writes.
fn panic_under_writes(made: Made, log: Option<&mut Log>, left_out: &str) -> Option<Panicking> {
    let host = Mounted::new(made)?;
    let image = Image::written(&host, BYTES);
    let at = (READS * SECTORS / STEP + AT).to_string();
    let variables = [
        ("EXTENTD_TEST_PANIC", at.as_str()),
        ("EXTENTD_TEST_WITHOUT", left_out),
    ];
    let stderr = log.as_ref().map_or_else(Stdio::piped, |log| log.stderr());
    let served = Served::start_to(&image.path, &[], &variables, stderr);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    for _ in 0..READS {
        guest.lane(0).read(0..SECTORS);
    }
    assert!(served.info().disk_operations > 0);
    if let Some(log) = log {
        log.stop();
    }
    for (queue, lane) in guest.lanes().iter_mut().enumerate() {
        for slot in 0..WRITES {
            lane.put(slot, Op::Write, target(queue, slot), LATER);
        }
        lane.driver.publish().unwrap();
    }
    Some(Panicking {
        _host: host,
        image,
        served,
        guest,
    })
}

fn the_next_process_goes_on(made: Made, log: Option<&mut Log>) {
    let Some(mut panicking) = panic_under_writes(made, log, "") else {
        return;
    };
    let status = panicking.served.daemon.wait_within(SOON).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");

    let mut guest = panicking.guest;
    let next = Served::start(&panicking.image.path, &[], &[]);
    let inflight = guest.session.inflight.take();
    assert!(inflight.is_some());
    guest.session = Guest::open(&next, feature::ALL);
    guest.session.inflight = inflight;
    let rings: Vec<_> = guest.drivers.iter().map(Driver::ring).collect();
    guest.session.start(&guest.memory, &rings).unwrap();
    for driver in &mut guest.drivers {
        let mut tags: Vec<_> = (0..WRITES)
            .map(|_| {
                let done = driver.wait(LIMIT).unwrap();
                assert_eq!(done.status, status::OK);
                done.tag
            })
            .collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..WRITES as u64), "{WRITES} writes");
        assert_eq!(driver.flush().unwrap().status, status::OK);
        assert!(driver.pop().unwrap().is_none());
    }
    let end = WRITES * QUEUES * STEP;
    assert_eq!(guest.lane(0).see(0..end), all(LATER, end));
    drop(guest);
    assert!(next.daemon.terminate().unwrap().success());
}

#[test]
fn a_panic_ends_the_process_and_the_next_goes_on_on_ext4() {
    the_next_process_goes_on(EXT4, None);
}

#[test]
fn a_panic_ends_the_process_and_the_next_goes_on_on_xfs() {
    the_next_process_goes_on(XFS, None);
}

#[test]
fn a_panic_ends_the_process_though_nobody_reads_its_log() {
    let mut log = Log::new(Kind::Pipe);
    the_next_process_goes_on(EXT4, log.as_mut());
}

#[test]
fn where_a_panic_unwinds_the_process_stays_with_requests_in_flight() {
    if let Some(mut panicking) = panic_under_writes(EXT4, None, "abort") {
        // Its thread names the functions of a backtrace itself.
        panicking.served.daemon.expect_denials();
        let ended = panicking.served.daemon.wait_within(2 * SOON);
        assert!(ended.is_err(), "{ended:?}");
        // Nobody has done them, and nobody can take them over.
        let mut done = 0;
        for driver in &mut panicking.guest.drivers {
            while driver.pop().unwrap().is_some() {
                done += 1;
            }
        }
        assert!(done < WRITES * QUEUES, "all of them are done");
    }
}
