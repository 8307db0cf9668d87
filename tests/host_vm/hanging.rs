//! A disk that does not answer: only its own requests wait, and when it answers again all is right.

use std::time::{Duration, Instant};

use rig::place::Place;

use crate::inside::{self, Stage};
use crate::loaded::Loaded;
use crate::mapped::Mapped;

const PATHS: [(&str, &[&str]); 2] = [("disk", &[]), ("file", &["--io-path", "file"])];

#[test]
fn a_disk_that_hangs_holds_up_nothing_else() {
    inside::play(&["hangs", "is slow"]);
}

#[test]
fn a_stop_and_a_kill_while_the_disk_hangs_lose_nothing() {
    inside::play(&["is stopped", "is killed"]);
}

pub fn hangs(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    let other = Mapped::new("second", &stage.devices[1]);
    for (path, arguments) in PATHS {
        let mut loaded = Loaded::new(&rig::extentd!(), &mapped.image(), path, arguments);
        mapped.suspend();
        loaded.run_dry();
        let ended = loaded.lanes.ended;
        // The process answers its operator, and others serve their disks.
        let info = loaded.place.info();
        assert_eq!(info["session"]["connected"], true, "{info}");
        assert_eq!(info["disk"]["path"], path, "{info}");
        Loaded::new(&rig::extentd!(), &other.image(), path, arguments).end();
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
        let mut loaded = Loaded::new(&rig::extentd!(), &mapped.image(), path, arguments);
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
        let mut loaded = Loaded::new(&rig::extentd!(), &mapped.image(), path, arguments);
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
        let mut loaded = Loaded::new(&rig::extentd!(), &mapped.image(), path, arguments);
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
