use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Scratch;
use super::disk::Disk;
use super::tags::Tags;
use super::*;
use crate::command::Mode;
use crate::device::Op;
use crate::held::Holding;
use crate::limits::gate::Gate;
use crate::memory::Memory;
use crate::testing::fake::{FakeDisk, Io};
use crate::testing::guest::{Driver, Guest, WRITE, header};

mod held;

const SIZE: u16 = 32;
/// Request `i` has its header, data and status from here on.
const DATA: u64 = 0x1_0000;

struct Rig {
    driver: Driver,
    queue: Queue,
    common: Common<FakeDisk>,
    io: Arc<Io>,
    call: EventFd,
}

fn rig() -> Rig {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let driver = Driver::new(&guest, 0x1000, SIZE);
    let disk = Arc::new(FakeDisk::new(false));
    let io = Arc::clone(&disk.io);
    let common = Common {
        channel: disk.roomy_channel(usize::from(SIZE)),
        epochs: Epochs::new(Arc::clone(&guest.memory)),
        scratch: Scratch::new(),
        disk: Disk::new(disk, Arc::new(Mode::default())),
        tags: Tags::full(usize::from(SIZE)),
        dirty: None,
        gate: Gate::default(),
        timed: false,
        holding: Holding::default(),
    };
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut queue = Queue::new(0, 0, <_>::default());
    queue.set_call(Some(call.try_clone().unwrap()));
    assert_eq!(call.read().unwrap(), 1, "it is signalled when it is given");
    let mut rig = Rig {
        driver,
        queue,
        common,
        io,
        call,
    };
    assert!(rig.start(0));
    rig
}

impl Rig {
    fn start(&mut self, next_avail: u16) -> bool {
        let setup = crate::command::RingSetup {
            size: SIZE,
            addresses: self.driver.at,
            next_avail,
            inflight: None,
            used_log: None,
            event_idx: false,
            kick: None,
            enabled: true,
        };
        self.queue.start(&setup, &self.common.epochs)
    }

    fn status_at(i: u16) -> u64 {
        DATA + 0x1000 * u64::from(i) + 0x800
    }

    /// Writes request `i` into descriptors `3 * i ..`, with one sector.
    fn prepare(&self, i: u16, kind: u32) -> u16 {
        let at = DATA + 0x1000 * u64::from(i);
        self.driver.guest.write(at, &header(kind, u64::from(i)));
        self.driver.guest.fill(Self::status_at(i), 1, 0xff);
        let data = if kind == VIRTIO_BLK_T_OUT { 0 } else { WRITE };
        self.driver.chain(
            3 * i,
            &[
                (at, 16, 0),
                (at + 0x200, 512, data),
                (Self::status_at(i), 1, WRITE),
            ],
        );
        3 * i
    }

    fn offer(&mut self, i: u16, kind: u32) {
        let head = self.prepare(i, kind);
        self.driver.offer(head);
    }

    fn fetch(&mut self) -> usize {
        self.common.scratch.begin_turn();
        self.queue.fetch(64, &mut self.common)
    }

    /// Ends request `i`.
    fn end(&mut self, i: u16, status: Status) {
        let tag = self.common.tags.of(0, 3 * i).unwrap();
        self.io.end(tag, status);
        self.common.reap(std::slice::from_mut(&mut self.queue));
    }

    fn status(&self, i: u16) -> u8 {
        self.driver.guest.byte(Self::status_at(i))
    }

    fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    fn stop(&mut self) -> Receiver<Answer> {
        let (answer, answered) = sync_channel(1);
        self.queue.stop(answer, true, &mut self.common.holding);
        answered
    }
}

#[test]
fn blk_10_the_status_is_written_before_the_used_index_moves() {
    let mut rig = rig();
    rig.offer(0, VIRTIO_BLK_T_IN);
    assert_eq!(rig.fetch(), 1);
    assert_eq!(rig.status(0), 0xff);
    rig.end(0, Status::Ok);
    assert_eq!(rig.status(0), 0);
    assert_eq!(rig.driver.take_used(), []);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 513)]);
}

#[test]
fn blk_16_the_used_length_is_what_was_written() {
    let mut rig = rig();
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.offer(1, VIRTIO_BLK_T_OUT);
    rig.offer(2, VIRTIO_BLK_T_IN);
    rig.offer(3, VIRTIO_BLK_T_GET_ID);
    rig.offer(4, 99);
    rig.fetch();
    rig.end(0, Status::Ok);
    rig.end(1, Status::Ok);
    rig.end(2, Status::IoErr);
    rig.queue.publish();
    // Those that need no I/O end first.
    assert_eq!(
        rig.driver.take_used(),
        [(9, 21), (12, 1), (0, 513), (3, 1), (6, 1)]
    );
    assert_eq!([0, 1, 2, 3, 4].map(|i| rig.status(i)), [0, 0, 1, 0, 2]);
    assert_eq!(rig.interrupts(), 1, "one for all");
}

