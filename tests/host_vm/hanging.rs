//! A disk that does not answer: only its own requests wait, and when it answers again all is right.

use std::time::{Duration, Instant};

use front_end::codes::feature;
use front_end::{Daemon, LIMIT, Like, Session};
use rig::lanes::Lanes;
use rig::model::SECTOR;
use rig::place::{Place, guest};

use crate::inside::{self, Stage};
use crate::mapped::{IMAGE, Mapped};

const PATHS: [(&str, &[&str]); 2] = [("disk", &[]), ("file", &["--io-path", "file"])];

#[test]
fn a_disk_that_hangs_holds_up_nothing_else() {
    inside::play(&["hangs", "is slow"]);
}

#[test]
fn a_stop_and_a_kill_while_the_disk_hangs_lose_nothing() {
    inside::play(&["is stopped", "is killed"]);
}

/// A process with a guest under load.
struct Loaded {
    place: Place,
    daemon: Daemon,
    lanes: Lanes,
    session: Session,
}

impl Loaded {
    fn new(mapped: &Mapped, path: &str, arguments: &[&str]) -> Self {
        let place = Place::new(&rig::extentd!(), &mapped.image(), arguments);
        let daemon = place.start();
        let mut lanes = Lanes::new(guest(), &vec![0; IMAGE / SECTOR], 7);
        let mut session = place.connect(Like::Qemu, feature::ALL).unwrap();
        lanes.start(&mut session).unwrap();
        let start = Instant::now();
        while place.disk()["path"] != path {
            assert!(start.elapsed() < LIMIT, "requests do not go by the {path}");
            lanes.run_until(Instant::now() + Duration::from_millis(20));
        }
        lanes.proceed();
        Self {
            place,
            daemon,
            lanes,
            session,
        }
    }

    /// Keeps the load up until every lane waits for the disk: nothing ends any more.
    fn run_dry(&mut self) {
        let start = Instant::now();
        let mut still = 0;
        while still < 10 {
            let before = self.lanes.ended;
            self.lanes
                .run_until(Instant::now() + Duration::from_millis(100));
            assert!(start.elapsed() < LIMIT, "requests go on");
            still = if self.lanes.ended == before {
                still + 1
            } else {
                0
            };
        }
    }

    /// A new process goes on with the guest, and with what was in flight.
    fn begin_again(&mut self) {
        let inflight = self.session.inflight.take();
        self.session = self.place.connect(Like::Qemu, feature::ALL).unwrap();
        self.session.inflight = inflight;
        self.lanes.start(&mut self.session).unwrap();
    }

    /// Ends all that is in flight, and the process; everything was right.
    fn end(mut self) {
        assert_eq!(self.lanes.settle(&mut self.session), 0);
        assert_eq!(self.place.errors(), 0);
        drop(self.session);
        assert!(self.daemon.terminate().unwrap().success());
        self.lanes.check(&std::fs::read(&self.place.image).unwrap());
        assert_eq!((self.lanes.repeated, &self.lanes.wrong[..]), (0, &[][..]));
    }
}

pub fn hangs(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    let other = Mapped::new("second", &stage.devices[1]);
    for (path, arguments) in PATHS {
        let mut loaded = Loaded::new(&mapped, path, arguments);
        mapped.suspend();
        loaded.run_dry();
        let ended = loaded.lanes.ended;
        // The process answers its operator, and others serve their disks.
        let info = loaded.place.info();
        assert_eq!(info["session"]["connected"], true, "{info}");
        assert_eq!(info["disk"]["path"], path, "{info}");
        Loaded::new(&other, path, arguments).end();
        loaded.lanes.reap();
        assert_eq!(loaded.lanes.ended, ended, "the disk did not hang");
        mapped.resume();
        loaded.lanes.proceed();
        loaded.end();
        println!("by the {path}: all 16 lanes waited, and went on");
    }
}

pub fn is_slow(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    for (path, arguments) in PATHS {
        let mut loaded = Loaded::new(&mapped, path, arguments);
        let (begun, before) = (Instant::now(), loaded.lanes.ended);
        mapped.change(&mapped.table(&format!("delay {} 0 2000", mapped.under())));
        while loaded.lanes.ended < before + 64 {
            assert!(loaded.lanes.sound(), "{:?}", loaded.lanes.wrong);
            loaded
                .lanes
                .run_until(Instant::now() + Duration::from_millis(50));
        }
        // It was that slow.
        assert!(begun.elapsed() > Duration::from_secs(2));
        mapped.change(&mapped.linear());
        loaded.lanes.proceed();
        loaded.end();
    }
}

pub fn is_stopped(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    for (path, arguments) in PATHS {
        let mut loaded = Loaded::new(&mapped, path, arguments);
        mapped.suspend();
        loaded.run_dry();
        loaded.daemon.signal(libc::SIGTERM).unwrap();
        loaded
            .daemon
            .wait_stderr(|line| line.contains("SIGTERM: stopping"))
            .unwrap();
        // It waits for the disk, and still answers its operator.
        assert_eq!(loaded.place.disk()["path"], path);
        mapped.resume();
        assert!(loaded.daemon.wait().unwrap().success());
        loaded.lanes.reap();
        loaded.daemon = loaded.place.start();
        loaded.begin_again();
        loaded.lanes.proceed();
        loaded.end();
    }
}

pub fn is_killed(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    for (path, arguments) in PATHS {
        let mut loaded = Loaded::new(&mapped, path, arguments);
        mapped.suspend();
        loaded.run_dry();
        loaded.daemon.signal(libc::SIGKILL).unwrap();
        // Its I/O is still in the kernel: nothing is served before that has ended.
        let (resumed, served) = std::thread::scope(|scope| {
            let resume = scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(1));
                let now = Instant::now();
                mapped.resume();
                now
            });
            // On a socket of its own, as the one before may not have left its.
            loaded.place = Place::new(&rig::extentd!(), &loaded.place.image, arguments);
            loaded.daemon = loaded.place.start();
            loaded.begin_again();
            let before = loaded.lanes.ended;
            while loaded.lanes.ended == before && loaded.lanes.sound() {
                loaded
                    .lanes
                    .run_until(Instant::now() + Duration::from_millis(5));
            }
            (resume.join().unwrap(), Instant::now())
        });
        assert!(served > resumed, "it did not wait");
        loaded.lanes.proceed();
        loaded.end();
        println!(
            "by the {path}: served again {:?} after the disk",
            served - resumed
        );
    }
}
