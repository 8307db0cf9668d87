//! Leases on real file systems: taken, broken, given back, taken again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mapping::lease::{Lease, LeaseError, Mode};
use rig::file_systems::{EXT4, Mounted, XFS};
use rig::files::{fallocate, punch};

fn open(path: &Path) -> Arc<File> {
    Arc::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap(),
    )
}

/// Waits for the event of a break; whether it came.
fn noticed(lease: &Lease, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: lease.event().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(timeout.as_millis()).unwrap();
    // SAFETY: one live record.
    #[allow(unsafe_code)]
    unsafe {
        libc::poll(&raw mut poll, 1, millis) == 1
    }
}

const LONG: Duration = Duration::from_secs(10);

fn break_and_return(path: &Path) {
    let file = open(path);
    let lease = Lease::new(Arc::clone(&file), Mode::Exclusive).unwrap();
    assert!(!lease.is_held() && lease.retry_at().is_none());
    take(&lease);
    assert!(lease.is_held());
    assert!(!noticed(&lease, Duration::from_millis(1)));
    // Several rounds: giving back resets the signal, which the next take must set again.
    for round in 0..3 {
        let released = Arc::new(AtomicBool::new(false));
        let intruder = std::thread::spawn({
            let (path, released) = (path.to_owned(), Arc::clone(&released));
            move || {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                assert!(
                    released.load(Ordering::SeqCst),
                    "let in before the lease was given back"
                );
                drop(file);
            }
        });
        assert!(noticed(&lease, LONG), "round {round}: no event");
        assert!(lease.broken());
        assert!(!lease.is_held());
        released.store(true, Ordering::SeqCst);
        lease.release();
        intruder.join().unwrap();
        assert!(lease.retry_at().is_some());
        take(&lease);
        assert!(lease.is_held() && lease.retry_at().is_none());
    }
    // One who does not wait is turned away, and the break is pending until the lease is given back.
    let turned_away = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    assert_eq!(
        turned_away.unwrap_err().raw_os_error(),
        Some(libc::EWOULDBLOCK)
    );
    assert!(noticed(&lease, LONG));
    assert!(lease.broken());
    take(&lease);
    assert!(
        lease.is_held() && !lease.broken(),
        "a pending break is not a lease"
    );
    // Renaming and unlinking do not disturb it.
    let renamed = PathBuf::from(format!("{}.renamed", path.display()));
    std::fs::rename(path, &renamed).unwrap();
    std::fs::remove_file(&renamed).unwrap();
    assert!(lease.is_held());
}

/// Takes a lease that nobody else prevents for long: a child that another test is starting has all our
/// descriptors for a moment.
fn take(lease: &Lease) {
    let start = Instant::now();
    while let Err(error) = lease.take() {
        assert!(
            matches!(error, LeaseError::InUse) && start.elapsed() < Duration::from_secs(60),
            "{error}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_broken_lease_is_noticed_given_back_and_taken_again() {
    for made in [EXT4, XFS] {
        let Some(fs) = Mounted::new(made) else {
            continue;
        };
        drop(fs.create("image"));
        break_and_return(&fs.path("image"));
    }
}

#[test]
fn a_file_that_somebody_has_open_gives_no_lease_and_the_delay_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"x").unwrap();
    let other = File::open(&path).unwrap();
    let lease = Lease::new(open(&path), Mode::Exclusive).unwrap();
    let mut delays = Vec::new();
    for _ in 0..3 {
        let before = Instant::now();
        assert!(matches!(lease.take(), Err(LeaseError::InUse)));
        delays.push(lease.retry_at().unwrap() - before);
    }
    assert!(delays[1] > delays[0] && delays[2] > delays[1], "{delays:?}");
    drop(other);
    take(&lease);
}

#[test]
fn a_read_only_lease_lets_readers_in_and_notices_writers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"x").unwrap();
    let lease = Lease::new(Arc::new(File::open(&path).unwrap()), Mode::ReadOnly).unwrap();
    take(&lease);
    drop(File::open(&path).unwrap());
    assert!(lease.is_held() && !noticed(&lease, Duration::from_millis(5)));
    let turned_away = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path);
    assert!(turned_away.is_err());
    assert!(noticed(&lease, LONG) && lease.broken());
    // A descriptor open for writing cannot hold it.
    drop(lease);
    let lease = Lease::new(open(&path), Mode::ReadOnly).unwrap();
    assert!(lease.take().is_err());
}

#[test]
fn dropping_a_lease_lets_waiters_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"x").unwrap();
    let file = open(&path);
    let lease = Lease::new(Arc::clone(&file), Mode::Exclusive).unwrap();
    take(&lease);
    let start = Instant::now();
    let waiter =
        std::thread::spawn(move || drop(OpenOptions::new().write(true).open(path).unwrap()));
    assert!(noticed(&lease, LONG));
    drop(lease);
    waiter.join().unwrap();
    assert!(
        start.elapsed() < LONG,
        "the file is still open, but not leased"
    );
}

#[test]
fn our_own_changes_through_the_same_descriptor_do_not_break_it() {
    let Some(fs) = Mounted::new(EXT4) else { return };
    let file = Arc::new(fs.create("image"));
    let lease = Lease::new(Arc::clone(&file), Mode::Exclusive).unwrap();
    take(&lease);
    fallocate(&file, 0, 0, 1 << 20).unwrap();
    punch(&file, 4096, 4096);
    file.set_len(2 << 20).unwrap();
    assert!(lease.is_held() && !noticed(&lease, Duration::from_millis(5)));
}
