//! A guest that can be copied whole: its memory, what its driver knows, and
//! what each of its disks has to hold by what was acknowledged.

use std::time::Instant;

use front_end::codes::{feature, status};
use front_end::{Buffer, Driver, GuestMemory, Op, Segment, Session, Setup, limit};
use rig::random::Random;

/// Queues of each disk.
pub const QUEUES: u32 = 2;
/// Requests in flight on each disk.
pub const LANES: usize = 16;
/// Bytes of a disk that a lane uses, and all lanes together.
const AREA: usize = 256 << 10;
pub const USED: usize = LANES * AREA;
/// The longest request, in sectors.
const LONGEST: usize = 16;
const SECTOR: usize = 512;
/// Guest memory of a disk: its rings, and then a page or two for each lane.
const PART: u64 = 4 << 20;
const RINGS: u64 = 1 << 20;

/// A request that was not taken back yet.
#[derive(Debug, Clone)]
struct Request {
    op: Op,
    /// In the disk, in bytes.
    at: usize,
    bytes: Vec<u8>,
}

/// One of its disks.
pub struct Side {
    drivers: Vec<Driver>,
    /// What it holds by what was acknowledged and seen.
    pub contents: Vec<u8>,
    flying: Vec<Option<Request>>,
    /// Requests that have ended.
    pub ended: u64,
}

/// The guest.
pub struct Guest {
    pub memory: GuestMemory,
    pub sides: Vec<Side>,
    random: Random,
}

impl Guest {
    /// A guest with disks that hold this.
    pub fn new(disks: Vec<Vec<u8>>) -> Self {
        let memory = GuestMemory::flat(disks.len() as u64 * PART).unwrap();
        let setup = Setup {
            size: 64,
            features: feature::ALL,
            indirect: 16,
        };
        let side = |(number, contents)| Side {
            drivers: (0..u64::from(QUEUES))
                .map(|queue| {
                    let at = number * PART + queue * RINGS / u64::from(QUEUES);
                    Driver::new(&memory, at, setup).unwrap()
                })
                .collect(),
            contents,
            flying: vec![None; LANES],
            ended: 0,
        };
        Self {
            sides: (0..).zip(disks).map(side).collect(),
            memory,
            random: Random(7),
        }
    }

    /// All that it is now; what it does from then on is its own.
    pub fn copied(&self, seed: u64) -> Self {
        let memory = self.memory.copied().unwrap();
        let side = |side: &Side| Side {
            drivers: side
                .drivers
                .iter()
                .map(|driver| driver.over(&memory).unwrap())
                .collect(),
            contents: side.contents.clone(),
            flying: side.flying.clone(),
            ended: 0,
        };
        Self {
            sides: self.sides.iter().map(side).collect(),
            memory,
            random: Random(seed),
        }
    }

    /// The rings of a disk.
    pub fn rings(&self, disk: usize) -> Vec<&front_end::Ring> {
        self.sides[disk].drivers.iter().map(Driver::ring).collect()
    }

    /// Requests of a disk that were not taken back.
    pub fn flying(&self, disk: usize) -> usize {
        self.sides[disk].flying.iter().flatten().count()
    }

    /// Gives each lane of a disk that has none a request.
    pub fn submit(&mut self, disk: usize) {
        for lane in 0..LANES {
            if self.sides[disk].flying[lane].is_none() {
                self.send(disk, lane);
            }
        }
        for driver in &mut self.sides[disk].drivers {
            driver.publish().unwrap();
        }
    }

