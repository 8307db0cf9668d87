//! The messages about the record of requests in flight and about the log of
//! dirty pages, as front-ends send them.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::tests::{FEATURES, FrontEnd, Running, SIZE, USER};
use crate::device::{Op, Status};
use crate::memory::dirty::tests::take_pages;
use crate::memory::inflight::{Inflight, Shape};
use crate::session::features::LOG_ALL;
use crate::sys;
use crate::testing::guest::{WRITE, header};

const SHAPE: Shape = Shape {
    queues: 2,
    entries: 16,
};

/// `struct VhostUserInflight` with its padding in C, if `len` is 24.
fn inflight(size: u64, offset: u64, shape: Shape, len: usize) -> Vec<u8> {
    let mut bytes = [size, offset].map(u64::to_ne_bytes).concat();
    bytes.extend([shape.queues, shape.entries].map(u16::to_ne_bytes).concat());
    bytes.resize(len, 0);
    bytes
}

/// `struct VhostUserLog`
fn log(size: u64, offset: u64) -> Vec<u8> {
    [size, offset].map(u64::to_ne_bytes).concat()
}

/// Asks for a record; the payload of the reply, and what came with it.
fn get_inflight(front: &mut FrontEnd, asked: &[u8]) -> (Vec<u8>, Option<File>) {
    front.send(31, 0, asked, &[]);
    let mut reply = vec![0; 12 + asked.len()];
    let (bytes, file) = front.stream.recv_with_fd(&mut reply).unwrap();
    assert_eq!(bytes, reply.len());
    let len = u32::try_from(asked.len()).unwrap();
    assert_eq!(reply[..12], [31, 5, len].map(u32::to_ne_bytes).concat());
    (reply.split_off(12), file)
}

fn set_inflight(front: &mut FrontEnd, payload: &[u8], file: &File) -> u64 {
    front.ask(32, payload, &[file.as_raw_fd()])
}

/// Waits for a read and ends it.
fn end_read(server: &Running, front: &mut FrontEnd) {
    let pending = server.io.wait_pending(1);
    server.io.end(pending[0].tag, Status::Ok);
    while front.driver.take_used().is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn vu_5_vu_30_a_record_is_made_for_the_queues_asked_for() {
    let server = Running::start("get-inflight");
    let mut front = FrontEnd::negotiated(&server.path);
    let shapes = [(1, 64), (2, 16), (2, 33)];
    for (queues, entries) in shapes {
        let shape = Shape { queues, entries };
        for len in [20, 24] {
            let (reply, file) = get_inflight(&mut front, &inflight(0, 7, shape, len));
            assert_eq!(reply, inflight(shape.bytes(), 0, shape, len));
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().len(), shape.bytes());
            file.set_len(0).unwrap_err();
            assert_eq!(set_inflight(&mut front, &reply, &file), 0);
        }
    }
    // More than is offered: no descriptor, no queues.
    for (queues, entries) in [(0, 16), (3, 16), (1, 0), (1, 65), (u16::MAX, u16::MAX)] {
        let shape = Shape { queues, entries };
        let (reply, file) = get_inflight(&mut front, &inflight(0, 0, shape, 24));
        assert_eq!(reply, [0; 24]);
        assert!(file.is_none());
    }
    front.get(1);
}

#[test]
fn vu_30_vu_36_vu_42_without_the_feature_both_are_refused() {
    let server = Running::start("no-areas");
    let mut front = FrontEnd::connect(&server.path);
    front.send(16, 0, &8_u64.to_ne_bytes(), &[]);
    let file = sys::sealed_memory(c"log", SHAPE.bytes()).unwrap();
    let payload = inflight(SHAPE.bytes(), 0, SHAPE, 24);
    assert_ne!(set_inflight(&mut front, &payload, &file), 0);
    assert_ne!(front.ask(6, &log(64, 0), &[file.as_raw_fd()]), 0);
}

#[test]
fn vu_34_a_bad_record_is_refused_and_the_connection_goes_on() {
    let server = Running::start("bad-inflight");
    let mut front = FrontEnd::negotiated(&server.path);
    let file = sys::sealed_memory(c"inflight", SHAPE.bytes()).unwrap();
    let good = inflight(SHAPE.bytes(), 0, SHAPE, 24);
    for bad in [
        inflight(SHAPE.bytes() - 1, 0, SHAPE, 24),
        inflight(SHAPE.bytes(), 64, SHAPE, 24),
        inflight(u64::MAX, u64::MAX - 7, SHAPE, 24),
        inflight(SHAPE.bytes(), 0, Shape { queues: 9, ..SHAPE }, 24),
    ] {
        assert_ne!(set_inflight(&mut front, &bad, &file), 0, "{bad:?}");
    }
    assert_ne!(front.ask(32, &good, &[]), 0);
    std::os::unix::fs::FileExt::write_all_at(&file, &[9], 8).unwrap();
    assert_ne!(set_inflight(&mut front, &good, &file), 0, "version 9");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0], 8).unwrap();
    assert_eq!(set_inflight(&mut front, &good, &file), 0);
    front.share_memory();
    front.start_ring();
    assert_ne!(set_inflight(&mut front, &good, &file), 0, "a ring runs");
}

