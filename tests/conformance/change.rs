//! A capacity that changes under a guest, and who is told.

use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use front_end::codes::{BACKEND_CONFIG_CHANGE, flag, protocol, request, status};
use front_end::{Buffer, Connection, Like, Op, Session, Wanted, limit};

use crate::disk::{Attached, DATA, Disk, IMAGE, content};

fn attached(disk: &Disk) -> Attached {
    Attached::new(&disk.socket, Like::Qemu, Wanted::default())
}

/// The capacity in bytes as the configuration has it.
fn capacity(connection: &Connection) -> u64 {
    let bytes = connection.get_config(0, 8).unwrap();
    512 * u64::from_le_bytes(bytes.try_into().unwrap())
}

/// Waits for a change of the configuration on the back-end channel.
fn expect_news(channel: &Connection) {
    let message = channel.receive().unwrap();
    assert_eq!(message.request, BACKEND_CONFIG_CHANGE);
    // Nothing that QEMU would have to answer before it reads.
    assert_eq!(message.flags, flag::VERSION);
    assert!(message.payload.is_empty());
}

/// Nothing has come. Whatever the back-end had to say when it was asked for
/// something on the main connection, it has said.
fn assert_silent(connection: &Connection, mut channel: &UnixStream) {
    connection.get_features().unwrap();
    connection.get_features().unwrap();
    channel.set_nonblocking(true).unwrap();
    let read = channel.read(&mut [0]);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
    channel.set_nonblocking(false).unwrap();
}

#[test]
fn blk_35_vu_27_a_resize_is_told_and_waits_for_nobody() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    for size in [2 * IMAGE, IMAGE, 3 * IMAGE] {
        disk.resize(size);
        // Served while the message lies unread, as QEMU may leave it.
        assert_eq!(front.read(1, 512), content(512, 512));
        expect_news(front.session.back_channel.as_ref().unwrap());
        assert_eq!(capacity(&front.session.connection), size as u64);
        let last = size as u64 / 512 - 1;
        front.read(last, 512);
        let beyond = front.driver.read(last + 1, DATA, 512).unwrap();
        assert_eq!(beyond.status, status::IOERR);
    }
}

#[test]
fn blk_36_requests_around_a_shrinking_end_succeed_or_fail() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    const PART: u32 = 64 << 10;
    const PARTS: u64 = IMAGE as u64 / PART as u64;
    for round in 0..20 {
        let mut submitted = 0;
        for part in (0..PARTS).rev() {
            let data = [Buffer::writable(DATA + part * u64::from(PART), PART)];
            if !front
                .driver
                .submit(Op::Read, part * u64::from(PART) / 512, &data, part)
            {
                break;
            }
            submitted += 1;
        }
        front.driver.publish().unwrap();
        disk.resize(IMAGE / 2);
        for _ in 0..submitted {
            let done = front.driver.wait(limit()).unwrap();
            let kept = done.tag < PARTS / 2;
            let good = done.status == status::OK;
            assert!(good || !kept && done.status == status::IOERR, "{done:?}");
        }
        // Nothing is there any more, for any kind of request.
        let gone = IMAGE as u64 / 1024;
        for done in [
            front.driver.read(gone, DATA, 512).unwrap(),
            front.driver.write(gone, DATA, 512).unwrap(),
            front.driver.read(gone - 1, DATA, 1024).unwrap(),
        ] {
            assert_eq!(done.status, status::IOERR, "round {round}");
        }
        assert_eq!(
            front.read(gone - 1, 512),
            content(IMAGE / 2 - 512, 512),
            "round {round}"
        );
        disk.resize(IMAGE);
        assert_eq!(front.read(gone, 512), [0; 512]);
    }
}

#[test]
fn vu_15_a_device_whose_rings_are_stopped_stays_silent() {
    let disk = Disk::start(&[]);
    let front = attached(&disk);
    front.session.stop(1).unwrap();
    let before = front.memory.read(0, 1 << 20).unwrap();
    front.driver.ring().take_calls().unwrap();
    front.driver.ring().kick().unwrap();
    disk.resize(2 * IMAGE);
    let connection = &front.session.connection;
    let channel = front.session.back_channel.as_ref().unwrap();
    assert_silent(connection, channel.stream());
    assert_eq!(capacity(connection), 2 * IMAGE as u64);
    assert_eq!(front.driver.ring().take_calls().unwrap(), 0);
    assert!(front.memory.read(0, 1 << 20).unwrap() == before);
    // It has not forgotten.
    let (mut session, rings) = (front.session, [front.driver.ring()]);
    session.start(&front.memory, &rings).unwrap();
    expect_news(session.back_channel.as_ref().unwrap());
}

#[test]
fn vu_27_only_who_has_negotiated_it_is_told() {
    for without in [protocol::CONFIG, protocol::BACKEND_REQ] {
        let disk = Disk::start(&[]);
        let wanted = Wanted {
            protocol: protocol::ALL & !without,
            ..Wanted::default()
        };
        let mut front = Attached::new(&disk.socket, Like::Qemu, wanted);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = [theirs.as_raw_fd()];
        let connection = &front.session.connection;
        let answer = connection
            .acknowledge(request::SET_BACKEND_REQ_FD, &[], &fd)
            .unwrap();
        assert_eq!(answer != 0, without == protocol::BACKEND_REQ);
        disk.resize(2 * IMAGE);
        assert_silent(connection, &ours);
        assert_eq!(front.read(1, 512), content(512, 512));
    }
}

#[test]
fn vu_28_a_new_back_end_channel_closes_the_old() {
    let disk = Disk::start(&[]);
    let mut front = attached(&disk);
    let old = front.session.back_channel.take().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connection = &front.session.connection;
    connection.set_backend_req_fd(theirs.as_raw_fd()).unwrap();
    drop(theirs);
    let closed = old.receive();
    assert!(matches!(closed, Err(front_end::Error::Closed)));
    disk.resize(2 * IMAGE);
    expect_news(&Connection::new(ours).unwrap());
    // What is no socket is refused, and changes nothing.
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(connection.set_backend_req_fd(file.as_raw_fd()).is_err());
    assert_eq!(front.read(1, 512), content(512, 512));
}

/// QEMU says it before it claims the device.
#[test]
fn vu_28_the_channel_may_come_before_the_owner() {
    let disk = Disk::start(&[]);
    let mut connection = Connection::connect(&disk.socket).unwrap();
    connection.get_features().unwrap();
    let features = connection.get_protocol_features().unwrap();
    connection.set_protocol_features(features).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    connection.set_backend_req_fd(theirs.as_raw_fd()).unwrap();
    drop(theirs);
    // It goes with the connection.
    drop(connection);
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    let session = Session::open(&disk.socket, Like::Qemu, Wanted::default()).unwrap();
    assert_eq!(session.connection.get_queue_num().unwrap(), 256);
}
