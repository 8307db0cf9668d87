//! Front-ends and rings that come and go, and what is left of them: nothing.

use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use front_end::codes::{flag, protocol, request, status};
use front_end::{
    Buffer, Connection, Driver, GuestMemory, Like, Op, RingUsers, Session, Setup, Wanted, limit,
};

use crate::disk::{Attached, DATA, Disk, MEMORY, assert_ok, content};

fn attached(disk: &Disk) -> Attached {
    Attached::new(&disk.socket, Like::Qemu, Wanted::default())
}

/// Puts a read of `sector` into the ring and kicks; does not wait.
fn submit(front: &mut Attached, sector: u64) {
    let data = [Buffer::writable(DATA, 512)];
    assert!(front.driver.submit(Op::Read, sector, &data, sector));
    front.driver.publish().unwrap();
    front.driver.ring().kick().unwrap();
}

fn wait(front: &mut Attached) {
    assert_ok(front.driver.wait(limit()).unwrap(), 513);
}

/// Where the ring of a driver lies in the front-end's addresses.
fn users(memory: &GuestMemory, driver: &Driver) -> RingUsers {
    let at = driver.ring().memory().addresses();
    let user = |address| memory.user(address).unwrap();
    RingUsers {
        descriptors: user(at.descriptors),
        used: user(at.used),
        avail: user(at.avail),
        log: None,
    }
}

#[test]
fn vu_9_rings_are_started_and_enabled_independently() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    assert_eq!(front.read(1, 512), content(512, 512));
    let kick = Some(front.driver.ring().kick_fd());

    // Stopped but not disabled: a new kick descriptor starts it again.
    assert_eq!(front.session.connection.get_vring_base(0).unwrap(), 1);
    submit(&mut front, 2);
    front.session.connection.get_features().unwrap();
    assert_eq!(front.driver.ring().device_index(), 1);
    front.session.connection.set_vring_kick(0, kick).unwrap();
    wait(&mut front);

    // Disabled while it is stopped, and enabled while it is started.
    assert_eq!(front.session.connection.get_vring_base(0).unwrap(), 2);
    front.session.connection.set_vring_enable(0, false).unwrap();
    front.session.connection.set_vring_kick(0, kick).unwrap();
    submit(&mut front, 3);
    front.session.connection.get_features().unwrap();
    assert_eq!(front.driver.ring().device_index(), 2);
    front.session.connection.set_vring_enable(0, true).unwrap();
    wait(&mut front);

    // Enabled while it is stopped.
    front.session.connection.set_vring_enable(0, false).unwrap();
    assert_eq!(front.session.connection.get_vring_base(0).unwrap(), 3);
    front.session.connection.set_vring_enable(0, true).unwrap();
    submit(&mut front, 4);
    front.session.connection.set_vring_kick(0, kick).unwrap();
    wait(&mut front);
}

#[test]
fn vu_16_the_base_says_what_is_taken_next_and_nothing_else() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    assert_eq!(front.read(1, 512), content(512, 512));
    front.session.stop(1).unwrap();
    drop(front.session);
    let mut again = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    // Two requests that the next back-end is told to pass over.
    let size = front.driver.ring().memory().size();
    front.driver.ring().memory().set_avail_index(3);
    again.connection.set_features(again.features).unwrap();
    again.share(&front.memory).unwrap();
    let connection = &again.connection;
    connection.set_vring_num(0, size.into()).unwrap();
    connection.set_vring_base(0, 3).unwrap();
    let at = users(&front.memory, &front.driver);
    connection.set_vring_addr(0, &at).unwrap();
    let kick = Some(front.driver.ring().kick_fd());
    connection.set_vring_kick(0, kick).unwrap();
    again.enable(true).unwrap();
    // Where answers go is read from guest memory: 1.
    assert_eq!(again.stop(1).unwrap(), [3]);
    assert_eq!(front.driver.ring().device_index(), 1);
}

