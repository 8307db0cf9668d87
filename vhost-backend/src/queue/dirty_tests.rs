//! What a queue marks in the log of dirty pages, and when.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::chain::Scratch;
use super::disk::Disk;
use super::tags::Tags;
use super::*;
use crate::command::Mode;
use crate::held::Holding;
use crate::limits::gate::Gate;
use crate::memory::dirty::tests::{log, take_pages};
use crate::memory::dirty::{Log, UsedLog};
use crate::testing::fake::{FakeDisk, Io};
use crate::testing::guest::{Driver, Guest, NEXT, WRITE, header};

const SIZE: u16 = 16;
/// Bytes of a log of 1024 pages, of which guest memory has 256.
const LOG: u64 = 128;
/// Pages of the header and of the status; the data begins in the page between
/// and goes on in the next.
const HEADER: u64 = 0x10;
const STATUS: u64 = 0x20;
const DATA: u64 = 0x30;
/// Where the used ring is logged, beyond guest memory.
const USED: u64 = 0x300;

struct Rig {
    driver: Driver,
    queue: Queue,
    common: Common<FakeDisk>,
    io: Arc<Io>,
    log: Arc<Log>,
    file: File,
}

fn rig(used_log: Option<u64>, event_idx: bool) -> Rig {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let driver = Driver::new(&guest, 0x1000, SIZE);
    let disk = Arc::new(FakeDisk::new(false));
    let io = Arc::clone(&disk.io);
    let (log, file) = log(LOG);
    let common = Common {
        channel: disk.roomy_channel(usize::from(SIZE)),
        epochs: Epochs::new(Arc::clone(&guest.memory)),
        scratch: Scratch::new(),
        disk: Disk::new(disk, Arc::new(Mode::default())),
        tags: Tags::full(usize::from(SIZE)),
        dirty: Some(Tracker::new(
            Arc::clone(&log),
            usize::from(SIZE),
            crate::queue::chain::MOST_RANGES,
        )),
        gate: Gate::default(),
        timed: false,
        holding: Holding::default(),
    };
    let setup = crate::command::RingSetup {
        size: SIZE,
        addresses: driver.at,
        next_avail: 0,
        inflight: None,
        used_log,
        event_idx,
        kick: None,
        enabled: true,
    };
    let mut queue = Queue::new(0, 0, <_>::default());
    assert!(queue.start(&setup, &common.epochs));
    queue.set_polled(false);
    queue.set_log(Some(&log));
    Rig {
        driver,
        queue,
        common,
        io,
        log,
        file,
    }
}

impl Rig {
    fn offer(&mut self, kind: u32) {
        let data = if kind == VIRTIO_BLK_T_OUT { 0 } else { WRITE };
        self.driver.guest.write(HEADER << 12, &header(kind, 0));
        let (data_at, status) = ((DATA << 12) - 256, STATUS << 12);
        self.driver.chain(
            0,
            &[
                (HEADER << 12, 16, 0),
                (data_at, 512, data),
                (status, 1, WRITE),
            ],
        );
        self.driver.offer(0);
    }

    fn fetch(&mut self) {
        self.common.scratch.begin_turn();
        self.queue.fetch(64, &mut self.common);
    }

    fn end(&mut self, status: Status) {
        self.io.end(self.common.tags.of(0, 0).unwrap(), status);
        let Self { queue, common, .. } = self;
        common.reap(std::slice::from_mut(queue));
    }

    fn pages(&self) -> Vec<u64> {
        take_pages(&self.file)
    }
}

#[test]
fn vu_37_vu_39_data_and_status_are_marked_between_their_end_and_the_used_index() {
    let mut rig = rig(None, false);
    rig.offer(VIRTIO_BLK_T_IN);
    rig.fetch();
    assert!(rig.pages().is_empty(), "nothing has been written");
    rig.end(Status::Ok);
    assert_eq!(rig.pages(), [STATUS, DATA - 1, DATA]);
    assert!(rig.driver.take_used().is_empty());
    rig.queue.publish();
    assert!(rig.pages().is_empty());
    // Some of the data may have come.
    rig.offer(VIRTIO_BLK_T_IN);
    rig.fetch();
    rig.end(Status::IoErr);
    assert_eq!(rig.pages(), [STATUS, DATA - 1, DATA]);
    rig.offer(VIRTIO_BLK_T_OUT);
    rig.fetch();
    rig.end(Status::Ok);
    assert_eq!(rig.pages(), [STATUS]);
}

