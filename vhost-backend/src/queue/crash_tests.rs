//! A process that dies between any two stores, and its successor: nothing is
//! left of the first but guest memory and the record of requests in flight.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::chain::Scratch;
use super::disk::Disk;
use super::tags::Tags;
use super::*;
use crate::command::Mode;
use crate::held::Holding;
use crate::limits::gate::Gate;
use crate::memory::inflight::{self, Inflight, Shape};
use crate::testing::fake::{FakeDisk, Io, Submitted};
use crate::testing::guest::{Driver, Guest, WRITE, header};

const SIZE: u16 = 32;
const SHAPE: Shape = Shape {
    queues: 1,
    entries: SIZE,
};
/// Indices wrap around soon.
const FIRST: u16 = 0xfffc;

/// What request `i` is; the last is no request at all.
const KINDS: [u32; 9] = [
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    BAD,
];
const BAD: u32 = 4711;

fn head(i: usize) -> u16 {
    3 * u16::try_from(i).unwrap()
}

fn at(i: usize) -> u64 {
    0x1_0000 + 0x1000 * i as u64
}

/// Where the next process begins to fetch, if it believes the front-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    /// As QEMU says.
    Used,
    /// As cloud-hypervisor says.
    Avail,
    Nonsense,
}

/// What survives a process.
struct World {
    driver: Driver,
    record: File,
    /// Requests that the driver waits for, in the order it offered them.
    waiting: Vec<usize>,
    base: Base,
    recorded: bool,
}

impl World {
    fn new(base: Base, recorded: bool) -> Self {
        let guest = Guest::new(&[(0, 0x10_0000)]);
        let mut driver = Driver::new(&guest, 0x1000, SIZE);
        (driver.avail, driver.used) = (FIRST, FIRST);
        driver.avail_idx().store(FIRST, Ordering::Release);
        driver.used_idx().store(FIRST, Ordering::Release);
        Self {
            driver,
            record: inflight::create(SHAPE).unwrap(),
            waiting: Vec::new(),
            base,
            recorded,
        }
    }

    /// Offers request `i`, unless the driver still waits for it.
    fn offer(&mut self, i: usize) {
        if self.waiting.contains(&i) {
            return;
        }
        let (data, status) = (at(i) + 0x200, at(i) + 0x800);
        let guest = &self.driver.guest;
        guest.fill(at(i), 0x1000, 0xff);
        guest.write(at(i), &header(KINDS[i], i as u64));
        let middle = match KINDS[i] {
            VIRTIO_BLK_T_IN => Some((data, 512, WRITE)),
            VIRTIO_BLK_T_OUT => Some((data, 512, 0)),
            VIRTIO_BLK_T_GET_ID => Some((data, 20, WRITE)),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                guest.write(data, &[1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
                Some((data, 16, 0))
            }
            _ => None,
        };
        let chain: Vec<_> = [(at(i), 16, 0)]
            .into_iter()
            .chain(middle)
            .chain((KINDS[i] != BAD).then_some((status, 1, WRITE)))
            .collect();
        self.driver.chain(head(i), &chain);
        self.driver.offer(head(i));
        self.waiting.push(i);
    }

    /// Sees what has been answered: only what the driver waits for.
    fn look(&mut self) -> Result<(), String> {
        for (answered, _) in self.driver.take_used() {
            let index = self
                .waiting
                .iter()
                .position(|i| u32::from(head(*i)) == answered)
                .ok_or(format!("head {answered} was answered twice"))?;
            let i = self.waiting.remove(index);
            let status = self.driver.guest.byte(at(i) + 0x800);
            let read = self.driver.guest.byte(at(i) + 0x200 + 511);
            if KINDS[i] != BAD && status != 0 || KINDS[i] == VIRTIO_BLK_T_IN && read != 0x5a {
                return Err(format!("request {i} was not carried out"));
            }
        }
        Ok(())
    }
}

/// A process.
struct Life {
    queue: Queue,
    common: Common<FakeDisk>,
    io: Arc<Io>,
}

impl Life {
    fn begin(world: &World) -> Self {
        let memory = Arc::clone(&world.driver.guest.memory);
        let disk = Arc::new(FakeDisk::new(false));
        let io = Arc::clone(&disk.io);
        let mut common = Common {
            channel: disk.roomy_channel(usize::from(SIZE)),
            epochs: Epochs::new(memory),
            scratch: Scratch::new(),
            disk: Disk::new(disk, Arc::new(Mode::default())),
            tags: Tags::full(usize::from(SIZE)),
            dirty: None,
            gate: Gate::default(),
            timed: false,
            holding: Holding::default(),
        };
        let next_avail = match world.base {
            Base::Used => world.driver.used_idx().load(Ordering::Acquire),
            Base::Avail => world.driver.avail_idx().load(Ordering::Acquire),
            Base::Nonsense => 0x1234,
        };
        let record = world.record.try_clone().unwrap();
        let inflight = Inflight::open(record, 0, SHAPE.bytes(), SHAPE).unwrap();
        let setup = crate::command::RingSetup {
            size: SIZE,
            addresses: world.driver.at,
            next_avail,
            inflight: world.recorded.then(|| inflight.region(0).unwrap()),
            used_log: None,
            event_idx: false,
            kick: None,
            enabled: true,
        };
        let mut queue = Queue::new(0, 0, <_>::default());
        assert!(queue.start(&setup, &common.epochs));
        queue.resubmit(&mut common);
        queue.publish();
        Self { queue, common, io }
    }

