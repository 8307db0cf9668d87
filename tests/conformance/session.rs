//! The conversation: what is answered, refused, remembered, and by whom ended.

use std::os::fd::AsRawFd;

use front_end::codes::{descriptor, feature, flag, protocol, request};
use front_end::{
    Buffer, Connection, Descriptor, Driver, Error, Like, Op, Session, Setup, Wanted, limit,
};

use crate::disk::{Attached, DATA, Disk, assert_ok, content};

const CONFIG_WRITEBACK: u32 = 32;

#[test]
fn vu_1_a_bad_header_ends_one_connection_and_nothing_else() {
    let disk = Disk::start(&[]);
    let headers: [[u32; 3]; 4] = [
        // No version, another version, a payload beyond any limit, all ones.
        [request::GET_FEATURES, 0, 0],
        [request::GET_FEATURES, 2, 0],
        [request::GET_FEATURES, flag::VERSION, 1 << 30],
        [u32::MAX; 3],
    ];
    for header in headers {
        let connection = Connection::connect(&disk.socket).unwrap();
        connection.get_features().unwrap();
        let bytes = header.map(u32::to_ne_bytes).concat();
        connection.send_bytes(&bytes, &[]).unwrap();
        assert!(
            matches!(connection.receive(), Err(Error::Closed)),
            "{header:?}"
        );
    }
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    assert_eq!(front.read(1, 512), content(512, 512));
}

#[test]
fn vu_5_6_7_refusals_are_answered_and_the_connection_goes_on() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let connection = &front.session.connection;
    let refused = |request: u32, payload: &[u8]| {
        let value = connection.acknowledge(request, payload, &[]).unwrap();
        assert_ne!(value, 0, "{request}");
    };
    refused(request::SET_FEATURES, &(1_u64 << 63).to_ne_bytes());
    refused(request::SET_VRING_ENABLE, &[0; 4].map(|_| 7_u8).repeat(2));
    refused(4711, &[0; 8]);
    let unknown = [0, 1 << 40, 4096, 1 << 40, 0]
        .map(u64::to_ne_bytes)
        .concat();
    refused(request::REM_MEM_REG, &unknown);
    // The capacity cannot be written.
    let mut capacity = [0, 8, 0].map(u32::to_ne_bytes).concat();
    capacity.extend([1; 8]);
    refused(request::SET_CONFIG, &capacity);
    assert_eq!(connection.get_queue_num().unwrap(), 256);
    assert_eq!(front.read(1, 512), content(512, 512));
}

#[test]
fn vu_4_reset_owner_loses_nothing() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    front.session.connection.reset_owner().unwrap();
    front.session.connection.set_owner().unwrap();
    front.session.enable(true).unwrap();
    assert_eq!(front.read(1, 512), content(512, 512));
}

#[test]
fn vu_8_without_protocol_features_rings_need_no_enabling() {
    let disk = Disk::start(&[]);
    for like in [Like::Qemu, Like::CloudHypervisor] {
        let wanted = Wanted {
            features: feature::ALL & !feature::PROTOCOL_FEATURES,
            ..Wanted::default()
        };
        let mut front = Attached::new(&disk.socket, like, wanted);
        assert_eq!(front.session.protocol, 0);
        assert_eq!(front.read(1, 512), content(512, 512));
    }
}

#[test]
fn vu_10_queues_that_were_never_set_up_can_be_enabled() {
    let disk = Disk::start(&["--num-queues", "4"]);
    let wanted = Wanted {
        queues: 4,
        ..Wanted::default()
    };
    let mut front = Attached::new(&disk.socket, Like::Qemu, wanted);
    assert_eq!(front.read(1, 512), content(512, 512));
    assert_eq!(front.session.stop(1).unwrap(), [1]);
}

