//! A guest of a process, which asks for the same few requests again and again
//! and wants to know how each of them ends.

use std::path::Path;

use front_end::codes::feature;
use front_end::{Buffer, Daemon, Driver, GuestMemory, LIMIT, Like, Op, Session};

use crate::model::{SECTOR, content, holds};
use crate::place::{Place, QUEUE_DATA, guest};

/// Bytes of a request.
pub const LENGTH: usize = 16 << 10;
/// Requests at a time.
pub const REQUESTS: usize = 32;

/// A guest of a process.
pub struct Asker {
    /// Where the process is found.
    pub place: Place,
    /// The process.
    pub daemon: Daemon,
    memory: GuestMemory,
    drivers: Vec<Driver>,
    _session: Session,
}

impl Asker {
    /// Has a process of `binary` serve `image`, and attaches to it.
    pub fn new(binary: &Path, image: &Path, arguments: &[&str]) -> Asker {
        let place = Place::new(binary, image, arguments);
        let daemon = place.start();
        let (memory, drivers) = guest();
        let mut session = place.connect(Like::Qemu, feature::ALL).unwrap();
        let rings: Vec<_> = drivers.iter().map(Driver::ring).collect();
        session.start(&memory, &rings).unwrap();
        Asker {
            place,
            daemon,
            memory,
            drivers,
            _session: session,
        }
    }

    /// All requests at once; the status of each.
    pub fn all(&mut self, op: Op, requests: impl Iterator<Item = usize>) -> Vec<(usize, u8)> {
        let length = u32::try_from(LENGTH).unwrap();
        let mut count = 0;
        for request in requests {
            let sectors = sectors(request);
            let at = QUEUE_DATA + (request * LENGTH) as u64;
            let buffer = if op == Op::Write {
                let bytes = content(9, sectors.clone());
                self.memory.write(at, &bytes).unwrap();
                Buffer::readable(at, length)
            } else {
                self.memory.fill(at, LENGTH, 0xa5).unwrap();
                Buffer::writable(at, length)
            };
            let sector = sectors.start as u64;
            assert!(self.drivers[0].submit(op, sector, &[buffer], request as u64));
            count += 1;
        }
        self.drivers[0].publish().unwrap();
        let mut ended: Vec<_> = (0..count)
            .map(|_| self.drivers[0].wait(LIMIT).unwrap())
            .map(|done| (usize::try_from(done.tag).unwrap(), done.status))
            .collect();
        ended.sort_unstable();
        ended
    }

    /// What the last read of this request has brought.
    pub fn holds(&self, request: usize, value: u32) -> bool {
        let at = QUEUE_DATA + (request * LENGTH) as u64;
        let bytes = self.memory.read(at, LENGTH).unwrap();
        sectors(request)
            .zip(bytes.chunks_exact(SECTOR))
            .all(|(sector, bytes)| holds(value, sector, bytes))
    }

    /// Lines that tell of failed requests.
    pub fn complaints(&self) -> usize {
        let lines = self.daemon.stderr();
        lines
            .iter()
            .filter(|line| line.contains(" failed: "))
            .count()
    }
}

/// The sectors of a request; they lie apart.
pub fn sectors(request: usize) -> std::ops::Range<usize> {
    let first = request * 4 * LENGTH / SECTOR;
    first..first + LENGTH / SECTOR
}

/// Those that never fail.
pub fn even() -> impl Iterator<Item = usize> {
    (0..REQUESTS).step_by(2)
}
