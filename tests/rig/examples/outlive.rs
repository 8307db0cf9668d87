//! A front-end with random requests on four queues that outlives the
//! processes behind its disk: `outlive SOCKET IMAGE N` connects again N times,
//! then compares the whole image with what it wrote. It writes a line when the
//! load runs, one after each connection, and one when all was right; what was
//! wrong is a panic. The image reads as zeros at the start.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;
use std::time::{Duration, Instant};

use front_end::wait_readable;
use rig::files::read_direct;
use rig::lanes::Lanes;
use rig::model::SECTOR;
use rig::place::{connect, guest};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, image, times] = &arguments[..] else {
        panic!("usage: outlive SOCKET IMAGE N");
    };
    let (socket, image) = (Path::new(socket), Path::new(image));
    let bytes = std::fs::metadata(image).unwrap().len();
    let sectors = usize::try_from(bytes).unwrap() / SECTOR;
    let mut lanes = Lanes::new(guest(), &vec![0; sectors], 7);
    let mut session = connect(socket);
    lanes.start(&mut session).unwrap();
    lanes.proceed();
    println!("load");
    for _ in 0..times.parse::<usize>().unwrap() {
        let mut last = Instant::now();
        while wait_readable(session.connection.stream(), Duration::ZERO).is_err() {
            last = Instant::now();
            lanes.run_until(last + Duration::from_millis(1));
            assert!(lanes.sound(), "{:?}", lanes.wrong);
        }
        let inflight = session.inflight.take();
        session = connect(socket);
        session.inflight = inflight;
        lanes.start(&mut session).unwrap();
        let ended = lanes.ended;
        while lanes.ended == ended && lanes.sound() {
            lanes.run_until(Instant::now() + Duration::from_millis(1));
        }
        println!("again after {} ms", last.elapsed().as_millis());
        lanes.proceed();
    }
    assert_eq!(lanes.settle(&mut session), 0);
    drop(session);
    lanes.check(&read_direct(image));
    assert_eq!((lanes.repeated, &lanes.wrong[..]), (0, &[][..]));
    println!("all right: {} requests", lanes.ended);
}
