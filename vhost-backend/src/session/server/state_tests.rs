//! The state of a disk, saved by one front-end and restored by another.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::tests::{FrontEnd, Running};
use crate::device::Status;

const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// No descriptor comes back; the lowest byte is 0 for success.
const NO_FILE: u64 = 0x100;

impl FrontEnd {
    fn transfer(&mut self, direction: u32, file: &File) -> u64 {
        let payload = [direction, 0].map(u32::to_ne_bytes).concat();
        self.send(42, 0, &payload, &[file.as_raw_fd()]);
        u64::from_ne_bytes(self.reply(42)[..].try_into().unwrap())
    }
}

fn pipe() -> (File, File) {
    let (end, pipe) = std::io::pipe().unwrap();
    (OwnedFd::from(end).into(), OwnedFd::from(pipe).into())
}

/// Has a guest read a sector.
fn read(server: &Running, front: &mut FrontEnd) {
    front.read_sector();
    let pending = server.io.wait_pending(1);
    server.io.end(pending[0].tag, Status::Ok);
    while front.driver.take_used().is_empty() {
        std::thread::yield_now();
    }
}

/// What a front-end saves of a guest at rest.
fn saved(front: &mut FrontEnd) -> Vec<u8> {
    let (mut end, start) = pipe();
    assert_eq!(front.transfer(SAVE, &start), NO_FILE);
    drop(start);
    let mut state = Vec::new();
    end.read_to_end(&mut state).unwrap();
    assert_eq!(front.get(43), 0);
    state
}

/// Gives a state back; what comes of it.
fn load(front: &mut FrontEnd, state: &[u8]) -> u64 {
    let (end, mut start) = pipe();
    assert_eq!(front.transfer(LOAD, &end), NO_FILE);
    start.write_all(state).unwrap();
    drop(start);
    front.get(43)
}

#[test]
fn vu_42_a_saved_state_brings_the_rings_back_to_where_they_were() {
    let server = Running::start("state");
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.start_ring();
    read(&server, &mut front);
    // Not while rings run.
    let (_end, start) = pipe();
    assert_ne!(front.transfer(SAVE, &start) & 0xff, 0);
    assert_ne!(front.get(43), 0);
    assert_eq!(
        front.get_vring_base(),
        [0, 1].map(u32::to_ne_bytes).concat()
    );
    let state = saved(&mut front);
    drop(front);

    // The guest comes back with its memory, and nobody tells the base.
    let mut front = FrontEnd::negotiated(&server.path);
    front.share_memory();
    front.driver.avail = 1;
    front.driver.used = 1;
    front.driver.avail_idx().store(1, Ordering::Release);
    front.driver.used_idx().store(1, Ordering::Release);
    assert_eq!(load(&mut front, &state), 0);
    assert_ne!(front.get(43), 0, "it is taken once");
    assert_eq!(front.ring(8, 16), 0);
    assert_eq!(front.addresses_logged(0, 0), 0);
    let kick = front.kick.as_raw_fd();
    assert_eq!(front.ask(12, &0_u64.to_ne_bytes(), &[kick]), 0);
    assert_eq!(front.ring(18, 1), 0);
    read(&server, &mut front);
    assert_eq!(
        front.get_vring_base(),
        [0, 2].map(u32::to_ne_bytes).concat()
    );
}

#[test]
fn vu_42_a_state_that_does_not_fit_is_refused_and_nothing_is_waited_for() {
    let server = Running::start("misfit");
    let mut front = FrontEnd::negotiated(&server.path);
    let state = saved(&mut front);
    let mut other = state.clone();
    other[16] ^= 1;
    for wrong in [&other[..], &state[..20], &[], &[0; 9000]] {
        assert_ne!(load(&mut front, wrong), 0);
    }
    // A full pipe, and a file.
    let (_end, mut start) = pipe();
    crate::sys::set_nonblocking(&start).unwrap();
    while start.write(&[0; 4096]).is_ok() {}
    assert_ne!(front.transfer(SAVE, &start) & 0xff, 0);
    let file = tempfile::tempfile().unwrap();
    assert_ne!(front.transfer(SAVE, &file) & 0xff, 0);
    assert_eq!(load(&mut front, &state), 0);
}
