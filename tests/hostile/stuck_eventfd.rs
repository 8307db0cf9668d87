//! Eventfds that a front-end has made to block, and filled or emptied: it has
//! the same open files as the process.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use front_end::{Buffer, Op};
use rig::attached::{Attached, DATA};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::served::Served;

/// Makes writes to an eventfd wait until somebody reads it.
fn jam(event: &OwnedFd) {
    // One may have come when it was given.
    let _ = read(event);
    let flags = fcntl_getfl(event).unwrap();
    assert!(
        flags.contains(OFlags::NONBLOCK),
        "the process has made it so"
    );
    // The counter is at most one short of u64::MAX.
    write(event, u64::MAX - 1);
    fcntl_setfl(event, flags - OFlags::NONBLOCK).unwrap();
}

/// The queue calls by an event whose writes wait.
fn jammed_call(front: &Attached) -> OwnedFd {
    let (call, fd) = event();
    let connection = &front.session.connection;
    connection.set_vring_call(0, Some(fd)).unwrap();
    // The process has it, once this is answered.
    connection.get_features().unwrap();
    jam(&call);
    call
}

/// Waits for the answer of a request without being called.
fn answered(front: &mut Attached, tag: u64) {
    let start = Instant::now();
    while front
        .driver
        .pop()
        .unwrap()
        .is_none_or(|done| done.tag != tag)
    {
        assert!(start.elapsed() < front_end::limit(), "no answer");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ask(front: &mut Attached, tag: u64) {
    let data = [Buffer::writable(DATA, 512)];
    assert!(front.driver.submit(Op::Read, 0, &data, tag));
    front.driver.publish().unwrap();
    // It might take the process for one that looks by itself.
    front.driver.ring().kick().unwrap();
}

fn event() -> (OwnedFd, RawFd) {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fd = event.as_raw_fd();
    (event, fd)
}

fn write(event: &OwnedFd, count: u64) {
    rustix::io::write(event, &count.to_ne_bytes()).unwrap();
}

fn read(event: &OwnedFd) -> rustix::io::Result<u64> {
    let mut count = [0; 8];
    rustix::io::read(event, &mut count)?;
    Ok(u64::from_ne_bytes(count))
}

#[test]
fn a_call_event_that_blocks_holds_no_worker_up() {
    let served = Served::new(&[]);
    let mut front = served.attach();
    for round in 0..3 {
        let _call = jammed_call(&front);
        for tag in 0..4 {
            front.driver.ring().want_call(true);
            ask(&mut front, 10 * round + tag);
            answered(&mut front, 10 * round + tag);
        }
        // Messages are answered as well.
        front
            .session
            .connection
            .get_vring_base(0)
            .map(drop)
            .unwrap();
        drop(front);
        front = served.attach();
    }
    drop(front);
    served.said("its call event is full, and blocks");
    served.serves_the_next();
    assert!(served.daemon.terminate().unwrap().success());
}

#[test]
fn an_error_event_that_blocks_holds_no_worker_up() {
    let served = Served::new(&[]);
    let front = served.attach();
    let (error, fd) = event();
    front.session.connection.set_vring_err(0, Some(fd)).unwrap();
    front.session.connection.get_features().unwrap();
    jam(&error);
    // More than the ring holds breaks it.
    front.driver.ring().memory().set_avail_index(1000);
    front.driver.ring().kick().unwrap();
    served.said("its error event is full, and blocks");
    drop(front);
    served.serves_the_next();
    assert!(served.daemon.terminate().unwrap().success());
}

#[test]
fn a_process_that_is_to_stop_does_so_while_a_call_event_blocks() {
    let served = Served::new(&[]);
    let mut front = served.attach();
    let _call = jammed_call(&front);
    front.driver.ring().want_call(true);
    ask(&mut front, 1);
    // The worker is about to say so.
    answered(&mut front, 1);
    assert!(served.daemon.terminate().unwrap().success());
}

#[test]
fn a_kick_event_that_blocks_and_is_empty_holds_no_worker_up() {
    let served = Served::new(&[]);
    let mut front = served.attach();
    let (kick, fd) = event();
    front
        .session
        .connection
        .set_vring_kick(0, Some(fd))
        .unwrap();
    front.session.connection.get_features().unwrap();
    let flags = fcntl_getfl(&kick).unwrap();
    for tag in 0..200 {
        let data = [Buffer::writable(DATA, 512)];
        assert!(front.driver.submit(Op::Read, 0, &data, tag));
        front.driver.publish().unwrap();
        write(&kick, 1);
        // Taken away again: whoever reads it now waits for ever.
        fcntl_setfl(&kick, flags | OFlags::NONBLOCK).unwrap();
        let _ = read(&kick);
        fcntl_setfl(&kick, flags - OFlags::NONBLOCK).unwrap();
        answered(&mut front, tag);
    }
    drop(front);
    served.serves_the_next();
}