#[test]
fn vu_32_vu_33_a_successor_goes_on_behind_what_was_in_flight() {
    // QEMU says used.idx, cloud-hypervisor avail.idx.
    for base in [5, 9] {
        let server = Running::start(&format!("successor-{base}"));
        let mut front = FrontEnd::negotiated(&server.path);
        // The predecessor had answered one of four out of order.
        let file = sys::sealed_memory(c"inflight", SHAPE.bytes()).unwrap();
        {
            let file = file.try_clone().unwrap();
            let record = Inflight::open(file, 0, SHAPE.bytes(), SHAPE).unwrap();
            let (mut record, _) = record.region(0).unwrap().recover(16, 4).unwrap();
            [6, 9, 0, 3]
                .into_iter()
                .for_each(|head| record.fetched(head));
            record.answered(9);
            record.published(1, 5);
        }
        let driver = &mut front.driver;
        (driver.avail, driver.used) = (4, 5);
        driver.used_idx().store(5, Ordering::Release);
        for head in [6, 9, 0, 3, 12] {
            let at = 0x8000 + 16 * u64::from(head);
            driver.guest.write(at, &header(0, u64::from(head)));
            driver.chain(
                head,
                &[(at, 16, 0), (0x9000, 512, WRITE), (0x8100, 1, WRITE)],
            );
            driver.offer(head);
        }
        let payload = inflight(SHAPE.bytes(), 0, SHAPE, 24);
        assert_eq!(set_inflight(&mut front, &payload, &file), 0);
        front.share_memory();
        front.start_ring_at(base);
        let pending = server.io.wait_pending(4);
        let ops: Vec<Op> = pending.iter().map(|request| request.op).collect();
        let reads = [6, 0, 3, 12].map(|sector| Op::Read {
            offset: 512 * sector,
        });
        assert_eq!(ops, reads);
        for sector in [3, 12, 0, 6] {
            server.io.end(server.io.wait_read_of(sector), Status::Ok);
        }
        assert_eq!(
            front.get_vring_base(),
            [0, 9].map(u32::to_ne_bytes).concat()
        );
        let mut used = front.driver.take_used();
        used.sort_unstable();
        assert_eq!(used, [(0, 513), (3, 513), (6, 513), (12, 513)]);
        // Nothing is in flight after the stop.
        let record = Inflight::open(file, 0, SHAPE.bytes(), SHAPE).unwrap();
        assert!(
            record
                .region(0)
                .unwrap()
                .recover(16, 9)
                .unwrap()
                .1
                .is_empty()
        );
    }
}

#[test]
fn vu_35_a_reset_forgets_the_record_and_the_log() {
    let server = Running::start("reset-areas");
    let mut front = FrontEnd::negotiated(&server.path);
    let file = sys::sealed_memory(c"inflight", SHAPE.bytes()).unwrap();
    let payload = inflight(SHAPE.bytes(), 0, SHAPE, 24);
    assert_eq!(set_inflight(&mut front, &payload, &file), 0);
    let pages = set_log(&mut front, 64);
    assert_eq!(front.ask(34, &[], &[]), 0);
    assert_eq!(front.ask(2, &(FEATURES | LOG_ALL).to_ne_bytes(), &[]), 0);
    front.share_memory();
    front.start_ring();
    front.read_sector();
    end_read(&server, &mut front);
    front.get_vring_base();
    assert!(take_pages(&pages).is_empty());
    assert!(take_pages(&file).is_empty(), "not even its version");
}

/// Sets a log and awaits the reply that front-ends on the `vhost` crate wait
/// for: the payload of 16 bytes.
fn set_log(front: &mut FrontEnd, size: u64) -> File {
    let file = sys::sealed_memory(c"log", size).unwrap();
    front.send(6, 0, &log(size, 0), &[file.as_raw_fd()]);
    assert_eq!(front.reply(6), log(size, 0));
    file
}

