//! The log takes no more lines while the disk path is in use: requests, guard,
//! session and control go on, and what was left out is told later.

use std::fs::{File, OpenOptions};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use extentd::operator::control::Request;
use front_end::codes::status;
use front_end::{Like, Op, Session, Wanted};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::Image;
use rig::model::{SECTOR, Value};

use crate::break_time::{BreakTime, SHORT};
use crate::disturb::{Others, Stopper};
use crate::lane::STEP;
use crate::served::{Guest, Served};
use crate::unread::{Kind, Log};

/// Bytes of the image, and its sectors.
const BYTES: usize = 32 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// What the guest writes.
const LATER: Value = 2;
/// Requests that go around the image.
const AROUND: u64 = (SECTORS / STEP) as u64;
/// What takes this long waits for somebody.
const SOON: Duration = Duration::from_secs(3);
/// Sessions that make more lines than may wait.
const SESSIONS: usize = 300;

/// What went on.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    control: bool,
    requests: bool,
    guard: bool,
    session: bool,
    /// Other files that were spoilt.
    spoilt: Vec<String>,
}

fn everything_goes_on() -> Outcome {
    Outcome {
        control: true,
        requests: true,
        guard: true,
        session: true,
        spoilt: Vec::new(),
    }
}

/// Waits until a count has grown by so many; whether it has before long.
fn grows(count: &AtomicU64, more: u64) -> bool {
    let (start, before) = (Instant::now(), count.load(Ordering::Relaxed));
    while count.load(Ordering::Relaxed) < before + more {
        if start.elapsed() > 3 * SOON {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether other front-ends are answered before long, one after the other.
fn sessions(served: &Served, sessions: usize) -> bool {
    let (done, is_done) = mpsc::channel();
    let socket = served.socket.clone();
    std::thread::spawn(move || {
        for _ in 0..sessions {
            if Session::open(&socket, Like::Qemu, Wanted::default()).is_err() {
                return;
            }
            // Whoever waits may have given up.
            let _ = done.send(());
        }
    });
    (0..sessions).all(|_| is_done.recv_timeout(SOON).is_ok())
}

/// Stops the log when the guard has a line to write next, and has somebody
/// take the image away then.
fn stop_log(made: Made, kind: Kind, left_out: &str) -> Option<Outcome> {
    let host = Mounted::new(made)?;
    let image = Image::written(&host, BYTES);
    let mut log = Log::new(kind)?;
    let variables = [("EXTENTD_TEST_WITHOUT", left_out)];
    let served = Served::start_to(&image.path, &[], &variables, log.stderr());
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);

    let reader = File::open(&image.path).unwrap();
    // The line comes after what it says.
    log.wait("requests go by the file: somebody else");
    log.stop();
    drop(reader);
    let info = || served.try_ask(&Request::Info {}, SOON);
    let mut control = true;
    while control {
        match info() {
            Some(info) if info["disk"]["path"] == "disk" => break,
            info => control = info.is_some(),
        }
    }

    let _short = BreakTime::seconds(SHORT)?;
    let mut others = Others::default();
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut requests, mut guard) = (true, true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            guest
                .lane(0)
                .write_until(&stop, 0..SECTORS, LATER, 3 * SOON, &count);
        });
        let stopper = Stopper(&stop);
        // The first times around load the map.
        requests &= grows(&count, 4 * AROUND);
        let start = Instant::now();
        let foreign = OpenOptions::new().write(true).open(&image.path).unwrap();
        guard &= start.elapsed() < SOON;
        foreign.set_len(0).unwrap();
        foreign.set_len(BYTES as u64).unwrap();
        others.occupy(&host, "new");
        requests &= grows(&count, 2 * AROUND);
        control &= info().is_some();
        drop(stopper);
    });
    drop(guest);
    let session = sessions(&served, SESSIONS);
    let outcome = Outcome {
        control,
        requests,
        guard,
        session,
        spoilt: others.spoilt(),
    };
    if left_out.is_empty() {
        log.resume();
        // The next line that finds room brings the number with it.
        assert!(sessions(&served, 1));
        log.wait("lines of the log were dropped");
        assert!(served.daemon.terminate().unwrap().success());
    } else {
        served.daemon.kill().unwrap();
    }
    Some(outcome)
}

fn all_goes_on(made: Made, kind: Kind) {
    if let Some(outcome) = stop_log(made, kind, "") {
        assert_eq!(outcome, everything_goes_on());
    }
}

#[test]
fn a_log_pipe_that_nobody_reads_holds_nothing_up_on_ext4() {
    all_goes_on(EXT4, Kind::Pipe);
}

#[test]
fn a_log_pipe_that_nobody_reads_holds_nothing_up_on_xfs() {
    all_goes_on(XFS, Kind::Pipe);
}

#[test]
fn a_full_disk_under_the_log_holds_nothing_up() {
    all_goes_on(EXT4, Kind::FullDisk);
}

#[test]
fn a_stopped_terminal_holds_nothing_up() {
    all_goes_on(EXT4, Kind::Terminal);
}

/// Where whoever logs writes the line, a stopped log stops the guard: who asks
/// for the image has to wait until the kernel takes it away. That nothing is
/// spoilt is then for the workers to see to.
fn the_guard_waits(kind: Kind) {
    if let Some(outcome) = stop_log(EXT4, kind, "log") {
        assert!(!outcome.guard && !outcome.session, "{outcome:#?}");
    }
}

#[test]
fn without_the_log_queue_the_guard_waits_for_who_reads_a_pipe() {
    the_guard_waits(Kind::Pipe);
}

#[test]
fn without_the_log_queue_the_guard_waits_for_who_reads_a_terminal() {
    the_guard_waits(Kind::Terminal);
}

/// Whether requests that fail are answered, each of which makes a line.
fn failures_are_answered(left_out: &str) -> Option<bool> {
    const FAILURES: usize = 50;
    let host = Mounted::new(EXT4)?;
    let path = host.path("image");
    let image = File::create(&path).unwrap();
    image.set_len(BYTES as u64).unwrap();
    drop(image);
    let mut log = Log::new(Kind::Pipe)?;
    let variables = [("EXTENTD_TEST_WITHOUT", left_out)];
    let served = Served::start_to(&path, &[], &variables, log.stderr());
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    Others::default().occupy(&host, "new");
    log.stop();
    let mut lane = guest.lane(0);
    for number in 0..FAILURES {
        let first = number * STEP;
        lane.put(0, Op::Write, first..first + STEP, LATER);
        lane.driver.publish().unwrap();
        match lane.driver.wait(SOON) {
            Ok(done) => assert_eq!(done.status, status::IOERR),
            Err(_) => return Some(false),
        }
    }
    Some(true)
}

#[test]
fn requests_that_fail_are_answered_though_nobody_reads_the_log() {
    assert_ne!(failures_are_answered(""), Some(false));
}

#[test]
fn without_the_log_queue_a_request_that_fails_waits_for_who_reads_the_log() {
    assert_ne!(failures_are_answered("log"), Some(true));
}
