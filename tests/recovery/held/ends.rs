//! Processes, rings and guests that end or rest while requests are held.

use std::os::fd::{AsRawFd, OwnedFd};

use super::*;

/// SET_DEVICE_STATE_FD, which saves with two zeros.
const SET_DEVICE_STATE_FD: u32 = 42;

/// Quiesces the disk; how often held requests were tried again by then.
fn hold_still(guest: &Guest, sync: bool) -> Value {
    let still = Request::Quiesce {
        hold_ms: 60_000,
        within_ms: 5000,
        sync,
    };
    ask(&guest.control, &still);
    guest.stats()["held_retries"].clone()
}

#[test]
fn a_successor_holds_what_was_held_when_the_process_was_killed() {
    let Some((small, mut guest)) = full(true, 40) else {
        return;
    };
    guest.next_process(|daemon| {
        daemon.kill().unwrap();
    });
    guest.wait_held(40);
    guest.others_go_on();
    // A stop in good order leaves them too.
    guest.next_process(|daemon| {
        daemon.signal(libc::SIGTERM).unwrap();
        daemon
            .wait_stderr(|line| line.contains("40 held requests are left to whoever comes next"))
            .unwrap();
        assert!(daemon.terminate().unwrap().success());
    });
    guest.wait_held(40);
    guest.nothing();
    small.make_room();
    assert_eq!(guest.end(40, status::OK), holes(40).collect::<Vec<_>>());
    guest.finish();
    landed(&small.image, holes(40));
}

#[test]
fn a_pause_leaves_what_is_held_and_nothing_is_tried_meanwhile() {
    let Some((small, mut guest)) = full(true, 20) else {
        return;
    };
    let start = Instant::now();
    let session = guest.session.as_ref().unwrap();
    session.connection.set_vring_enable(0, false).unwrap();
    session.connection.get_features().unwrap();
    assert!(start.elapsed() < PROMPT);
    small.make_room();
    let retries = guest.stats()["held_retries"].clone();
    ask(&guest.control, &Request::Retry {});
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(guest.stats()["held_retries"], retries);
    guest.nothing();
    let session = guest.session.as_ref().unwrap();
    session.connection.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    guest.finish();
    landed(&small.image, holes(20));
}

#[test]
fn a_ring_that_is_stopped_and_started_goes_on_with_what_it_held() {
    let Some((small, mut guest)) = full(true, 20) else {
        return;
    };
    let start = Instant::now();
    let mut session = guest.session.take().unwrap();
    session.stop(1).unwrap();
    assert!(start.elapsed() < PROMPT);
    guest.nothing();
    guest.wait_held(0);
    session
        .start(&guest.memory, &[guest.driver.ring()])
        .unwrap();
    guest.session = Some(session);
    guest.wait_held(20);
    small.make_room();
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    guest.finish();
    landed(&small.image, holes(20));
}

#[test]
fn without_a_record_an_end_answers_what_is_held() {
    type End = fn(&Guest);
    let pause: End = |guest| {
        let connection = &guest.session.as_ref().unwrap().connection;
        connection.set_vring_enable(0, false).unwrap();
        connection.get_features().unwrap();
    };
    let stop: End = |guest| {
        let connection = &guest.session.as_ref().unwrap().connection;
        connection.get_vring_base(0).unwrap();
    };
    let term: End = |guest| guest.daemon().signal(libc::SIGTERM).unwrap();
    for end in [pause, stop, term] {
        let Some(small) = Small::new() else { return };
        let mut guest = Guest::new(&small.image, false, &[]);
        small.fill();
        guest.write(holes(20));
        guest.wait_held(20);
        let start = Instant::now();
        end(&guest);
        guest.end(20, status::IOERR);
        assert!(start.elapsed() < PROMPT);
        guest
            .daemon()
            .wait_stderr(|line| line.contains("held requests are tried once more"))
            .unwrap();
    }
}