#[test]
fn vu_5_vu_36_set_log_base_is_answered_also_when_it_is_refused() {
    let server = Running::start("log-base");
    let mut front = FrontEnd::negotiated(&server.path);
    set_log(&mut front, 64);
    let file = sys::sealed_memory(c"log", 64).unwrap();
    for (payload, fds) in [
        (log(65, 0), vec![file.as_raw_fd()]),
        (log(0, 0), vec![file.as_raw_fd()]),
        (log(u64::MAX, 1), vec![file.as_raw_fd()]),
        (log(64, 0), vec![]),
        (vec![0; 8], vec![file.as_raw_fd()]),
    ] {
        front.send(6, 0, &payload, &fds);
        // The number of no request, for QEMU, and the length, for others.
        assert_eq!(front.reply(0), [0; 16]);
    }
    // One answer for a request that asks for an acknowledgement as well.
    front.send(6, 8, &log(64, 0), &[file.as_raw_fd()]);
    assert_eq!(front.reply(6), log(64, 0));
    front.get(1);
}

#[test]
fn vu_36_the_front_end_of_the_vhost_crate_gets_its_reply() {
    use vhost::VhostBackend;
    use vhost::vhost_user::message::VhostUserProtocolFeatures;
    use vhost::vhost_user::{Frontend, VhostUserFrontend};
    let server = Running::start("crate");
    let stream = std::os::unix::net::UnixStream::connect(&server.path).unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let mut front = Frontend::from_stream(stream, 2);
    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    assert_ne!(features & LOG_ALL, 0);
    front.set_features(features).unwrap();
    let offered = front.get_protocol_features().unwrap();
    let areas = VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    assert!(offered.contains(areas), "VU-41");
    front.set_protocol_features(offered).unwrap();
    let file = sys::sealed_memory(c"log", 64).unwrap();
    let region = |size| vhost::VhostUserDirtyLogRegion {
        mmap_size: size,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    front.set_log_base(0, Some(region(64))).unwrap();
    front.set_log_base(0, Some(region(65))).unwrap_err();
    let asked = vhost::vhost_user::message::VhostUserInflight::new(0, 0, 2, 16);
    let (given, record) = front.get_inflight_fd(&asked).unwrap();
    assert_eq!({ given.mmap_size }, SHAPE.bytes());
    front.set_inflight_fd(&given, record.as_raw_fd()).unwrap();
    front.get_features().unwrap();
}

#[test]
fn vu_36_vu_37_vu_38_logging_is_turned_on_and_off_while_a_ring_runs() {
    let server = Running::start("logging");
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.start_ring();
    let read = |front: &mut FrontEnd| {
        front.read_sector();
        end_read(&server, front);
        // The status, and the flags of the used ring, are written by now.
        front.get(1);
    };
    read(&mut front);
    let first = set_log(&mut front, 64);
    read(&mut front);
    assert!(take_pages(&first).is_empty());
    let features = |front: &mut FrontEnd, bits: u64| {
        assert_eq!(front.ask(2, &(FEATURES | bits).to_ne_bytes(), &[]), 0);
    };
    features(&mut front, LOG_ALL);
    read(&mut front);
    assert_eq!(take_pages(&first), [8, 9]);
    assert_eq!(front.addresses_logged(1, 0x12_3000), 0);
    read(&mut front);
    assert_eq!(take_pages(&first), [8, 9, 0x123]);
    let second = set_log(&mut front, 64);
    take_pages(&first);
    read(&mut front);
    assert!(take_pages(&first).is_empty());
    assert_eq!(take_pages(&second), [8, 9, 0x123]);
    features(&mut front, 0);
    assert_eq!(front.addresses_logged(0, 0), 0);
    take_pages(&second);
    read(&mut front);
    assert!(take_pages(&second).is_empty());
    assert_eq!(
        front.get_vring_base(),
        [0, 6].map(u32::to_ne_bytes).concat()
    );
}

#[test]
fn vu_40_regions_that_are_added_later_are_logged() {
    let server = Running::start("later");
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.start_ring();
    let log = set_log(&mut front, 1 << 10);
    assert_eq!(front.ask(2, &(FEATURES | LOG_ALL).to_ne_bytes(), &[]), 0);
    let more = sys::sealed_memory(c"guest", 0x10_0000).unwrap();
    let region = [0, 0x100_0000, 0x10_0000, USER + SIZE, 0];
    let region = region.map(u64::to_ne_bytes).concat();
    assert_eq!(front.ask(37, &region, &[more.as_raw_fd()]), 0);
    front.driver.guest.write(0x8000, &header(0, 1));
    front.driver.chain(
        0,
        &[
            (0x8000, 16, 0),
            (0x100_3000, 512, WRITE),
            (0x8100, 1, WRITE),
        ],
    );
    front.driver.offer(0);
    front.kick.write(1).unwrap();
    end_read(&server, &mut front);
    front.get(1);
    assert_eq!(take_pages(&log), [8, 0x1003]);
    // Nothing comes unasked.
    front.stream.set_nonblocking(true).unwrap();
    front.stream.read(&mut [0]).unwrap_err();
}
