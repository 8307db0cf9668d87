//! The queue under test beside what is known of it, checked after each step.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vhost_backend::fuzzing::{PATTERN, Place, Region, Rig, memory_file};
use vhost_backend::{Op, Status};

use crate::driver::{self, Chain, MEMORY, u16_at};
use crate::rules::{self, Disk, Verdict};

/// The largest ring.
const SLOTS: u16 = 32;

/// A request that the disk has.
struct Flight {
    op: Op,
    /// To be written to the disk.
    out: Option<Vec<u8>>,
    /// Read from the disk.
    bytes: u32,
    status: usize,
}

/// A started ring.
struct Ring {
    at: Place,
    size: u16,
    event_idx: bool,
    enabled: bool,
    /// Offsets of its parts, while it lies in memory.
    place: Option<[usize; 3]>,
    next: u16,
    seen: u16,
    used: u16,
    published: u16,
    armed: bool,
    broken: bool,
    /// Answers that could not be written.
    unplaced: Vec<(u16, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Popped {
    Nothing,
    Broken,
    Head(u16),
}

/// What a step has to write, in this order, and nothing else.
#[derive(Debug, Default)]
struct Writes(Vec<(usize, Vec<u8>)>);

impl Writes {
    fn add(&mut self, at: usize, bytes: &[u8]) {
        self.0.push((at, bytes.to_vec()));
    }

    /// The buffers from the front on.
    fn scatter(&mut self, buffers: &[Range<usize>], mut bytes: &[u8]) {
        for buffer in buffers {
            let (now, later) = bytes.split_at(buffer.len().min(bytes.len()));
            self.add(buffer.start, now);
            bytes = later;
        }
    }

    /// Answers a chain, now or once the ring lies in memory.
    fn answer(&mut self, ring: &mut Ring, head: u16, len: u32) {
        let Some(place) = ring.place else {
            ring.unplaced.push((head, len));
            return;
        };
        let slot = usize::from(ring.used % ring.size);
        self.add(place[2] + 4 + 8 * slot, &u32::from(head).to_le_bytes());
        self.add(place[2] + 8 + 8 * slot, &len.to_le_bytes());
        ring.used = ring.used.wrapping_add(1);
    }

    fn publish(&mut self, ring: &mut Ring) {
        if let Some(place) = ring.place.filter(|_| ring.used != ring.published) {
            self.add(place[2] + 2, &ring.used.to_le_bytes());
            ring.published = ring.used;
        }
    }

    fn arm(&mut self, ring: &mut Ring) {
        let Some(place) = ring.place.filter(|_| !ring.armed && !ring.broken) else {
            return;
        };
        if ring.event_idx {
            let event = place[2] + 4 + 8 * usize::from(ring.size);
            self.add(event, &ring.next.to_le_bytes());
        }
        self.add(place[2], &[0, 0]);
        ring.armed = true;
    }

    fn disarm(&mut self, ring: &mut Ring) {
        let Some(place) = ring.place.filter(|_| ring.armed) else {
            return;
        };
        if !ring.event_idx {
            self.add(place[2], &[1, 0]);
        }
        ring.armed = false;
    }

    /// Memory after all that.
    fn apply(&self, memory: &mut [u8]) {
        for (at, bytes) in &self.0 {
            memory[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

pub struct Model {
    rig: Rig,
    file: File,
    disk: Disk,
    tables: [Vec<Region>; 4],
    table: usize,
    ring: Option<Ring>,
    stopping: bool,
    flights: BTreeMap<u16, Flight>,
    /// The driver's own next index.
    avail: u16,
}

impl Model {
    pub fn new(disk: Disk) -> Model {
        let file = memory_file(MEMORY as u64);
        let mut rig = Rig::new(SLOTS, disk.info(), disk.capacity(), disk.writeback);
        let tables = driver::tables();
        rig.share(&file, &tables[0]);
        Model {
            rig,
            file,
            disk,
            tables,
            table: 0,
            ring: None,
            stopping: false,
            flights: BTreeMap::new(),
            avail: 0,
        }
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; MEMORY];
        self.file.read_exact_at(&mut memory, 0).unwrap();
        memory
    }

    /// Does one step of the code under test; memory has to change in this way and no other.
    fn step<T>(&mut self, writes: &Writes, step: impl FnOnce(&mut Rig) -> T) -> T {
        let mut expected = self.memory();
        writes.apply(&mut expected);
        let result = step(&mut self.rig);
        let memory = self.memory();
        if memory != expected {
            let wrong = (0..MEMORY).find(|at| memory[*at] != expected[*at]);
            panic!("{wrong:x?} is not as it should be after {writes:x?}");
        }
        result
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let at = at % MEMORY;
        let room = bytes.len().min(MEMORY - at);
        self.file.write_all_at(&bytes[..room], at as u64).unwrap();
    }

    fn part(&self, index: usize) -> Option<usize> {
        self.ring.as_ref()?.place.map(|place| place[index])
    }

    /// Entries of the ring.
    pub fn size(&self) -> usize {
        self.ring.as_ref().map_or(1, |ring| ring.size.into())
    }

    pub fn describe(&mut self, index: usize, bytes: &[u8]) {
        if let Some(at) = self.part(0) {
            self.write(at + 16 * index, bytes);
        }
    }

    pub fn offer(&mut self, head: u16) {
        if let (Some(at), Some(ring)) = (self.part(1), &self.ring) {
            let slot = self.avail % ring.size;
            self.write(at + 4 + 2 * usize::from(slot), &head.to_le_bytes());
            self.set_avail(self.avail.wrapping_add(1));
        }
    }

    pub fn set_avail(&mut self, index: u16) {
        self.avail = index;
        if let Some(at) = self.part(1) {
            self.write(at + 2, &index.to_le_bytes());
        }
    }

    pub fn start(&mut self, size: u16, at: Place, next: u16, event_idx: bool) {
        let place = driver::place(&self.tables[self.table], at, size, event_idx);
        let started = self.step(&Writes::default(), |rig| {
            rig.start(size, at, next, event_idx)
        });
        assert_eq!(started, place.is_some() && self.ring.is_none());
        let Some(place) = place.filter(|_| started) else {
            return;
        };
        let used = u16_at(&self.memory(), place[2] + 2);
        self.avail = next;
        self.ring = Some(Ring {
            at,
            size,
            event_idx,
            enabled: true,
            place: Some(place),
            next,
            seen: next,
            used,
            published: used,
            armed: false,
            broken: false,
            unplaced: Vec::new(),
        });
    }

    pub fn enable(&mut self, on: bool) {
        self.step(&Writes::default(), |rig| rig.enable(on));
        if let Some(ring) = &mut self.ring {
            ring.enabled = on;
        }
    }

    pub fn stop(&mut self) {
        self.step(&Writes::default(), Rig::stop);
        self.stopping = true;
    }

    pub fn settle(&mut self) {
        let mut writes = Writes::default();
        let ready = self.stopping && self.flights.is_empty();
        if let Some(ring) = self.ring.as_mut().filter(|_| ready) {
            writes.publish(ring);
            writes.arm(ring);
        }
        let settled = self.step(&writes, Rig::settle);
        assert_eq!(settled.is_some(), ready);
        if let Some(next) = settled {
            assert_eq!(next, self.ring.take().map(|ring| ring.next));
            self.stopping = false;
        }
    }

    /// The ring after its memory or addresses were replaced.
    fn moved(&mut self) -> Writes {
        let mut writes = Writes::default();
        if let Some(ring) = &mut self.ring {
            let table = &self.tables[self.table];
            ring.place = driver::place(table, ring.at, ring.size, ring.event_idx);
            ring.armed = false;
            for (head, len) in std::mem::take(&mut ring.unplaced) {
                writes.answer(ring, head, len);
            }
        }
        writes
    }

    pub fn share(&mut self, table: usize) {
        self.table = table % self.tables.len();
        let writes = self.moved();
        let file = self.file.try_clone().unwrap();
        let regions = self.tables[self.table].clone();
        self.step(&writes, |rig| rig.share(&file, &regions));
    }

    pub fn relocate(&mut self, at: Place) {
        if let Some(ring) = &mut self.ring {
            ring.at = at;
        }
        let writes = self.moved();
        let lies = self.step(&writes, |rig| rig.relocate(at));
        let place = self.ring.as_ref().map(|ring| ring.place.is_some());
        assert_eq!(lies, place.unwrap_or(true));
    }

    /// The ring that is served now.
    fn active(&mut self) -> Option<&mut Ring> {
        let ring = self.ring.as_mut()?;
        (ring.enabled && !self.stopping && !ring.broken && ring.place.is_some()).then_some(ring)
    }

    pub fn arm(&mut self) {
        let (mut memory, mut writes) = (self.memory(), Writes::default());
        let mut more = false;
        if let Some(ring) = self.active() {
            writes.arm(ring);
            writes.apply(&mut memory);
            let [_, avail, _] = ring.place.unwrap_or_default();
            more = u16_at(&memory, avail + 2) != ring.next;
        }
        assert_eq!(self.step(&writes, Rig::arm), more);
    }

    pub fn publish(&mut self) {
        let mut writes = Writes::default();
        if let Some(ring) = &mut self.ring {
            writes.publish(ring);
        }
        self.step(&writes, Rig::publish);
    }

    /// Takes the next head off the available ring.
    fn pop(&mut self, memory: &[u8]) -> Popped {
        let Some(ring) = self.active() else {
            return Popped::Nothing;
        };
        let [_, avail, _] = ring.place.unwrap_or_default();
        if ring.seen == ring.next {
            let index = u16_at(memory, avail + 2);
            ring.broken = index.wrapping_sub(ring.next) > ring.size;
            if ring.broken {
                return Popped::Broken;
            }
            ring.seen = index;
        }
        if ring.seen == ring.next {
            return Popped::Nothing;
        }
        let slot = usize::from(ring.next % ring.size);
        ring.next = ring.next.wrapping_add(1);
        Popped::Head(u16_at(memory, avail + 4 + 2 * slot))
    }

    /// Whether the run can go on.
    pub fn fetch(&mut self) -> bool {
        let (mut memory, mut writes) = (self.memory(), Writes::default());
        let popped = self.pop(&memory);
        if let Some(ring) = self.ring.as_mut().filter(|_| popped != Popped::Nothing) {
            // Before the chain is looked at, which may lie in the same place.
            writes.disarm(ring);
            writes.apply(&mut memory);
        }
        let mut flight = None;
        if let Popped::Head(head) = popped {
            match self.expect(head, &memory, &mut writes) {
                Some(expected) => flight = expected,
                None => return false,
            }
        }
        let fetched = self.step(&writes, Rig::fetch);
        assert_eq!(fetched, matches!(popped, Popped::Head(_)));
        if let (Popped::Head(head), Some(flight)) = (popped, flight) {
            let pending = self.rig.pending();
            let submitted = pending.iter().find(|submitted| submitted.head == head);
            let submitted = submitted.expect("was not submitted");
            assert_eq!(submitted.op, flight.op);
            match &flight.out {
                Some(out) => assert_eq!(&submitted.data, out),
                None => assert_eq!(submitted.data, vec![PATTERN; flight.bytes as usize]),
            }
            self.flights.insert(head, flight);
        }
        let heads: Vec<u16> = self.rig.pending().iter().map(|one| one.head).collect();
        assert!(heads.iter().all(|head| self.flights.contains_key(head)));
        assert_eq!(heads.len(), self.flights.len());
        true
    }

    /// What has to be written for a chain, and what becomes a request in flight. `None`: no
    /// telling.
    fn expect(&mut self, head: u16, memory: &[u8], writes: &mut Writes) -> Option<Option<Flight>> {
        let (Some(ring), Some(regions)) = (&mut self.ring, self.tables.get(self.table)) else {
            return Some(None);
        };
        let Some([descriptors, ..]) = ring.place else {
            return Some(None);
        };
        // It names no chain, or one that will be answered anyway.
        if head >= ring.size || self.flights.contains_key(&head) {
            return Some(None);
        }
        let (readable, buffers, at) =
            match driver::chain(memory, regions, descriptors, ring.size, head) {
                Chain::Long => return None,
                Chain::Endless => {
                    writes.answer(ring, head, 0);
                    return Some(None);
                }
                Chain::Bad(status) => {
                    if let Some(at) = status {
                        writes.add(at, &[Status::IoErr as u8]);
                    }
                    writes.answer(ring, head, 0);
                    return Some(None);
                }
                Chain::Good(readable, buffers, at) => (readable, buffers, at),
            };
        let writable = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let mut answer = |status, bytes: &[u8]| {
            writes.scatter(&buffers, bytes);
            writes.add(at, &[status as u8]);
            writes.answer(ring, head, bytes.len() as u32 + 1);
        };
        let flight = |op, out, bytes| Flight {
            op,
            out,
            bytes,
            status: at,
        };
        Some(match rules::judge(&self.disk, &readable, writable) {
            Verdict::Refused(with) => {
                // Where there is a choice, one is as good as the other.
                answer(*with.last()?, &[]);
                None
            }
            Verdict::Answered(bytes) => {
                answer(Status::Ok, &bytes);
                None
            }
            Verdict::Out(op, data) => Some(flight(op, Some(data), 0)),
            Verdict::Bare(op) => Some(flight(op, None, 0)),
            Verdict::In(op, bytes) => {
                let bytes = u32::try_from(bytes).ok()?;
                writes.scatter(&buffers, &vec![PATTERN; bytes as usize]);
                Some(flight(op, None, bytes))
            }
        })
    }

    pub fn end(&mut self, which: usize, status: u8) {
        let heads: Vec<u16> = self.flights.keys().copied().collect();
        let Some(&head) = heads.get(which % heads.len().max(1)) else {
            return;
        };
        let status = [Status::Ok, Status::IoErr, Status::Unsupp][usize::from(status % 3)];
        let Some(flight) = self.flights.remove(&head) else {
            return;
        };
        let mut writes = Writes::default();
        writes.add(flight.status, &[status as u8]);
        if let Some(ring) = &mut self.ring {
            let data = if status == Status::Ok {
                flight.bytes
            } else {
                0
            };
            writes.answer(ring, head, data + 1);
        }
        self.step(&writes, |rig| rig.end(head, status));
        assert!(self.rig.pending().iter().all(|one| one.head != head));
    }

    /// Everything is answered in the end.
    pub fn finish(&mut self) {
        while !self.flights.is_empty() {
            self.end(0, 0);
        }
        self.publish();
        assert!(self.rig.pending().is_empty());
    }
}
