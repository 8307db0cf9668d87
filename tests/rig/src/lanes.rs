//! Lanes of random requests, one at a time each, with every answer compared
//! with a model. A lane has its own part of the disk and its own memory, so
//! that what is read there is known to the byte whatever the others do.

use std::ops::Range;
use std::time::{Duration, Instant};

use front_end::codes::status;
use front_end::{Buffer, Driver, Error, GuestMemory, LIMIT, Op, Ring, Segment, Session};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::model::{Model, SECTOR, Value, content};
use crate::place::{QUEUE_DATA, QUEUE_MEMORY, QUEUES};
use crate::random::Random;

/// Lanes of a guest; the queues have equally many.
pub const LANES: usize = 16;
/// The longest request, in sectors.
const LONGEST: usize = 128;
/// Guest memory of a lane in bytes.
const ROOM: u64 = (LONGEST * SECTOR) as u64 + 4096;

#[derive(Debug, Clone)]
struct Request {
    op: Op,
    sectors: Range<usize>,
    value: Value,
}

/// All calls of a guest, in one place to wait at.
#[derive(Debug)]
struct Calls(Epoll);

impl Calls {
    fn new(drivers: &[Driver]) -> Calls {
        let calls = Epoll::new().unwrap();
        for driver in drivers {
            let fd = driver.ring().call_fd();
            let event = EpollEvent::new(EventSet::IN, 0);
            calls.ctl(ControlOperation::Add, fd, event).unwrap();
        }
        Calls(calls)
    }

    /// Waits for a call, or until then.
    fn wait(&self, drivers: &[Driver], until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let left = i32::try_from(left.as_millis()).unwrap();
        let mut events = [EpollEvent::default(); QUEUES];
        match self.0.wait(left, &mut events) {
            // Whoever waits until then asks again.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => drop(result.unwrap()),
        }
        for driver in drivers {
            driver.ring().take_calls().unwrap();
        }
    }
}

/// All lanes of a guest, and what came out of them.
pub struct Lanes {
    memory: GuestMemory,
    drivers: Vec<Driver>,
    calls: Calls,
    model: Model,
    sectors: usize,
    random: Random,
    value: Value,
    flying: Vec<Option<Request>>,
    /// The disk takes discards.
    pub discards: bool,
    /// What came out wrong: bytes and statuses.
    pub wrong: Vec<String>,
    /// Completions of what was not in flight.
    pub repeated: usize,
    /// Requests that have ended.
    pub ended: usize,
}

impl Lanes {
    /// Lanes over a disk whose sectors hold `values`.
    pub fn new((memory, drivers): (GuestMemory, Vec<Driver>), values: &[Value], seed: u64) -> Self {
        Self {
            memory,
            calls: Calls::new(&drivers),
            drivers,
            model: Model::new(values),
            sectors: values.len() / LANES,
            random: Random(0x9e37_79b9_7f4a_7c15 ^ seed),
            value: 1000,
            flying: vec![None; LANES],
            discards: true,
            wrong: Vec::new(),
            repeated: 0,
            ended: 0,
        }
    }

    /// Has the back-end of a session serve the rings.
    pub fn start(&self, session: &mut Session) -> front_end::Result<()> {
        let rings: Vec<&Ring> = self.drivers.iter().map(Driver::ring).collect();
        session.start(&self.memory, &rings)
    }

    /// Keeps all lanes busy until then, or until something is wrong.
    pub fn run_until(&mut self, end: Instant) {
        while self.sound() && Instant::now() < end {
            self.submit();
            self.calls.wait(&self.drivers, end);
            self.reap();
        }
    }

    /// Keeps all lanes busy until many more requests have ended; all must be
    /// right.
    pub fn proceed(&mut self) {
        let (before, start) = (self.ended, Instant::now());
        while self.ended < before + 300 {
            assert!(self.sound(), "{:?}, {} repeated", self.wrong, self.repeated);
            assert!(start.elapsed() < LIMIT, "requests do not end");
            self.run_until(Instant::now() + Duration::from_millis(20));
        }
    }

    /// Ends all that is in flight; how much did not. What a stopped ring has
    /// taken and not given back is lost.
    pub fn settle(&mut self, session: &mut Session) -> usize {
        loop {
            let bases = session.stop(u32::try_from(QUEUES).unwrap()).unwrap();
            self.reap();
            let fetched = bases
                .iter()
                .zip(&self.drivers)
                .all(|(&base, driver)| base == u32::from(driver.ring().next_avail()));
            if fetched {
                return self.flying.iter().flatten().count();
            }
            self.start(session).unwrap();
        }
    }