#[test]
fn ring_05_a_bad_chain_is_returned_and_others_are_served() {
    let mut rig = rig();
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.driver.describe(3, 0, 16, 1, 3);
    rig.driver.offer(3);
    rig.driver.offer(SIZE);
    rig.offer(2, VIRTIO_BLK_T_IN);
    assert_eq!(rig.fetch(), 4);
    assert_eq!(rig.io.pending().len(), 2);
    rig.end(0, Status::Ok);
    rig.end(2, Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(3, 0), (0, 513), (6, 513)]);
}

#[test]
fn ring_06_too_many_pieces_fail_with_a_status() {
    let mut rig = rig();
    let pieces = crate::queue::chain::MAX_SEGMENTS as u64 + 1;
    let mut table = vec![crate::testing::guest::descriptor(DATA, 16, 1, 1)];
    table.extend((2..pieces + 2).map(|next| {
        crate::testing::guest::descriptor(DATA + 0x200, 512, 3, u16::try_from(next).unwrap())
    }));
    table.push(crate::testing::guest::descriptor(
        Rig::status_at(0),
        1,
        2,
        0,
    ));
    rig.prepare(0, VIRTIO_BLK_T_IN);
    rig.common.disk = {
        let disk = FakeDisk::new(false);
        disk.capacity
            .store(1 << 30, std::sync::atomic::Ordering::Relaxed);
        Disk::new(Arc::new(disk), Arc::new(Mode::default()))
    };
    rig.driver.guest.write(0x4_0000, &table.concat());
    rig.driver
        .describe(0, 0x4_0000, u32::try_from(16 * table.len()).unwrap(), 4, 0);
    rig.driver.offer(0);
    rig.fetch();
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 1)]);
    assert_eq!(rig.status(0), 1);
}

#[test]
fn ring_09_a_refused_chain_gets_a_status_where_one_is_found() {
    let mut rig = rig();
    rig.prepare(0, VIRTIO_BLK_T_IN);
    rig.driver.chain(
        0,
        &[
            (DATA, 16, 0),
            (Rig::status_at(0), 1, WRITE),
            (DATA + 0x200, 512, 0),
        ],
    );
    rig.driver.offer(0);
    rig.fetch();
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 0)]);
    assert_eq!(rig.status(0), 1);
}

#[test]
fn ring_04_a_broken_ring_is_reported_once_and_still_answers() {
    let mut rig = rig();
    let err = EventFd::new(EFD_NONBLOCK).unwrap();
    rig.queue.set_err(Some(err.try_clone().unwrap()));
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.fetch();
    rig.driver
        .avail_idx()
        .store(SIZE + 2, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(rig.fetch(), 0);
    assert_eq!(rig.fetch(), 0);
    assert!(!rig.queue.arm());
    assert!(!rig.queue.needs_polling());
    assert_eq!(err.read().unwrap(), 1);
    rig.end(0, Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 513)]);
}

#[test]
fn ring_18_requests_end_in_any_order() {
    let mut rig = rig();
    for i in 0..5 {
        rig.offer(i, VIRTIO_BLK_T_IN);
    }
    rig.fetch();
    for i in [3, 0, 4, 1, 2] {
        rig.end(i, Status::Ok);
        rig.queue.publish();
        assert_eq!(rig.driver.take_used(), [(u32::from(3 * i), 513)]);
    }
}

#[test]
fn ring_20_nothing_is_written_after_the_stop() {
    let mut rig = rig();
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.offer(1, VIRTIO_BLK_T_IN);
    rig.queue.fetch(1, &mut rig.common);
    let stopped = rig.stop();
    assert!(!rig.queue.settle(), "VU-14: a request is in flight");
    assert_eq!(rig.fetch(), 0);
    stopped.try_recv().unwrap_err();
    rig.end(0, Status::Ok);
    assert!(rig.queue.settle());
    assert_eq!(stopped.try_recv(), Ok(Answer::Stopped(Some(1))));
    assert_eq!(rig.driver.take_used(), [(0, 513)]);
    assert_eq!(rig.interrupts(), 1);

    let before = rig.driver.guest.read(0, 0x10_0000);
    rig.fetch();
    rig.queue.arm();
    rig.queue.publish();
    assert!(!rig.queue.settle());
    assert_eq!(rig.driver.guest.read(0, 0x10_0000), before);
    assert_eq!(rig.interrupts(), 0);

    assert!(rig.start(1), "and it can be started again");
    assert_eq!(
        rig.interrupts(),
        1,
        "an interrupt may have been lost between two owners"
    );
    assert_eq!(rig.fetch(), 1);
}

