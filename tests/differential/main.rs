//! The same disk through the stock `vhost-user-backend` daemon and through our
//! session: the guest must not see a difference.

#![allow(clippy::unwrap_used)]

mod requests;
mod stock;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use extentd::disk::{Disk, DiskOptions};
use extentd::options::config::{IoPath, OnError};
use front_end::codes::{feature, protocol};
use front_end::{Connection, Like, Session, Wanted};
use rig::attached::Attached;
use rig::scratch::folder;
use rig::small_image::{IMAGE, content};
use vhost_backend::{Endpoint, Options, PollTime, Server};

use crate::requests::{Outcome, carry_out, random};

/// What the stock daemon offers as well.
const PROTOCOL: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS;

fn open(image: &Path, read_only: bool) -> Arc<Disk> {
    std::fs::write(image, content(0, IMAGE)).unwrap();
    let options = DiskOptions {
        read_only,
        logical_block_size: None,
        serial: *b"differential\0\0\0\0\0\0\0\0",
        lock: true,
        io_path: IoPath::File,
        map_budget: 1 << 20,
        pin_guest_memory: false,
        on_enospc: OnError::Report,
        on_io_error: OnError::Report,
        may_poll: true,
        swap: None,
        pin_reserve: 0,
    };
    Arc::new(Disk::open(image, &options).unwrap())
}

/// Our session, on a thread that ends with its front-end.
fn ours(disk: Arc<Disk>, stream: UnixStream) -> JoinHandle<()> {
    let options = Options {
        queues: 1,
        queue_size: 256,
        workers: 1,
        cpus: Vec::new(),
        poll: PollTime::Never,
    };
    let mut server = Server::new(disk, options).unwrap();
    std::thread::spawn(move || server.run(Endpoint::Connected(stream)).unwrap())
}

fn attached(connection: Connection, features: u64) -> Attached {
    let wanted = Wanted {
        features,
        protocol: PROTOCOL,
        queues: 1,
    };
    Attached::over(Session::over(connection, Like::Qemu, wanted).unwrap())
}

/// The same requests on both; what each guest saw, and the images.
fn compare(seed: u64, read_only: bool, without: u64) {
    front_end::set_limit(std::time::Duration::from_secs(20));
    let files = folder("differential");
    let path = |name| files.path().join(name);
    let (mine, theirs) = (path("ours"), path("theirs"));
    let (near, far) = UnixStream::pair().unwrap();
    let our_end = ours(open(&mine, read_only), far);
    let socket = path("socket");
    let their_end = stock::serve(open(&theirs, read_only), &socket);
    let features = stock::features(read_only) & !without;
    let mut a = attached(Connection::new(near).unwrap(), features);
    let mut b = attached(Connection::connect(&socket).unwrap(), features);
    assert_eq!(a.session.features, b.session.features);
    let mut statuses = [0; 4];
    for (number, request) in random(seed).take(3000).enumerate() {
        let seen: [Outcome; 2] = [&mut a, &mut b].map(|front| carry_out(front, &request));
        assert!(seen[0] == seen[1], "{number} {request:?}: {seen:?}");
        statuses[usize::from(seen[0].status).min(3)] += 1;
    }
    // All of them occur, and each was always written.
    assert!(
        statuses[..3].iter().all(|&count| count > 20),
        "{statuses:?}"
    );
    assert_eq!(statuses[3], 0);
    assert_eq!(a.session.stop(1).unwrap(), b.session.stop(1).unwrap());
    drop((a, b));
    our_end.join().unwrap();
    their_end.join().unwrap();
    let [mine, theirs] = [mine, theirs].map(|image| std::fs::read(image).unwrap());
    assert!(mine == theirs);
}

#[test]
fn the_guest_sees_no_difference() {
    compare(1, false, 0);
}

#[test]
fn the_guest_sees_no_difference_on_simple_rings() {
    compare(2, false, feature::EVENT_IDX | feature::INDIRECT);
}

#[test]
fn the_guest_sees_no_difference_on_a_read_only_disk() {
    compare(3, true, 0);
}
