//! Queues that share a thread share it.

use std::path::Path;

use front_end::{Buffer, Driver, GuestMemory, Like, Op, Session, Setup, Wanted};

use crate::disk::{DATA, Disk, IMAGE, MEMORY};

/// Requests that the deep queue always has in flight.
const DEPTH: u64 = 48;
/// Requests of the shallow queue, one at a time.
const ROUNDS: u64 = 300;
/// Most that the deep queue may get done, for each one of the shallow queue.
const SHARE: u64 = 8 * DEPTH;

/// A driver of a queue with 64 entries, whose parts lie from `base` on.
fn driver(session: &Session, memory: &GuestMemory, base: u64) -> Driver {
    let setup = Setup {
        size: 64,
        features: session.features,
        indirect: 4,
    };
    Driver::new(memory, base, setup).unwrap()
}

/// Reads of `length` bytes keep the deep queue full, until the shallow queue
/// has had its turns; how many they were.
fn deep_requests(socket: &Path, length: u32) -> u64 {
    let wanted = Wanted {
        queues: 2,
        ..Wanted::default()
    };
    let mut session = Session::open(socket, Like::Qemu, wanted).unwrap();
    let memory = GuestMemory::flat(MEMORY).unwrap();
    let mut deep = driver(&session, &memory, 0);
    let mut shallow = driver(&session, &memory, deep.end().next_multiple_of(4096));
    session
        .start(&memory, &[deep.ring(), shallow.ring()])
        .unwrap();
    let sectors = IMAGE as u64 / 512 - u64::from(length) / 512;
    let large = [Buffer::writable(DATA + 8192, length)];
    let small = [Buffer::writable(DATA, 512)];
    let (mut begun, mut ended, mut turns, mut waits) = (0, 0, 0, false);
    while turns < ROUNDS {
        while deep.pop().unwrap().is_some() {
            ended += 1;
        }
        while begun < ended + DEPTH {
            assert!(deep.submit(Op::Read, begun * 8 % sectors, &large, 0));
            begun += 1;
        }
        deep.publish().unwrap();
        if let Some(done) = shallow.pop().unwrap() {
            assert_eq!(done.status, 0);
            (turns, waits) = (turns + 1, false);
        }
        if !waits {
            assert!(shallow.submit(Op::Read, turns % sectors, &small, 0));
            shallow.publish().unwrap();
            waits = true;
        }
        assert!(
            ended <= (turns + 1) * SHARE,
            "{turns} requests of one queue beside {ended} of the other"
        );
    }
    ended
}

#[test]
fn a_deep_queue_and_large_requests_do_not_hold_back_a_shallow_queue() {
    let disk = Disk::start(&["--num-queues", "2", "--threads", "1"]);
    for length in [512, 128 << 10] {
        let ended = deep_requests(&disk.socket, length);
        assert!(ended > 0, "the deep queue is served as well");
    }
}
