//! A process with a guest under load, whose every answer is compared.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use front_end::codes::feature;
use front_end::{Daemon, LIMIT, Like, Session};
use rig::lanes::Lanes;
use rig::model::SECTOR;
use rig::place::{Place, guest};

use crate::mapped::IMAGE;

/// The process and its guest, which uses the first [`IMAGE`] bytes; they are zeros at first.
pub struct Loaded {
    pub place: Place,
    pub daemon: Daemon,
    pub lanes: Lanes,
    session: Session,
}

impl Loaded {
    /// Has a process of `binary` serve it, once its requests take this path.
    pub fn new(binary: &Path, image: &Path, path: &str, arguments: &[&str]) -> Self {
        let place = Place::new(binary, image, arguments);
        let daemon = place.start();
        let mut lanes = Lanes::new(guest(), &vec![0; IMAGE / SECTOR], 7);
        let mut session = place.connect(Like::Qemu, feature::ALL).unwrap();
        lanes.discards = session.features & feature::DISCARD != 0;
        lanes.start(&mut session).unwrap();
        let start = Instant::now();
        while place.disk()["path"] != path {
            let info = place.disk();
            assert!(start.elapsed() < LIMIT, "not by the {path}: {info}");
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
    pub fn run_dry(&mut self) {
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
    pub fn begin_again(&mut self) {
        let inflight = self.session.inflight.take();
        self.session = self.place.connect(Like::Qemu, feature::ALL).unwrap();
        self.session.inflight = inflight;
        self.lanes.start(&mut self.session).unwrap();
    }

    /// Ends all that is in flight, and the process; everything was right. The guest's disk by
    /// what it should hold.
    pub fn end(mut self) -> Lanes {
        assert_eq!(self.lanes.settle(&mut self.session), 0);
        assert_eq!(self.place.errors(), 0);
        drop(self.session);
        assert!(self.daemon.terminate().unwrap().success());
        check(&mut self.lanes, &self.place.image);
        self.lanes
    }
}

/// Compares an image that nobody serves with what it should hold.
pub fn check(lanes: &mut Lanes, image: &Path) {
    let mut bytes = Vec::with_capacity(IMAGE);
    let first = File::open(image).unwrap().take(IMAGE as u64);
    let length = { first }.read_to_end(&mut bytes).unwrap();
    assert_eq!(length, IMAGE, "{}", image.display());
    lanes.check(&bytes);
    assert_eq!((lanes.repeated, &lanes.wrong[..]), (0, &[][..]));
}
