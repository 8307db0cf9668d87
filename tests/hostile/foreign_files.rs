//! Descriptors of a file whose file system never answers, with each message.
//!
//! Each is sent by a process of its own: what other tests start meanwhile would
//! inherit the file, and wait for its file system as it closes that.

use std::os::fd::AsRawFd;
use std::process::Command;

use crate::fuse::Silent;
use crate::served::Served;

/// Requests with a payload that would be taken, for a file of 64 MiB.
fn messages() -> Vec<(u32, Vec<u8>)> {
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_ne_bytes()).collect() };
    let region = [0, 1 << 20, 0x7000_0000, 0];
    let one = [&[1][..], &region[..]].concat();
    vec![
        // GET_FEATURES, which takes none, and a request that there is not.
        (1, Vec::new()),
        (999, Vec::new()),
        // SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD
        (5, words(&one)),
        (6, words(&[4096, 0])),
        (7, Vec::new()),
        // SET_VRING_KICK, CALL, ERR
        (12, words(&[0])),
        (13, words(&[0])),
        (14, words(&[0])),
        // SET_BACKEND_REQ_FD
        (21, Vec::new()),
        // SET_INFLIGHT_FD: one queue of 64 entries
        (
            32,
            [
                words(&[4096, 0]),
                [1_u16, 64].map(u16::to_ne_bytes).concat(),
                vec![0; 4],
            ]
            .concat(),
        ),
        // ADD_MEM_REG, SET_DEVICE_STATE_FD both ways
        (37, words(&[&[0][..], &region[..]].concat())),
        (42, words(&[0])),
        (42, words(&[1])),
    ]
}

const ALONE: &str = "EXTENTD_HOSTILE_ALONE";

/// Runs the test of that name in a process of its own; whether this is that.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(ALONE, "1")
        .status();
    assert!(ended.unwrap().success());
    false
}

#[test]
fn files_that_nobody_serves_keep_nobody_waiting() {
    if !is_alone("foreign_files::files_that_nobody_serves_keep_nobody_waiting") {
        return;
    }
    let served = Served::new(&[]);
    let Some(silent) = Silent::new() else { return };
    let fd = silent.file().as_raw_fd();
    for (request, payload) in messages() {
        let session = served.open();
        let connection = &session.connection;
        connection.send(request, 0, &payload, &[fd]).unwrap();
        // The same connection is answered: the last of what comes is this.
        connection.send(15, 0, &[], &[]).unwrap();
        while connection.receive().unwrap().request != 15 {}
        drop(session);
        served.serves_the_next();
    }
    served.said("is of a kind that is not taken here");
    drop(silent);
    served.serves_the_next();
    assert!(served.daemon.terminate().unwrap().success());
}

#[test]
fn more_of_them_than_there_are_threads_for_keep_nobody_waiting() {
    if !is_alone("foreign_files::more_of_them_than_there_are_threads_for_keep_nobody_waiting") {
        return;
    }
    let served = Served::new(&[]);
    let Some(silent) = Silent::new() else { return };
    let fds = [silent.file().as_raw_fd(); 8];
    for _ in 0..40 {
        let session = served.open();
        session.connection.send(999, 0, &[], &fds).unwrap();
        session.connection.get_features().unwrap();
    }
    served.serves_the_next();
    drop(silent);
    assert!(served.daemon.terminate().unwrap().success());
}
