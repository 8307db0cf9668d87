//! A process, and a front-end that uses its first queue.

use std::path::Path;
use std::time::Duration;

use front_end::codes::status;
use front_end::{Daemon, Done, Driver, GuestMemory, Like, Session, Wanted};

/// Guest memory, in bytes.
pub const MEMORY: u64 = 16 << 20;
/// Where data may lie in it: above what the drivers of two queues use.
pub const DATA: u64 = 4 << 20;

/// How long anything may take; see [`front_end::limit`].
const LIMIT: Duration = Duration::from_secs(20);

/// Has `binary` serve an image. From then on a front-end in this process gives
/// up after 20 s.
pub fn serve(binary: &Path, socket: &Path, image: &Path, arguments: &[&str]) -> Daemon {
    front_end::set_limit(LIMIT);
    Daemon::start(binary, socket, image, arguments).unwrap()
}

/// A front-end and the driver of its first queue.
pub struct Attached {
    /// The session.
    pub session: Session,
    /// Guest memory, of [`MEMORY`] bytes.
    pub memory: GuestMemory,
    /// The driver.
    pub driver: Driver,
}

impl Attached {
    /// Opens a session there, and starts its first queue.
    pub fn new(socket: &Path, like: Like, wanted: Wanted) -> Self {
        Self::over(Session::open(socket, like, wanted).unwrap())
    }

    /// As [`new`](Self::new), on a session that is open.
    pub fn over(session: Session) -> Self {
        Self::with_ring(session, 64)
    }

    /// As [`over`](Self::over), with a ring of so many entries.
    pub fn with_ring(mut session: Session, entries: u16) -> Self {
        let (memory, driver) = session.start_one(MEMORY, entries).unwrap();
        // One interrupt comes when the event is given, which it has been once
        // this is answered.
        session.connection.get_features().unwrap();
        driver.ring().take_calls().unwrap();
        Self {
            session,
            memory,
            driver,
        }
    }

    /// Reads sectors, which must succeed.
    pub fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        let done = self.driver.read(sector, DATA, length).unwrap();
        assert_ok(done, length + 1);
        self.memory.read(DATA, length as usize).unwrap()
    }

    /// Writes sectors, which must succeed.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.memory.write(DATA, bytes).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        assert_ok(self.driver.write(sector, DATA, length).unwrap(), 1);
    }
}

/// The request went well, and the device has written so many bytes.
pub fn assert_ok(done: Done, written: u32) {
    assert_eq!((done.status, done.length), (status::OK, written));
}