#[test]
fn vu_37_what_needs_no_io_is_marked_as_well() {
    let mut rig = rig(None, false);
    rig.offer(VIRTIO_BLK_T_GET_ID);
    rig.fetch();
    assert_eq!(rig.pages(), [STATUS, DATA - 1, DATA]);
    rig.offer(4711);
    rig.fetch();
    assert!(rig.pages().contains(&STATUS));
    // No data buffer may follow a status; the status is found all the same.
    rig.driver.describe(0, HEADER << 12, 16, NEXT, 1);
    rig.driver.describe(1, STATUS << 12, 1, NEXT | WRITE, 2);
    rig.driver.describe(2, DATA << 12, 512, 0, 0);
    rig.driver.offer(0);
    rig.fetch();
    assert_eq!(rig.pages(), [STATUS]);
}

#[test]
fn vu_37_a_driver_cannot_talk_its_pages_out_of_the_log() {
    let mut rig = rig(None, false);
    rig.offer(VIRTIO_BLK_T_IN);
    rig.fetch();
    rig.driver.chain(0, &[(0, 16, 0), (0x5000, 1, WRITE)]);
    rig.end(Status::Ok);
    assert_eq!(rig.pages(), [STATUS, DATA - 1, DATA]);
}

#[test]
fn vu_37_requests_that_were_noted_before_the_log_was_turned_off_are_not_marked() {
    let mut rig = rig(None, false);
    rig.offer(VIRTIO_BLK_T_IN);
    rig.fetch();
    rig.common.dirty = None;
    rig.end(Status::Ok);
    rig.offer(VIRTIO_BLK_T_IN);
    rig.fetch();
    rig.end(Status::Ok);
    rig.queue.publish();
    assert!(rig.pages().is_empty());
}

#[test]
fn vu_38_the_used_ring_is_marked_after_it_was_written() {
    let mut rig = rig(Some(USED << 12), false);
    rig.offer(VIRTIO_BLK_T_OUT);
    rig.fetch();
    // Kicks are not wanted: a flag in the used ring.
    rig.queue.arm();
    assert_eq!(rig.pages(), [USED]);
    rig.end(Status::Ok);
    assert_eq!(rig.pages(), [STATUS]);
    rig.queue.publish();
    assert_eq!(rig.pages(), [USED]);
    assert_eq!(rig.driver.take_used(), [(0, 1)]);
    // The ring says that it is not logged any more, and then that it is.
    rig.queue.set_used_log(None, Some(&rig.log));
    rig.offer(VIRTIO_BLK_T_OUT);
    rig.fetch();
    rig.end(Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.pages(), [STATUS]);
    rig.queue.set_used_log(Some(7 << 12), Some(&rig.log));
    rig.offer(VIRTIO_BLK_T_OUT);
    rig.fetch();
    rig.end(Status::Ok);
    rig.queue.publish();
    assert_eq!(rig.pages(), [7, STATUS]);
}

#[test]
fn vu_38_each_part_of_the_used_ring_is_marked_where_it_lies() {
    // The element of slot 2 is the first on the second page, and what the
    // driver looks at for kicks the last.
    let (element, event) = (4 + 8 * 2, 4 + 8 * u64::from(SIZE));
    for (offset, event_idx) in [(element, false), (event, true)] {
        let mut rig = rig(Some((USED << 12) - offset), event_idx);
        let mut seen = Vec::new();
        for _ in 0..SIZE + 3 {
            rig.queue.arm();
            let armed = rig.pages();
            rig.offer(VIRTIO_BLK_T_OUT);
            rig.fetch();
            rig.pages();
            rig.end(Status::Ok);
            rig.pages();
            rig.queue.publish();
            seen.push((armed.contains(&USED), rig.pages()));
        }
        for (slot, (armed, published)) in seen.into_iter().enumerate() {
            assert_eq!(armed, event_idx);
            let slot = slot % usize::from(SIZE);
            let second = !event_idx && slot >= 2;
            let pages = [vec![USED - 1], vec![USED - 1, USED]];
            assert_eq!(published, pages[usize::from(second)], "{slot}");
        }
    }
    // A batch that goes round the end of the ring.
    let mut rig = rig(Some((USED << 12) - element), false);
    let used = rig.driver.used_idx();
    used.store(SIZE - 1, Ordering::Release);
    let mut ring = Ring::new(&rig.driver.guest.memory, SIZE, rig.driver.at, 0, false).unwrap();
    ring.log_used(Some(UsedLog {
        log: Arc::clone(&rig.log),
        at: (USED << 12) - element,
    }));
    rig.driver.used = SIZE - 1;
    ring.answer(0, 0);
    ring.answer(1, 0);
    ring.publish();
    assert_eq!(rig.pages(), [USED - 1, USED]);
}