#[test]
fn vu_11_calls_move_to_another_event_while_the_ring_runs() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    assert_eq!(front.read(1, 512), content(512, 512));
    let other = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let fd = Some(other.as_raw_fd());
    front.session.connection.set_vring_call(0, fd).unwrap();
    // What was answered before may have been told to the last one, to which
    // nobody listens any more: a driver looks at once.
    front_end::wait_readable(&other, limit()).unwrap();
    assert_eq!(other.read().unwrap(), 1);
    front.driver.ring().take_calls().unwrap();
    front.driver.ring().want_call(true);
    let data = [Buffer::writable(DATA, 512)];
    assert!(front.driver.submit(Op::Read, 2, &data, 0));
    front.driver.publish().unwrap();
    front_end::wait_readable(&other, limit()).unwrap();
    assert_ok(front.driver.pop().unwrap().unwrap(), 513);
    front.session.stop(1).unwrap();
    assert_eq!(front.driver.ring().take_calls().unwrap(), 0);
}

#[test]
fn vu_12_without_events_the_ring_is_polled_and_nobody_is_called() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    front.session.connection.set_vring_call(0, None).unwrap();
    front.session.connection.set_vring_kick(0, None).unwrap();
    front.driver.ring().want_call(true);
    let ring = front.driver.ring_mut();
    front.memory.write(DATA, &[0; 16]).unwrap();
    let part = |address, length, flags, next| Descriptor {
        address,
        length,
        flags,
        next,
    };
    let (next, write) = (descriptor::NEXT, descriptor::WRITE);
    ring.memory().set_descriptor(0, part(DATA, 16, next, 1));
    let data = part(DATA + 512, 512, next | write, 2);
    ring.memory().set_descriptor(1, data);
    ring.memory()
        .set_descriptor(2, part(DATA + 256, 1, write, 0));
    ring.memory().set_avail_entry(0, 0);
    // No kick at all.
    ring.memory().set_avail_index(1);
    while ring.device_index() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(ring.pop_raw(), Some((0, 513)));
    assert_eq!(front.memory.read(DATA + 512, 512).unwrap(), content(0, 512));
    front.session.stop(1).unwrap();
    assert_eq!(front.driver.ring().take_calls().unwrap(), 0);
}

#[test]
fn vu_22_memory_slots_are_enough_and_stay_the_same() {
    let disk = Disk::start(&[]);
    let front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let slots = front.session.connection.get_max_mem_slots().unwrap();
    assert!(slots >= 8);
    drop(front);
    let again = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    assert_eq!(again.connection.get_max_mem_slots().unwrap(), slots);
}

#[test]
fn blk_23_vu_26_writeback_is_written_and_read_back() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::CloudHypervisor, Wanted::default());
    for flags in [0, 1] {
        for value in [0, 1] {
            let connection = &front.session.connection;
            connection
                .set_config(CONFIG_WRITEBACK, &[value], flags)
                .unwrap();
            let read = connection.get_config(CONFIG_WRITEBACK, 1).unwrap();
            assert_eq!(read, [value]);
            assert!(
                connection
                    .set_config(CONFIG_WRITEBACK, &[2], flags)
                    .is_err()
            );
            front.write(3, &[value; 512]);
        }
    }
}

#[test]
fn vu_29_reset_comes_before_any_ring_and_between_uses() {
    let disk = Disk::start(&[]);
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    assert_eq!(front.read(1, 512), content(512, 512));
    front.session.reset_device().unwrap();
    // A new driver begins with an empty ring.
    let setup = Setup {
        size: 16,
        features: front.session.features,
        indirect: 0,
    };
    front.driver = Driver::new(&front.memory, 0, setup).unwrap();
    let rings = [front.driver.ring()];
    front.session.start(&front.memory, &rings).unwrap();
    assert_eq!(front.read(2, 512), content(1024, 512));
    assert_eq!(front.session.stop(1).unwrap(), [1]);
}

#[test]
fn vu_42_what_is_not_offered_is_refused() {
    let disk = Disk::start(&[]);
    let session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    let connection = &session.connection;
    let offered = connection.get_protocol_features().unwrap();
    for (bit, number, payload) in [(16_u32, 39, 8), (16, 40, 0), (19, 43, 0), (8, 28, 0)] {
        if offered & 1 << bit == 0 {
            let payload = vec![0; payload];
            let value = connection.acknowledge(number, &payload, &[]).unwrap();
            assert_ne!(value, 0, "{number}");
        }
    }
    assert_ne!(offered & protocol::REPLY_ACK, 0);
    assert_eq!(connection.get_queue_num().unwrap(), 256);
}
