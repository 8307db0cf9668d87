//! A limit holds up no end: what was not fetched is not in flight.

use std::time::{Duration, Instant};

use front_end::Daemon;

use crate::rig::{Disk, Guest};

/// One request is served, and the next one waits for more than an hour.
const HELD: [&str; 2] = ["--limit", "bytes=1"];
/// Far less than that, and far more than an answer takes.
const PROMPT: Duration = Duration::from_secs(5);

fn held(disk: &Disk) -> Guest {
    let mut guest = Guest::new(disk.socket(), 2, 8).unwrap();
    let mut waits = 0;
    // Also the one that the burst brings is over.
    while waits < 20 {
        let ended = guest.go_on(Duration::from_millis(10)).unwrap();
        waits = if ended == 0 { waits + 1 } else { 0 };
    }
    guest
}

#[test]
fn rings_pause_and_stop_while_their_requests_wait() {
    let disk = Disk::new(&HELD);
    let guest = held(&disk);
    let start = Instant::now();
    let connection = &guest.session.connection;
    connection.set_vring_enable(0, false).unwrap();
    connection.set_vring_enable(0, true).unwrap();
    let bases = guest.session.stop(2).unwrap();
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    // What was served, and not what waits.
    let ended: Vec<u64> = bases.iter().map(|base| u64::from(*base)).collect();
    assert_eq!(ended, guest.ended);
}

#[test]
fn a_front_end_goes_and_the_next_one_finds_the_same_limit() {
    let disk = Disk::new(&HELD);
    let served: u64 = held(&disk).ended.iter().sum();
    assert!(served > 0);
    let start = Instant::now();
    let mut guest = Guest::new(disk.socket(), 2, 8).unwrap();
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    assert_eq!(guest.go_on(Duration::from_millis(300)).unwrap(), 0);
}

#[test]
fn sigterm_ends_the_process_while_requests_wait() {
    let disk = Disk::new(&HELD);
    let _guest = held(&disk);
    let start = Instant::now();
    assert!(disk.daemon.terminate().unwrap().success());
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
}

/// As by a version that has other limits.
#[test]
fn limits_that_are_not_understood_are_told() {
    let folder = crate::rig::folder();
    let image = crate::rig::image(folder.path());
    let socket = folder.path().join("socket");
    let handed = ("EXTENTD_HANDOVER_LIMITS", "iops=5,speed=fast");
    let arguments = ["--limit", "iops=1000"];
    let daemon = Daemon::start_with(&::rig::extentd!(), &socket, &image, &arguments, &[handed]);
    let said = |line: &str| line.contains("the limits were not handed over: 'speed' is no limit");
    daemon.unwrap().wait_stderr(said).unwrap();
}

#[test]
fn a_hand_over_takes_the_limits_along_as_they_are_by_then() {
    let disk = Disk::new(&["--limit", "iops=1000"]);
    let mut guest = Guest::new(disk.socket(), 2, 8).unwrap();
    disk.extentctl(&["limits", "--iops", "300", "--burst-bytes", "5M"]);
    let limits = disk.extentctl(&["limits"]);
    guest.go_on(Duration::from_millis(100)).unwrap();
    let start = Instant::now();
    disk.daemon.signal(libc::SIGUSR2).unwrap();
    disk.daemon
        .wait_stderr(|line| line.contains("taken over after"))
        .unwrap();
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    assert_eq!(disk.extentctl(&["limits"]), limits);
    drop(guest);
    let mut guest = Guest::new(disk.socket(), 2, 8).unwrap();
    guest.go_on(Duration::from_millis(300)).unwrap();
    let time = Instant::now();
    let ended = guest.go_on(Duration::from_secs(1)).unwrap();
    let allowed = 300.0 * time.elapsed().as_secs_f64();
    assert!(crate::rig::real(ended) <= allowed * 1.02 + 13.0, "{ended}");
}