    fn fetch(&mut self, most: usize) {
        self.common.scratch.begin_turn();
        self.queue.fetch(most, &mut self.common);
        self.queue.publish();
    }

    /// Ends those of these requests that are in flight, as one batch.
    fn end(&mut self, requests: &[usize]) {
        for i in requests {
            if let Some(tag) = self.common.tags.of(0, head(*i)) {
                self.io.end(tag, Status::Ok);
            }
        }
        let Self { queue, common, .. } = self;
        common.reap(std::slice::from_mut(queue));
        queue.publish();
    }
}

/// Requests that end in another order than they came, alone and in batches,
/// with heads that are used again.
fn live(world: &mut World, seen: &mut Result<(), String>) {
    let mut life = Life::begin(world);
    for i in [0, 1, 2, 3] {
        world.offer(i);
    }
    life.fetch(2);
    life.fetch(64);
    life.end(&[1]);
    *seen = world.look();
    for i in [4, 1, 8, 5] {
        world.offer(i);
    }
    life.fetch(64);
    life.end(&[3, 0, 4]);
    *seen = seen.clone().and(world.look());
    for i in [6, 3, 7, 0] {
        world.offer(i);
    }
    life.fetch(64);
    life.end(&[7, 1, 6]);
    life.end(&[0]);
    *seen = seen.clone().and(world.look());
}

/// The last process, which lives on: carries out what is left in the order
/// of the driver's offers, and then something new.
fn live_on(world: &mut World) -> Result<(), String> {
    world.look()?;
    let mut life = Life::begin(world);
    life.fetch(64);
    let expected: Vec<u32> = world
        .waiting
        .iter()
        .filter(|i| ![BAD, VIRTIO_BLK_T_GET_ID].contains(&KINDS[**i]))
        .map(|i| u32::from(head(*i)))
        .collect();
    let head = |request: &Submitted| life.common.tags.head(request.tag).unwrap();
    let submitted: Vec<u32> = life
        .io
        .pending()
        .iter()
        .map(|r| u32::from(head(r)))
        .collect();
    if submitted != expected {
        return Err(format!("{submitted:?} instead of {expected:?}"));
    }
    for round in 0..2 {
        life.end(&[5, 0, 3, 7, 1, 4, 6]);
        world.look()?;
        if !world.waiting.is_empty() {
            return Err(format!("{:?} were not answered", world.waiting));
        }
        if round == 0 {
            [6, 2, 1].into_iter().for_each(|i| world.offer(i));
            life.fetch(64);
        }
    }
    Ok(())
}

/// Lets processes die after so many stores, each, and sees what comes of it.
/// `None`: the last of them came to its end.
fn die(world: &mut World, deaths: &[usize]) -> Option<Result<(), String>> {
    let mut seen = Ok(());
    for stores in deaths {
        if crate::crash::run(*stores, || live(world, &mut seen)) {
            return None;
        }
        if seen.is_err() {
            return Some(seen);
        }
    }
    Some(live_on(world))
}

/// All that comes of one death.
fn outcomes(base: Base, recorded: bool) -> Vec<Result<(), String>> {
    (0..)
        .map_while(|stores| die(&mut World::new(base, recorded), &[stores]))
        .collect()
}

const BASES: [Base; 3] = [Base::Used, Base::Avail, Base::Nonsense];

#[test]
fn vu_31_vu_32_vu_33_every_request_completes_once_wherever_the_process_dies() {
    for base in BASES {
        let outcomes = outcomes(base, true);
        assert!(outcomes.len() > 80, "{} stores", outcomes.len());
        for (stores, outcome) in outcomes.iter().enumerate() {
            assert_eq!(*outcome, Ok(()), "{base:?}, after {stores} stores");
        }
    }
}

#[test]
fn vu_32_a_successor_may_die_as_well() {
    for first in (0..).step_by(3) {
        let mut died = false;
        for second in 0.. {
            let mut world = World::new(BASES[second % 3], true);
            let Some(outcome) = die(&mut world, &[first, second]) else {
                break;
            };
            assert_eq!(outcome, Ok(()), "after {first} and {second} stores");
            died = true;
        }
        if !died {
            break;
        }
    }
}

#[test]
fn vu_33_without_the_record_requests_are_lost_or_repeated() {
    for base in [Base::Used, Base::Avail] {
        let outcomes = outcomes(base, false);
        let bad = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert!(bad > outcomes.len() / 4, "{base:?}: {bad}");
    }
}
