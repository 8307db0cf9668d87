//! A guest that is paused: once its rings are off, a front-end takes its
//! memory for still, copies it, and forgets what is written there later.

use std::io::{self, Read};
use std::time::Duration;

use super::tests::{FrontEnd, NEED_REPLY, Running};
use crate::device::Status;
use crate::testing::guest::{WRITE, header};

/// Requests that are in flight as the guest is paused.
const REQUESTS: u16 = 4;

/// Offers a read with three descriptors from this one on.
fn offer(front: &mut FrontEnd, request: u16) {
    front.driver.guest.write(0x8000, &header(0, 1));
    let at = u64::from(request) * 0x400;
    let chain = [
        (0x8000, 16, 0),
        (0x9000 + at, 512, WRITE),
        (0x8100 + at, 1, WRITE),
    ];
    front.driver.chain(3 * request, &chain);
    front.driver.offer(3 * request);
    front.kick.write(1).unwrap();
}

#[test]
fn vu_13_a_ring_that_was_switched_off_has_nothing_in_flight() {
    let server = Running::start("pause");
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.start_ring();
    for request in 0..REQUESTS {
        offer(&mut front, request);
    }
    let mut pending = server.io.wait_pending(usize::from(REQUESTS));
    // Out of order, and the last but one before anything was asked.
    pending.rotate_left(2);
    let last = pending.pop().unwrap();
    let off = [0, 0].map(u32::to_ne_bytes).concat();
    front.send(18, NEED_REPLY, &off, &[]);
    for request in pending {
        server.io.end(request.tag, Status::Ok);
    }
    let shortly = Some(Duration::from_millis(200));
    front.stream.set_read_timeout(shortly).unwrap();
    let early = front.stream.read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), io::ErrorKind::WouldBlock, "it still writes");
    front.stream.set_read_timeout(None).unwrap();

    // What is offered from now on stays in the ring.
    offer(&mut front, REQUESTS);
    server.io.end(last.tag, Status::IoErr);
    assert_eq!(front.reply(18), 0_u64.to_ne_bytes());
    let heads: Vec<u32> = front.driver.take_used().iter().map(|used| used.0).collect();
    assert_eq!(heads.len(), usize::from(REQUESTS), "{heads:?}");
    assert!(server.io.pending().is_empty());

    // The guest goes on.
    assert_eq!(front.ring(18, 1), 0);
    let pending = server.io.wait_pending(1);
    server.io.end(pending[0].tag, Status::Ok);
    let base = u32::from(REQUESTS) + 1;
    assert_eq!(
        front.get_vring_base(),
        [0, base].map(u32::to_ne_bytes).concat()
    );
}