    fn send(&mut self, disk: usize, lane: usize) {
        let random = &mut self.random;
        let length = SECTOR * (1 + random.below(LONGEST));
        let within = random.below((AREA - length) / SECTOR) * SECTOR;
        let at = lane * AREA + within;
        let buffer = disk as u64 * PART + RINGS + lane as u64 * 2 * (LONGEST * SECTOR) as u64;
        let bytes = u32::try_from(length).unwrap();
        let (op, data, content) = match random.below(8) {
            0 => {
                let segment = Segment {
                    sector: (at / SECTOR) as u64,
                    sectors: bytes / 512,
                    flags: 0,
                };
                self.memory.write(buffer, &segment.bytes()).unwrap();
                (
                    Op::WriteZeroes,
                    Buffer::readable(buffer, 16),
                    vec![0; length],
                )
            }
            1 => {
                self.memory.fill(buffer, length, 0xa5).unwrap();
                (Op::Read, Buffer::writable(buffer, bytes), Vec::new())
            }
            _ => {
                let stamp = (random.below(usize::MAX) as u64).to_le_bytes();
                let content = stamp.repeat(length / 8);
                self.memory.write(buffer, &content).unwrap();
                (Op::Write, Buffer::readable(buffer, bytes), content)
            }
        };
        let sector = if op == Op::WriteZeroes {
            0
        } else {
            at / SECTOR
        };
        let side = &mut self.sides[disk];
        let driver = &mut side.drivers[lane % QUEUES as usize];
        assert!(driver.submit(op, sector as u64, &[data], lane as u64));
        let bytes = if op == Op::Read {
            side.contents[at..at + length].to_vec()
        } else {
            content
        };
        side.flying[lane] = Some(Request { op, at, bytes });
    }

    /// Takes back what has ended on a disk, at most so many; each was in flight
    /// once and is right.
    pub fn reap(&mut self, disk: usize, most: usize) -> usize {
        let side = &mut self.sides[disk];
        let mut count = 0;
        for driver in &mut side.drivers {
            while count < most
                && let Some(done) = driver.pop().unwrap()
            {
                count += 1;
                assert_eq!(done.status, status::OK);
                let lane = usize::try_from(done.tag).unwrap();
                let request = side.flying[lane].take().expect("it ended before");
                let Request { op, at, bytes } = request;
                if op == Op::Read {
                    let area = RINGS + lane as u64 * 2 * (LONGEST * SECTOR) as u64;
                    let read = self.memory.read(disk as u64 * PART + area, bytes.len());
                    assert!(read.unwrap() == bytes, "{at} of disk {disk} is wrong");
                } else {
                    side.contents[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        side.ended += count as u64;
        count
    }

    /// Keeps all disks busy until so many more requests have ended on each.
    pub fn run(&mut self, steps: u64) {
        let start = Instant::now();
        let goals: Vec<u64> = self.sides.iter().map(|side| side.ended + steps).collect();
        while self
            .sides
            .iter()
            .zip(&goals)
            .any(|(side, goal)| side.ended < *goal)
        {
            for disk in 0..self.sides.len() {
                self.submit(disk);
                self.reap(disk, usize::MAX);
            }
            assert!(start.elapsed() < limit(), "requests do not end");
            std::thread::yield_now();
        }
    }

    /// Takes all back that is in flight.
    pub fn settle(&mut self) {
        let start = Instant::now();
        for disk in 0..self.sides.len() {
            while self.flying(disk) > 0 {
                self.reap(disk, usize::MAX);
                assert!(start.elapsed() < limit(), "requests do not end");
                std::thread::yield_now();
            }
        }
    }

    /// Starts the rings of a disk where the back-end knows them to be.
    pub fn start_without_positions(&self, session: &mut Session, disk: usize) {
        let features = session.features;
        session.connection.set_features(features).unwrap();
        session.share(&self.memory).unwrap();
        let connection = &session.connection;
        for (queue, ring) in (0..).zip(self.rings(disk)) {
            let at = ring.memory().addresses();
            let user = |address| self.memory.user(address).unwrap();
            let users = front_end::RingUsers {
                descriptors: user(at.descriptors),
                used: user(at.used),
                avail: user(at.avail),
                log: None,
            };
            let size = ring.memory().size();
            connection.set_vring_num(queue, size.into()).unwrap();
            connection.set_vring_addr(queue, &users).unwrap();
            connection
                .set_vring_call(queue, Some(ring.call_fd()))
                .unwrap();
            connection
                .set_vring_kick(queue, Some(ring.kick_fd()))
                .unwrap();
        }
        session.enable(true).unwrap();
    }
}
