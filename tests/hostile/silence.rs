//! Connections that say nothing, or not enough, while another one waits.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use front_end::Connection;

use crate::served::Served;

#[test]
fn half_a_message_keeps_nobody_out() {
    let served = Served::new(&[]);
    let mut half = UnixStream::connect(served.daemon.socket()).unwrap();
    half.write_all(&[1, 0, 0, 0, 1]).unwrap();
    served.info_until("a front-end", |info| info["session"]["connected"] == true);
    served.serves_the_next();
    served.said("it has left a message");
}

#[test]
fn who_only_asks_what_is_offered_keeps_nobody_out() {
    let served = Served::new(&[]);
    let probe = Connection::connect(served.daemon.socket()).unwrap();
    probe.get_features().unwrap();
    // However often it asks.
    let asks = std::thread::spawn(move || {
        while probe.get_features().is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    served.serves_the_next();
    served.said("it has set nothing up");
    asks.join().unwrap();
}

#[test]
fn a_front_end_whose_guest_is_silent_stays_whoever_waits() {
    let served = Served::new(&[]);
    let first = Connection::connect(served.daemon.socket()).unwrap();
    first.get_features().unwrap();
    first.set_owner().unwrap();
    first.get_features().unwrap();
    let _second = UnixStream::connect(served.daemon.socket()).unwrap();
    served.info_until("another one to wait", |info| {
        info["session"]["waiting"][0]["seconds"].as_u64() >= Some(7)
    });
    first.get_features().unwrap();
}