#[test]
fn vu_14_stopping_what_was_not_started() {
    let mut rig = rig();
    let stopped = rig.stop();
    rig.queue.settle();
    assert_eq!(stopped.try_recv(), Ok(Answer::Stopped(Some(0))));
    let stopped = rig.stop();
    rig.queue.settle();
    assert_eq!(stopped.try_recv(), Ok(Answer::Stopped(None)));
}

#[test]
fn ring_21_a_head_in_flight_is_not_served_twice() {
    let mut rig = rig();
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.driver.offer(0);
    rig.offer(1, VIRTIO_BLK_T_IN);
    assert_eq!(rig.fetch(), 3);
    assert_eq!(rig.io.pending().len(), 2);
    rig.end(0, Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 513)]);
    rig.offer(0, VIRTIO_BLK_T_OUT);
    assert_eq!(rig.fetch(), 1);
    rig.end(0, Status::Ok);
    rig.end(1, Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 1), (3, 513)]);
    assert_eq!(rig.queue.in_flight(), 0);
}

#[test]
fn a_completion_that_nobody_waits_for_is_ignored() {
    let mut rig = rig();
    for head in [3, u16::MAX] {
        let Common {
            epochs,
            dirty,
            holding,
            ..
        } = &mut rig.common;
        let completion = Completion {
            tag: Tag(0),
            status: Status::Ok,
        };
        rig.queue.complete(head, completion, epochs, dirty, holding);
    }
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), []);
}

#[test]
fn vu_13_a_disabled_ring_executes_nothing_and_loses_nothing() {
    let mut rig = rig();
    rig.queue.enable(false);
    rig.offer(0, VIRTIO_BLK_T_IN);
    assert_eq!(rig.fetch(), 0);
    assert!(!rig.queue.arm());
    rig.queue.enable(true);
    assert_eq!(rig.fetch(), 1);
    assert_eq!(rig.io.pending()[0].op, Op::Read { offset: 0 });
}

#[test]
fn vu_21_requests_keep_the_memory_they_began_with() {
    let mut rig = rig();
    let old = rig.driver.guest.clone();
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.fetch();
    let new = Guest::new(&[(0, 0x10_0000)]);
    new.write(0, &old.read(0, 0x10_0000));
    rig.driver.guest = new;
    rig.common
        .epochs
        .replace(Arc::clone(&rig.driver.guest.memory));
    assert!(rig.queue.relocate(&rig.common.epochs, None));
    assert!(!rig.common.epochs.only_current());
    rig.offer(1, VIRTIO_BLK_T_IN);
    rig.fetch();

    rig.end(0, Status::Ok);
    assert!(rig.common.epochs.only_current());
    assert_eq!(
        old.byte(Rig::status_at(0)),
        0,
        "where the request came from"
    );
    assert_eq!(rig.status(0), 0xff);
    rig.end(1, Status::Ok);
    assert_eq!(rig.status(1), 0);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(0, 513), (3, 513)]);
    assert_eq!(
        Arc::strong_count(&old.memory),
        1,
        "nobody holds the old table"
    );
}

#[test]
fn vu_24_a_ring_outside_memory_rests() {
    let mut rig = rig();
    let old = Arc::clone(&rig.driver.guest.memory);
    rig.offer(0, VIRTIO_BLK_T_IN);
    rig.common.epochs.replace(Arc::new(Memory::default()));
    assert!(!rig.queue.relocate(&rig.common.epochs, None));
    assert_eq!(rig.fetch(), 0);
    assert!(!rig.queue.arm());
    // Other memory is lost meanwhile.
    rig.queue.bury(&rig.common.epochs, false);
    rig.common.epochs.replace(old);
    assert!(rig.queue.relocate(&rig.common.epochs, None));
    assert_eq!(rig.fetch(), 1);
}

