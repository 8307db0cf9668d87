//! Every kind of descriptor in every message that takes one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use front_end::codes::request::{self, SET_BACKEND_REQ_FD};
use front_end::{Buffer, Connection, Op};
use rig::attached::{Attached, DATA};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::inflight::record;
use super::kinds::{KINDS, MEMORIES, Made, Make, OWN};
use super::memory::{at, region, table};
use crate::suite::site::{Site, longs, say, words};
use crate::suite::{Case, case};

/// What a descriptor is given as.
const ROLES: [(&str, Role); 10] = [
    (
        "the kick of a ring that runs",
        Role::Ring(request::SET_VRING_KICK),
    ),
    (
        "the call of a ring that runs",
        Role::Ring(request::SET_VRING_CALL),
    ),
    (
        "the error event of a ring that breaks",
        Role::Ring(request::SET_VRING_ERR),
    ),
    ("a table of memory", Role::Message(request::SET_MEM_TABLE)),
    ("a region of memory", Role::Message(request::ADD_MEM_REG)),
    (
        "the log of dirty pages",
        Role::Message(request::SET_LOG_BASE),
    ),
    ("the event of the log", Role::Message(request::SET_LOG_FD)),
    (
        "the channel of the back-end",
        Role::Message(request::SET_BACKEND_REQ_FD),
    ),
    ("where the state goes to", Role::State(0)),
    ("where the state comes from", Role::State(1)),
];

#[derive(Clone, Copy)]
enum Role {
    Ring(u32),
    Message(u32),
    State(u32),
}

/// A message that would be right with the right descriptor.
fn payload(number: u32) -> Vec<u8> {
    match number {
        request::SET_MEM_TABLE => table(&[region(at(0), 0)]),
        request::ADD_MEM_REG => [vec![0; 8], region(at(0), 0)].concat(),
        request::SET_LOG_BASE => longs([4096, 0]),
        _ => Vec::new(),
    }
}

/// A read, whose end is waited for as long as an honest one could take.
pub fn read_once(front: &mut Attached) {
    let data = [Buffer::writable(DATA, 4096)];
    front.driver.submit(Op::Read, 0, &data, 0);
    let _ = front.driver.publish();
    let start = Instant::now();
    while front.driver.ring().device_index() == front.driver.ring().next_used()
        && start.elapsed() < Duration::from_millis(100)
    {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Jumps beyond the size of the ring.
fn break_ring(front: &Attached) {
    let ring = front.driver.ring();
    let index = ring.memory().avail_index().wrapping_add(1000);
    ring.memory().set_avail_index(index);
    let _ = ring.kick();
}

/// The descriptor, where this machine has that kind.
fn made(site: &Site, connection: &Connection, make: Make) -> Option<Made> {
    let made = make(site, connection);
    made.inspect_err(|error| println!("not here: {error}")).ok()
}

fn pass(site: &Site, role: Role, make: Make) -> Option<(Attached, Made)> {
    let mut front = site.attach();
    let made = made(site, &front.session.connection, make)?;
    let fds = [made.fd.as_raw_fd()];
    let connection = &front.session.connection;
    match role {
        Role::Ring(number) => {
            say(connection, number, &longs([0]), &fds);
            read_once(&mut front);
            break_ring(&front);
        }
        Role::Message(number) => {
            say(connection, number, &payload(number), &fds);
            read_once(&mut front);
        }
        Role::State(direction) => {
            front.session.stop(1).unwrap();
            // Nobody waits for an answer: some pipes never end, and some kinds cannot be sent.
            let _ = connection.send(42, 0, &words([direction, 0]), &fds);
            let _ = connection.send(43, 0, &[], &[]);
        }
    }
    Some((front, made))
}

/// As the record of what is in flight, which is taken before a ring starts.
fn pass_record(site: &Site, make: Make) -> Option<(Option<Attached>, Made)> {
    let mut session = site.open();
    let made = made(site, &session.connection, make)?;
    let file = File::from(made.fd.try_clone().unwrap());
    session.inflight = Some(record(file, [4096, 0], 1, 64));
    Some((super::inflight::start(session), made))
}

/// An event that is given as it should be, and made such that it blocks then.
fn blocks_later(name: &'static str, number: u32) -> Case {
    case(name, move |site| {
        let mut front = site.attach();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let connection = &front.session.connection;
        say(connection, number, &longs([0]), &[event.as_raw_fd()]);
        // It may have been signalled already, and may be at any time.
        while event.write(u64::MAX - 1).is_err() {
            let _ = event.read();
        }
        // The kernel keeps this with the event, not with the descriptor.
        super::kinds::blocking(&event, true);
        for _ in 0..3 {
            read_once(&mut front);
        }
        break_ring(&front);
        (front, event)
    })
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        blocks_later(
            "the call blocks after it was given",
            request::SET_VRING_CALL,
        ),
        blocks_later(
            "the error event blocks after it was given",
            request::SET_VRING_ERR,
        ),
        blocks_later(
            "the kick blocks after it was given",
            request::SET_VRING_KICK,
        ),
    ];
    for (what, make) in KINDS.into_iter().chain(MEMORIES) {
        let title = format!("{what} is the record of what is in flight");
        let index = cases.len();
        cases.push(case(title, move |site| pass_record(site, make)).alike(index));
        for (role, how) in ROLES {
            let title = format!("{what} is {role}");
            let index = cases.len();
            let row = case(title, move |site| pass(site, how, make));
            // The other end is open as well then, for as long as the process takes its peer for
            // alive.
            let lasting = what == OWN && matches!(how, Role::Message(SET_BACKEND_REQ_FD));
            cases.push(row.alike(index).lasting(lasting));
        }
    }
    cases
}