#[test]
fn an_upgrade_takes_along_what_is_held_and_what_was_chosen() {
    let Some(small) = Small::new() else { return };
    let mut guest = Guest::new(&small.image, true, &["--on-enospc", "report"]);
    let choose = |enospc| Request::OnError {
        enospc,
        io_error: None,
    };
    ask(&guest.control, &choose(Some(OnError::Hold)));
    small.fill();
    guest.write(holes(20));
    guest.wait_held(20);
    guest.daemon().signal(libc::SIGUSR2).unwrap();
    guest
        .daemon()
        .wait_stderr(|line| line.contains("taken over after"))
        .unwrap();
    guest.attach(true);
    guest.wait_held(20);
    let now = ask(&guest.control, &choose(None));
    assert_eq!(now["on_enospc"], "hold");
    small.make_room();
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    guest.finish();
    landed(&small.image, holes(20));
}

#[test]
fn a_state_is_not_saved_while_requests_are_held() {
    let Some(small) = Small::new() else { return };
    let mut guest = Guest::new(&small.image, true, &[]);
    let is_saved = |session: &Session| {
        let (_reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let fds = [writer.as_raw_fd()];
        let connection = &session.connection;
        let answer = connection.ask(SET_DEVICE_STATE_FD, &[0; 8], &fds).unwrap();
        answer.u64_at(0) & 0xff == 0
    };
    small.fill();
    guest.write(holes(20));
    guest.wait_held(20);
    let mut session = guest.session.take().unwrap();
    session.stop(1).unwrap();
    assert!(!is_saved(&session));
    guest
        .daemon()
        .wait_stderr(|line| line.contains("requests are held, and would be lost with the record"))
        .unwrap();
    small.make_room();
    session
        .start(&guest.memory, &[guest.driver.ring()])
        .unwrap();
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    session.stop(1).unwrap();
    assert!(is_saved(&session));
    guest.session = Some(session);
    guest.finish();
}

/// Whoever resets does not ask for it, so it may not be kept.
#[test]
fn a_reset_answers_what_is_held() {
    let Some((_small, mut guest)) = full(true, 20) else {
        return;
    };
    let start = Instant::now();
    let session = guest.session.as_mut().unwrap();
    session.reset_device().unwrap();
    session.connection.get_features().unwrap();
    assert!(start.elapsed() < PROMPT);
    guest.end(20, status::IOERR);
    guest.wait_held(0);
    guest.finish();
}

#[test]
fn a_disk_that_is_held_still_tries_nothing_again() {
    let Some((small, mut guest)) = full(true, 20) else {
        return;
    };
    let retries = hold_still(&guest, true);
    small.make_room();
    ask(&guest.control, &Request::Retry {});
    // Longer than the longest time between two tries.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(guest.stats()["held_retries"], retries);
    guest.nothing();
    ask(&guest.control, &Request::Resume { hold: None });
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    guest.finish();
    landed(&small.image, holes(20));
}

/// An end does not wait for a disk that is held still.
#[test]
fn without_a_record_a_disk_that_is_held_still_answers_at_an_end() {
    let Some((_small, mut guest)) = full(false, 20) else {
        return;
    };
    let retries = hold_still(&guest, false);
    let start = Instant::now();
    let connection = &guest.session.as_ref().unwrap().connection;
    connection.get_vring_base(0).unwrap();
    assert!(start.elapsed() < PROMPT);
    guest.end(20, status::IOERR);
    assert_eq!(guest.stats()["held_retries"], retries);
    guest.finish();
}

/// What a ring found in its record was not begun, and stays there.
#[test]
fn a_ring_that_started_while_the_disk_is_held_still_ends_at_once() {
    let Some((small, mut guest)) = full(true, 20) else {
        return;
    };
    let mut session = guest.session.take().unwrap();
    session.stop(1).unwrap();
    small.make_room();
    hold_still(&guest, false);
    for _ in 0..2 {
        session
            .start(&guest.memory, &[guest.driver.ring()])
            .unwrap();
        let start = Instant::now();
        session.stop(1).unwrap();
        assert!(start.elapsed() < PROMPT);
    }
    guest.nothing();
    ask(&guest.control, &Request::Resume { hold: None });
    session
        .start(&guest.memory, &[guest.driver.ring()])
        .unwrap();
    assert_eq!(guest.end(20, status::OK), holes(20).collect::<Vec<_>>());
    guest.session = Some(session);
    guest.finish();
    landed(&small.image, holes(20));
}