#[test]
fn a_queue_that_is_not_started_keeps_nothing_for_a_ring() {
    let mut rig = rig();
    assert_eq!(rig.queue.entries(), usize::from(SIZE));
    assert!(!rig.start(0), "it runs already");
    rig.stop();
    assert!(rig.queue.is_served());
    assert!(rig.queue.settle());
    assert!(!rig.queue.is_served());
    assert_eq!(rig.queue.entries(), 0);
    assert!(rig.start(0));
}

#[test]
fn requests_beyond_the_tags_wait_in_the_ring_and_lose_nothing() {
    let mut rig = rig();
    rig.common.tags = Tags::full(2);
    for i in 0..4 {
        rig.offer(i, VIRTIO_BLK_T_IN);
    }
    assert_eq!(rig.fetch(), 2);
    assert_eq!(rig.fetch(), 0);
    rig.end(1, Status::Ok);
    assert_eq!(rig.fetch(), 1);
    rig.end(0, Status::Ok);
    rig.end(2, Status::IoErr);
    assert_eq!(rig.fetch(), 1);
    rig.end(3, Status::Ok);
    rig.queue.publish();
    assert_eq!(
        rig.driver.take_used(),
        [(3, 513), (0, 513), (6, 1), (9, 513)]
    );
    // What needs no I/O gives its tag back at once.
    rig.common.tags = Tags::full(1);
    for i in 0..3 {
        rig.offer(i, VIRTIO_BLK_T_GET_ID);
    }
    assert_eq!(rig.fetch(), 3);
}

#[test]
fn ring_13_an_interrupt_that_was_put_off_comes_when_it_is_due_or_at_rest() {
    let mut rig = rig();
    for i in 0..4 {
        rig.offer(i, VIRTIO_BLK_T_IN);
    }
    rig.fetch();
    let start = std::time::Instant::now();
    let after = |time| TurnClock::at(start + time);
    rig.end(0, Status::Ok);
    rig.queue.show(&mut after(interrupts::SPACING));
    assert_eq!(rig.interrupts(), 1, "the first goes out at once");
    rig.end(1, Status::Ok);
    rig.queue.show(&mut after(interrupts::SPACING * 3 / 2));
    assert_eq!(rig.driver.take_used().len(), 2, "it is shown all the same");
    assert_eq!(rig.interrupts(), 0, "amid work the next one waits");
    rig.queue.show(&mut after(interrupts::SPACING * 2));
    assert_eq!(rig.interrupts(), 1, "with nothing new, as it is due");
    rig.end(2, Status::Ok);
    rig.queue.show(&mut after(interrupts::SPACING * 2));
    assert_eq!(rig.interrupts(), 0);
    rig.queue.publish();
    assert_eq!(rig.interrupts(), 1, "the worker rests");
    rig.queue.publish();
    assert_eq!(rig.interrupts(), 0, "there is nothing new");
}

#[test]
fn ring_13_of_many_answers_some_are_shown_before_the_turn_is_over() {
    let mut rig = rig();
    for i in 0..SIZE / 3 {
        rig.offer(i, VIRTIO_BLK_T_IN);
    }
    rig.fetch();
    let tags: Vec<_> = (0..SIZE / 3)
        .map(|i| rig.common.tags.of(0, 3 * i).unwrap())
        .collect();
    for tag in tags {
        rig.io.end(tag, Status::Ok);
    }
    rig.common.reap(std::slice::from_mut(&mut rig.queue));
    let shown = SIZE / 3 / SHOWN * SHOWN;
    assert_eq!(rig.driver.take_used().len(), usize::from(shown));
}

#[test]
fn what_is_abandoned_is_not_answered_unless_it_ends_well() {
    let mut rig = rig();
    for i in 0..3 {
        rig.offer(i, VIRTIO_BLK_T_IN);
    }
    rig.fetch();
    rig.queue.abandon(&mut rig.common.holding);
    rig.offer(3, VIRTIO_BLK_T_IN);
    assert_eq!(rig.fetch(), 0);
    rig.end(0, Status::Ok);
    rig.end(1, Status::IoErr);
    let answered = rig.stop();
    assert!(!rig.queue.settle());
    rig.end(2, Status::IoErr);
    assert!(rig.queue.settle());
    assert_eq!(answered.recv(), Ok(Answer::Stopped(Some(3))));
    assert_eq!(rig.driver.take_used(), [(0, 513)]);
    assert_eq!([0, 1, 2].map(|i| rig.status(i)), [0, 0xff, 0xff]);
    // The next one is served as ever.
    assert!(rig.start(1));
    assert_eq!(rig.fetch(), 3);
    rig.end(1, Status::IoErr);
    rig.end(2, Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(3, 1), (6, 513)]);
}
