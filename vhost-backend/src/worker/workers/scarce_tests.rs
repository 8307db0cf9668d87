//! More requests than a worker has tags for.

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::tests::{Rig, SIZE, options, rig_of};
use super::*;
use crate::Op;
use crate::device::Status;

#[test]
fn with_too_few_tags_every_queue_has_its_turn() {
    let rig = rig_of(
        &Options {
            queue_size: 4,
            ..options(2, 1)
        },
        false,
    );
    // Eight tags for two rings, of which the first has always more.
    let [mut greedy, mut modest] = [0, 1].map(|queue| rig.client_of(queue, 64));
    for client in [&greedy, &modest] {
        rig.start(client, false, false, true);
    }
    for i in 0..20 {
        greedy.offer(i, VIRTIO_BLK_T_IN);
    }
    greedy.kick();
    rig.io.wait_pending(8);
    modest.offer(10, VIRTIO_BLK_T_IN);
    modest.kick();
    for _ in 0..40 {
        let pending = rig.io.wait_pending(8);
        assert_eq!(pending.len(), 8);
        let Op::Read { offset } = pending[0].op else {
            unreachable!("{:?}", pending[0]);
        };
        if offset / 512 == u64::from(30 + SIZE) {
            answer_all(rig);
            return;
        }
        rig.io.end(pending[0].tag, Status::Ok);
        // Its head may be used again once it was answered.
        let i = u16::try_from(offset / 512 / 3).unwrap();
        while greedy.driver.take_used().is_empty() {
            std::thread::yield_now();
        }
        greedy.offer(i, VIRTIO_BLK_T_IN);
    }
    answer_all(rig);
    panic!("a request was not served in forty turns");
}

/// Ends what is in flight, which the end of the workers waits for.
fn answer_all(rig: Rig) {
    let Rig { workers, io, .. } = rig;
    let dropped = std::thread::spawn(move || drop(workers));
    while !dropped.is_finished() {
        for request in io.pending() {
            io.end(request.tag, Status::Ok);
        }
        std::thread::yield_now();
    }
}