#[test]
fn vu_9_16_a_device_that_is_reset_by_disabling_its_rings_gets_new_ones() {
    let disk = Disk::start(&[]);
    let plain = Wanted {
        protocol: protocol::CONFIG | protocol::MQ,
        ..Wanted::default()
    };
    let mut front = Attached::new(&disk.socket, Like::CloudHypervisor, plain);
    for sector in 0..5 {
        front.read(sector, 512);
    }
    // As libkrun does it: nothing else is said when the guest resets the device.
    front.session.enable(false).unwrap();
    let features = front.session.features;
    let setup = Setup {
        size: 64,
        features,
        indirect: 16,
    };
    let old = std::mem::replace(
        &mut front.driver,
        Driver::new(&front.memory, 1 << 20, setup).unwrap(),
    );
    let connection = &front.session.connection;
    connection.set_owner().unwrap();
    connection.set_mem_table(front.memory.regions()).unwrap();
    connection.set_features(features).unwrap();
    connection.set_vring_num(0, 64).unwrap();
    connection.set_vring_base(0, 0).unwrap();
    let at = users(&front.memory, &front.driver);
    connection.set_vring_addr(0, &at).unwrap();
    let ring = front.driver.ring();
    connection.set_vring_kick(0, Some(ring.kick_fd())).unwrap();
    connection.set_vring_call(0, Some(ring.call_fd())).unwrap();
    front.session.enable(true).unwrap();
    // It begins as the new memory says, and leaves the old alone.
    assert_eq!(front.read(7, 512), content(7 * 512, 512));
    assert_eq!(front.driver.ring().device_index(), 1);
    assert_eq!(old.ring().device_index(), 5);
}

#[test]
fn vu_17_a_running_ring_is_told_its_addresses_again_and_loses_nothing() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    let at = users(&front.memory, &front.driver);
    for round in 0..200_u64 {
        submit(&mut front, round);
        front.session.connection.set_vring_addr(0, &at).unwrap();
        wait(&mut front);
        let read = front.memory.read(DATA, 512).unwrap();
        assert_eq!(read, content(usize::try_from(round).unwrap() * 512, 512));
    }
    for bad in [MEMORY, u64::MAX, 1] {
        let wrong = RingUsers { used: bad, ..at };
        assert!(front.session.connection.set_vring_addr(0, &wrong).is_err());
    }
    assert_eq!(front.read(1, 512), content(512, 512));
}

#[test]
fn vu_43_ring_20_rings_of_a_front_end_that_has_gone_are_not_served() {
    let disk = Disk::start(&[]);
    for round in 0..20 {
        let mut front = attached(&disk);
        for sector in 0..16 {
            let at = DATA + sector * (128 << 10);
            let data = [Buffer::writable(at, 128 << 10)];
            assert!(front.driver.submit(Op::Read, sector, &data, sector));
        }
        front.driver.publish().unwrap();
        drop(front.session);
        // The answer to the next one says that the last one's I/O has ended.
        let next = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
        assert!(!disk.maps_guest_memory(), "round {round}");
        let all = usize::try_from(MEMORY).unwrap();
        let before = front.memory.read(0, all).unwrap();
        let calls = front.driver.ring().take_calls().unwrap();
        assert!(calls <= 16);
        front.driver.ring().kick().unwrap();
        next.connection.get_features().unwrap();
        drop(next);
        attached(&disk);
        assert!(
            front.memory.read(0, all).unwrap() == before,
            "round {round}"
        );
        assert_eq!(front.driver.ring().take_calls().unwrap(), 0);
    }
}

#[test]
fn vu_44_the_socket_stays_the_same_file() {
    let disk = Disk::start(&[]);
    let file = || std::fs::metadata(&disk.socket).unwrap().ino();
    let before = file();
    for _ in 0..50 {
        assert_eq!(attached(&disk).read(3, 512), content(1536, 512));
        assert_eq!(file(), before);
    }
}

#[test]
fn vu_48_a_second_front_end_waits_for_the_end_of_the_first() {
    let disk = Disk::start(&[]);
    let mut first = attached(&disk);
    let second = Connection::connect(&disk.socket).unwrap();
    second.send(request::GET_FEATURES, 0, &[], &[]).unwrap();
    for sector in 0..100 {
        first.read(sector, 512);
    }
    let mut stream = second.stream();
    stream.set_nonblocking(true).unwrap();
    let early = stream.read(&mut [0]);
    assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    drop(first.session);
    second.reply(request::GET_FEATURES).unwrap();
    let session = Session::over(second, Like::CloudHypervisor, Wanted::default()).unwrap();
    assert_eq!(session.connection.get_queue_num().unwrap(), 256);
}