    /// Whether nothing was lost, repeated or wrong so far.
    pub fn sound(&self) -> bool {
        self.repeated == 0 && self.wrong.is_empty()
    }

    /// Gives each idle lane a request.
    fn submit(&mut self) {
        for lane in 0..LANES {
            if self.flying[lane].is_none() {
                let request = self.choose(lane);
                self.send(lane, request);
            }
        }
        for driver in &mut self.drivers {
            driver.publish().unwrap();
        }
    }

    fn choose(&mut self, lane: usize) -> Request {
        let most = if self.random.below(4) == 0 {
            LONGEST
        } else {
            16
        };
        let len = 1 + self.random.below(most);
        let mut start = self.random.below(self.sectors - len);
        if self.random.below(3) > 0 {
            start -= start % 8;
        }
        let start = lane * self.sectors + start;
        let op = match self.random.below(20) {
            0..9 => Op::Write,
            9..16 => Op::Read,
            16 if self.discards => Op::Discard,
            16..19 => Op::WriteZeroes,
            _ => Op::Flush,
        };
        self.value += 1;
        Request {
            op,
            sectors: start..start + len,
            value: if op == Op::Write { self.value } else { 0 },
        }
    }

    fn send(&mut self, lane: usize, request: Request) {
        let queue = lane % QUEUES;
        let at = queue as u64 * QUEUE_MEMORY + QUEUE_DATA + (lane / QUEUES) as u64 * ROOM;
        let bytes = u32::try_from(request.sectors.len() * SECTOR).unwrap();
        let data = match request.op {
            Op::Write => {
                let content = content(request.value, request.sectors.clone());
                self.memory.write(at, &content).unwrap();
                vec![Buffer::readable(at, bytes)]
            }
            Op::Read => {
                self.memory.fill(at, bytes as usize, 0xa5).unwrap();
                vec![Buffer::writable(at, bytes)]
            }
            Op::Discard | Op::WriteZeroes => {
                let segment = Segment {
                    sector: request.sectors.start as u64,
                    sectors: u32::try_from(request.sectors.len()).unwrap(),
                    flags: u32::from(request.op == Op::WriteZeroes && self.random.below(2) == 0),
                };
                self.memory.write(at, &segment.bytes()).unwrap();
                vec![Buffer::readable(at, 16)]
            }
            _ => Vec::new(),
        };
        let sector = match request.op {
            Op::Read | Op::Write => request.sectors.start as u64,
            _ => 0,
        };
        assert!(self.drivers[queue].submit(request.op, sector, &data, lane as u64));
        self.flying[lane] = Some(request);
    }

    /// Takes all that has ended, and looks at what it did; how much it was.
    pub fn reap(&mut self) -> usize {
        let mut count = 0;
        for queue in 0..QUEUES {
            loop {
                match self.drivers[queue].pop() {
                    Ok(None) => break,
                    Ok(Some(done)) => {
                        count += 1;
                        self.judge(usize::try_from(done.tag).unwrap(), done.status);
                    }
                    Err(Error::NotInFlight(_)) => self.repeated += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            self.drivers[queue].ring().want_call(true);
        }
        count
    }

    fn judge(&mut self, lane: usize, status: u8) {
        let Some(Request { op, sectors, value }) = self.flying[lane].take() else {
            self.repeated += 1;
            return;
        };
        self.ended += 1;
        if status != status::OK {
            let text = format!("status {status} of {op:?} of {sectors:?}");
            self.wrong.push(text);
            self.model.maybe(sectors, value);
            return;
        }
        match op {
            Op::Write | Op::WriteZeroes => self.model.end(sectors, value),
            Op::Discard => self.model.maybe(sectors, 0),
            Op::Read => {
                let queue = lane % QUEUES;
                let at = queue as u64 * QUEUE_MEMORY + QUEUE_DATA + (lane / QUEUES) as u64 * ROOM;
                let bytes = self.memory.read(at, sectors.len() * SECTOR).unwrap();
                if let Some(wrong) = self.model.faults(sectors, &bytes).next() {
                    self.wrong.push(wrong.text);
                }
            }
            _ => {}
        }
    }

    /// Compares a whole disk that nothing works on with the model.
    pub fn check(&mut self, disk: &[u8]) {
        let sectors = 0..disk.len() / SECTOR;
        if let Some(wrong) = self.model.faults(sectors, disk).next() {
            self.wrong.push(format!("at the end {}", wrong.text));
        }
    }
}
