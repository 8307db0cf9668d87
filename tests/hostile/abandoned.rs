//! Requests for more than a disk can do in an hour, of a front-end that goes.

use std::fs::File;
use std::time::{Duration, Instant};

use front_end::codes::{descriptor, request};
use front_end::{Daemon, Like, Place, Session, Wanted};
use rig::attached::{Attached, MEMORY};
use rig::scratch::folder;
use rustix::fs::MemfdFlags;

use crate::cases::table::{entry, offer_all};
use crate::regions::{memfd, share};

/// A sparse image.
const IMAGE: u64 = 4 << 30;
/// A buffer, which a request has over and over.
const BUFFER: u64 = 16 << 20;
/// Where it lies.
const BUFFER_AT: u64 = MEMORY * 4;
/// Data descriptors of a request, which has almost the 4 GiB that a chain can.
const BUFFERS: u16 = 255;
/// Where the table of a request lies.
const TABLE: u64 = MEMORY / 2;

/// Offers as many of them as the ring has entries.
fn ask_for_all(front: &mut Attached) {
    let at = Place {
        guest: BUFFER_AT,
        user: 0x1000_0000_0000,
        size: BUFFER,
    };
    share(front, at, &memfd(BUFFER, MemfdFlags::CLOEXEC));
    let header = TABLE - 16;
    front.memory.write(header, &[0; 16]).unwrap();
    let data = (u32::try_from(BUFFER).unwrap(), descriptor::WRITE);
    let mut table = entry(header, 16, descriptor::NEXT, 1);
    for number in 1..=BUFFERS {
        table.extend(entry(
            at.guest,
            data.0,
            data.1 | descriptor::NEXT,
            number + 1,
        ));
    }
    table.extend(entry(header - 1, 1, descriptor::WRITE, 0));
    front.memory.write(TABLE, &table).unwrap();
    offer_all(front, TABLE, u32::try_from(table.len()).unwrap());
}

/// Waits until they are being carried out, for so long that all were fetched.
fn wait_until_busy(front: &Attached) {
    let start = Instant::now();
    for _ in 0..100 {
        front.memory.write(BUFFER_AT, &[0xff]).unwrap();
        while front.memory.read(BUFFER_AT, 1).unwrap() == [0xff] {
            assert!(start.elapsed() < front_end::limit());
        }
    }
}

/// The next front-end is served when `leaves` has ended the one with the
/// requests, of which a terabyte is copied otherwise.
fn next_is_served(arguments: &[&str], leaves: impl Fn(Attached)) {
    let files = folder("abandoned");
    let path = |name: &str| files.path().join(name);
    let image = path("image");
    File::create(&image).unwrap().set_len(IMAGE).unwrap();
    let daemon =
        Daemon::start_with(&rig::extentd!(), &path("socket"), &image, arguments, &[]).unwrap();
    let session = Session::open(daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
    let mut front = Attached::with_ring(session, 256);
    ask_for_all(&mut front);
    wait_until_busy(&front);
    let start = Instant::now();
    leaves(front);
    let mut next = Attached::new(daemon.socket(), Like::Qemu, Wanted::default());
    assert_eq!(next.read(8, 4096), [0; 4096]);
    println!("served after {} ms", start.elapsed().as_millis());
    daemon
        .wait_stderr(|line| line.contains("the front-end has gone and its requests go on"))
        .unwrap();
}

#[test]
fn requests_without_end_keep_the_next_front_end_waiting_for_seconds() {
    for arguments in [&[][..], &["--threads", "1", "--io-path", "file"]] {
        next_is_served(arguments, drop);
    }
}

#[test]
fn who_goes_while_a_ring_is_being_stopped_keeps_nobody_waiting_for_long() {
    next_is_served(&[], |front| {
        let state = [0_u32, 0].map(u32::to_ne_bytes).concat();
        let connection = &front.session.connection;
        connection
            .send(request::GET_VRING_BASE, 1, &state, &[])
            .unwrap();
        // The message is taken, and waits for the requests.
        std::thread::sleep(Duration::from_millis(300));
    });
}