/// What a front-end leaves behind if it leaves any descriptor, thread or
/// mapping behind.
fn state(disk: &Disk) -> (usize, usize, bool) {
    // Its answer says that everybody before it has gone.
    let session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    session.connection.get_features().unwrap();
    let descriptors = disk.descriptors().len();
    let threads = std::fs::read_dir(format!("/proc/{}/task", disk.daemon.pid())).unwrap();
    // The kernel's helpers of io_uring come and go.
    let own = threads
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("comm")).ok())
        .filter(|name| !name.starts_with("iou-"))
        .count();
    (descriptors, own, disk.maps_guest_memory())
}

#[test]
fn vu_49_vu_50_a_thousand_front_ends_of_all_manners_leave_nothing_behind() {
    let disk = Disk::start(&[]);
    let memory = GuestMemory::flat(MEMORY).unwrap();
    attached(&disk);
    let before = state(&disk);
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = |count: usize| vec![null.as_raw_fd(); count];
    let header = |number: u32, flags: u32, size: u32| {
        [number, flags | flag::VERSION, size]
            .map(u32::to_ne_bytes)
            .concat()
    };
    for round in 0..1000_u32 {
        if round % 4 == 0 {
            let mut front = attached(&disk);
            let read = front.read(round.into(), 512);
            assert_eq!(read, content(round as usize * 512, 512));
            continue;
        }
        let connection = Connection::connect(&disk.socket).unwrap();
        match round % 40 {
            // Not a word, half a header, half a payload with a descriptor.
            1..=3 => {}
            5..=7 => connection.send_bytes(&[1, 0, 0], &many(1)).unwrap(),
            9..=11 => {
                let half = header(request::SET_MEM_TABLE, 0, 40);
                connection.send_bytes(&half, &many(1)).unwrap();
            }
            // Sizes that nobody could have room for.
            13..=15 => {
                let huge = header(request::SET_CONFIG, 0, u32::MAX - (round % 7));
                connection.send_bytes(&huge, &many(2)).unwrap();
                assert!(connection.receive().is_err());
            }
            // More descriptors than any message has.
            17..=23 => {
                let session = Session::over(connection, Like::Qemu, Wanted::default()).unwrap();
                let connection = &session.connection;
                let answer = connection.acknowledge(request::SET_VRING_NUM, &[0; 8], &many(253));
                assert_ne!(answer.ok(), Some(0));
            }
            25..=31 => {
                // A table that says three regions, and brings others.
                let mut table = vec![0_u8; 8 + 3 * 32];
                table[0] = 3;
                let session = Session::over(connection, Like::Qemu, Wanted::default()).unwrap();
                let connection = &session.connection;
                let answer = connection.acknowledge(
                    request::SET_MEM_TABLE,
                    &table,
                    &many(round as usize % 9),
                );
                assert_ne!(answer.ok(), Some(0));
            }
            _ => {
                // Memory and events, but nobody says good-bye.
                let mut session =
                    Session::over(connection, Like::CloudHypervisor, Wanted::default()).unwrap();
                session.share(&memory).unwrap();
                let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
                let fd = Some(event.as_raw_fd());
                session.connection.set_vring_kick(0, fd).unwrap();
                session.connection.set_vring_call(0, fd).unwrap();
                session.connection.set_vring_err(0, fd).unwrap();
            }
        }
    }
    assert_eq!(state(&disk), before);
    assert!(disk.daemon.terminate().unwrap().success());
}

#[test]
fn vu_46_the_process_ends_in_good_order_under_load() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for sector in 0..32 {
        let data = [Buffer::writable(DATA + sector * (64 << 10), 64 << 10)];
        assert!(front.driver.submit(Op::Read, sector, &data, sector));
    }
    front.driver.publish().unwrap();
    let socket = disk.socket.clone();
    assert!(disk.daemon.terminate().unwrap().success());
    assert!(!socket.exists());
    // What was fetched was answered, and each answer is right.
    while let Some(done) = front.driver.pop().unwrap() {
        assert_eq!(done.status, status::OK);
    }
    let closed = front.session.connection.get_features();
    assert!(closed.is_err());
}
