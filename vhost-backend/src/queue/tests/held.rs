//! Requests that the channel gives back.

use std::time::Duration;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;

use super::*;
use crate::held::{Due, HeldRequests};
use crate::limits::Limits;

impl Rig {
    /// The disk cannot carry out request `i` now.
    fn give_back(&mut self, i: u16) {
        let tag = self.common.tags.of(0, 3 * i).unwrap();
        self.io.give_back(tag);
        self.common.reap(std::slice::from_mut(&mut self.queue));
    }

    fn shared(&mut self) -> Arc<HeldRequests> {
        let shared = Arc::<HeldRequests>::default();
        self.common.holding = Holding::new(Arc::clone(&shared));
        shared
    }
}

#[test]
fn what_is_held_takes_no_tag_and_keeps_nobody_waiting() {
    let mut rig = rig();
    let shared = rig.shared();
    rig.offer(0, VIRTIO_BLK_T_OUT);
    rig.offer(1, VIRTIO_BLK_T_IN);
    assert_eq!(rig.fetch(), 2);
    rig.give_back(0);
    assert_eq!(rig.status(0), 0xff);
    assert_eq!(shared.counts().now, 1);
    assert_eq!(shared.counts().why, libc::ENOSPC);
    assert_eq!(rig.common.tags.of(0, 0), None);
    assert_eq!(rig.queue.in_flight(), 1, "the other one");
    rig.end(1, Status::Ok);
    // Its memory may go, for it is read again.
    rig.common.epochs.renew();
    assert!(rig.common.epochs.only_current());
    // The driver may not offer it again.
    rig.driver.offer(0);
    assert_eq!(rig.fetch(), 1);
    assert!(rig.io.pending().is_empty());
    assert!(rig.common.holding.is_on());
    shared.retry();
    assert_eq!(rig.common.holding.due(), Due::All);
    assert!(rig.queue.held_are_due(true));
    assert_eq!(rig.fetch(), 1);
    assert_eq!(shared.counts().now, 1, "it has not ended yet");
    rig.end(0, Status::Ok);
    let counts = shared.counts();
    assert_eq!((counts.now, counts.ever, counts.retries), (0, 1, 1));
    rig.queue.publish();
    assert_eq!(rig.driver.take_used(), [(3, 513), (0, 1)]);
    assert!(!rig.queue.held_are_due(true), "nothing is held");
}

#[test]
fn the_one_that_has_waited_longest_is_tried_first_and_alone() {
    let mut rig = rig();
    let shared = rig.shared();
    for i in 0..3 {
        rig.offer(i, VIRTIO_BLK_T_OUT);
    }
    rig.fetch();
    for i in [1, 0, 2] {
        rig.give_back(i);
    }
    for i in [1, 0, 2, 1] {
        assert!(rig.queue.held_are_due(false));
        assert_eq!(rig.fetch(), 1);
        assert_eq!(rig.io.pending().len(), 1);
        rig.give_back(i);
    }
    let counts = shared.counts();
    assert_eq!((counts.now, counts.ever, counts.retries), (3, 3, 4));
}

#[test]
fn a_ring_that_stops_without_a_record_tries_once_more_and_answers() {
    let mut rig = rig();
    let shared = rig.shared();
    for i in 0..2 {
        rig.offer(i, VIRTIO_BLK_T_OUT);
    }
    rig.fetch();
    for i in 0..2 {
        rig.give_back(i);
    }
    let stopped = rig.stop();
    assert!(!rig.queue.settle(), "they are tried again first");
    assert_eq!(rig.fetch(), 2);
    rig.give_back(0);
    rig.end(1, Status::Ok);
    assert!(rig.queue.settle());
    assert_eq!(stopped.recv().unwrap(), Answer::Stopped(Some(2)));
    assert_eq!((rig.status(0), rig.status(1)), (1, 0));
    let counts = shared.counts();
    assert_eq!((counts.now, counts.failed), (0, 1));
}

#[test]
fn a_pause_without_a_record_ends_it_and_the_next_one_is_held_again() {
    let mut rig = rig();
    let shared = rig.shared();
    rig.offer(0, VIRTIO_BLK_T_OUT);
    rig.fetch();
    rig.give_back(0);
    let (answer, paused) = sync_channel(1);
    rig.queue.pause(answer, true);
    rig.fetch();
    rig.give_back(0);
    rig.queue.settle();
    assert_eq!(paused.recv().unwrap(), Answer::Done);
    assert_eq!(rig.status(0), 1);
    rig.queue.enable(true);
    rig.offer(1, VIRTIO_BLK_T_OUT);
    rig.fetch();
    rig.give_back(1);
    assert_eq!((rig.status(1), shared.counts().now), (0xff, 1));
}

/// Either may be the last one: both are in flight.
#[test]
fn what_overlaps_a_held_request_does_not_wait_for_it_and_nor_does_a_flush() {
    let mut rig = rig();
    rig.shared();
    rig.offer(0, VIRTIO_BLK_T_OUT);
    rig.fetch();
    rig.give_back(0);
    let head = rig.prepare(1, VIRTIO_BLK_T_OUT);
    rig.driver
        .guest
        .write(DATA + 0x1000, &header(VIRTIO_BLK_T_OUT, 0));
    rig.driver.offer(head);
    rig.fetch();
    let write = Op::Write {
        offset: 0,
        stable: true,
    };
    assert_eq!(rig.io.pending()[0].op, write);
    rig.end(1, Status::Ok);
    let head = rig.prepare(2, VIRTIO_BLK_T_FLUSH);
    rig.driver
        .guest
        .write(DATA + 0x2000, &header(VIRTIO_BLK_T_FLUSH, 0));
    rig.driver.offer(head);
    rig.fetch();
    rig.end(2, Status::Ok);
    assert_eq!((rig.status(0), rig.status(1)), (0xff, 0));
    assert!(rig.queue.held_are_due(false));
    rig.fetch();
    assert_eq!(rig.io.pending()[0].op, write, "it lands last");
    rig.end(0, Status::Ok);
    assert_eq!(rig.status(0), 0);
}

#[test]
fn nothing_is_tried_again_while_the_disk_is_held_still() {
    let mut rig = rig();
    let shared = rig.shared();
    let limits = Arc::<Limits>::default();
    rig.common.gate = Gate::new(Arc::clone(&limits), 0);
    for i in 0..2 {
        rig.offer(i, VIRTIO_BLK_T_OUT);
    }
    rig.fetch();
    for i in 0..2 {
        rig.give_back(i);
    }
    let long = Duration::from_secs(3600);
    limits.hold(long, long).unwrap();
    rig.common.gate.begin_turn();
    assert!(rig.queue.held_are_due(true));
    assert_eq!(rig.fetch(), 0);
    // An end does not wait until it goes on.
    let stopped = rig.stop();
    assert_eq!(rig.fetch(), 2);
    assert!(rig.io.pending().is_empty());
    assert!(rig.queue.settle());
    assert_eq!(stopped.recv().unwrap(), Answer::Stopped(Some(2)));
    assert_eq!((rig.status(0), rig.status(1)), (1, 1));
    let counts = shared.counts();
    assert_eq!((counts.now, counts.failed, counts.retries), (0, 2, 0));
}
