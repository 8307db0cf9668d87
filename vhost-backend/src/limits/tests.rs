use std::os::unix::fs::FileExt;

use super::gate::{Gate, Waiter};
use super::*;

const IOPS: LimitKey = LimitKey::Rate(Limited::Iops);

fn file() -> File {
    tempfile::tempfile_in("/dev/shm").unwrap()
}

fn member(file: &File) -> Limits {
    Limits::in_group(file.try_clone().unwrap()).unwrap()
}

#[test]
fn limits_are_changed_one_by_one_and_lifted() {
    let limits = Limits::default();
    assert!(!limits.on.load(Ordering::Relaxed));
    let burst = LimitKey::Burst(Limited::ReadBytes);
    limits.change(&[(IOPS, 7), (burst, 9)]);
    limits.change(&[(LimitKey::Rate(Limited::WriteBytes), 8)]);
    let values = limits.values();
    assert_eq!(values.get(IOPS), 7);
    assert_eq!(values.get(burst), 9);
    assert_eq!(values.get(LimitKey::Rate(Limited::WriteBytes)), 8);
    assert!(limits.on.load(Ordering::Relaxed));
    limits.change(&[(IOPS, 0), (LimitKey::Rate(Limited::WriteBytes), 0)]);
    assert!(!limits.on.load(Ordering::Relaxed));
}

#[test]
fn members_see_what_one_of_them_changes() {
    let file = file();
    let (one, other) = (member(&file), member(&file));
    one.change(&[(IOPS, 123)]);
    assert_eq!(other.values().get(IOPS), 123);
    assert_eq!(member(&file).values().get(IOPS), 123);
    other.change(&[(IOPS, 0)]);
    assert_eq!(one.values().get(IOPS), 0);
}

#[test]
fn a_file_that_is_no_groups_is_refused() {
    let refusal = |file: File| Limits::in_group(file).unwrap_err().to_string();
    let short = file();
    short.write_all_at(b"x", 0).unwrap();
    assert!(refusal(short).contains("no group's file"));
    let other = file();
    other.set_len(4096).unwrap();
    other.write_all_at(b"extlim\0\x02", 0).unwrap();
    assert!(refusal(other).contains("no group's file of this version"));
    let folder = File::open("/dev/shm").unwrap();
    assert!(refusal(folder).contains("no regular file"));
    let made_up = File::open("/proc/self/status").unwrap();
    assert!(refusal(made_up).contains("on a tmpfs"));
    let disk = tempfile::tempfile_in("/var/tmp").unwrap();
    assert!(refusal(disk).contains("on a tmpfs"));
    // A new file, and one of zeros.
    let zeros = file();
    zeros.set_len(4096).unwrap();
    member(&zeros);
}

#[test]
fn limits_go_on_when_the_file_is_truncated() {
    let file = file();
    let limits = member(&file);
    limits.change(&[(IOPS, 123)]);
    file.set_len(0).unwrap();
    assert_eq!(limits.values().get(IOPS), 123);
    assert!(limits.group().is_none());
    limits.change(&[(IOPS, 456)]);
    assert_eq!(limits.values().get(IOPS), 456);
}

#[test]
fn any_content_is_a_limit() {
    let file = file();
    let limits = member(&file);
    file.write_all_at(&[0xff; 4088], 8).unwrap();
    assert_eq!(limits.values().get(IOPS), bucket::MOST);
    let now = sys::monotonic_ns();
    for (index, bucket) in limits.buckets.iter().enumerate() {
        let due = bucket.open(limits.owner(index).unwrap(), now);
        assert!(due.err().unwrap_or(now) - now < 10_000_000_000, "{due:?}");
    }
}

#[test]
fn a_disk_is_held_once_all_workers_rest_and_not_if_one_does_not() {
    use std::time::Duration;

    let limits = Arc::new(Limits::default());
    let wakers = [0; 2].map(|_| Arc::new(EventFd::new(0).unwrap()));
    for waker in &wakers {
        limits.wake_by(Arc::clone(waker));
    }
    let long = Duration::from_secs(1000);
    let holds = |patience| {
        let limits = Arc::clone(&limits);
        std::thread::spawn(move || limits.hold(long, patience))
    };
    let late = holds(Duration::from_millis(10));
    assert!(matches!(late.join().unwrap(), Err(HoldError::Late(_))));
    assert_eq!((limits.held(), limits.held_for()), (None, None));
    assert!(!limits.on.load(Ordering::Relaxed));

    let held = holds(long);
    let mut gates = [0, 1].map(|worker| Gate::new(Arc::clone(&limits), worker));
    for (gate, waker) in gates.iter_mut().zip(&wakers) {
        // Woken when it begins, as it was twice by the one before.
        while !gate.is_held() {
            waker.read().unwrap();
            gate.begin_turn();
        }
        assert!(!gate.admits(&mut Waiter::default()));
        gate.rest();
        // That is counted once.
        gate.rest();
    }
    let number = held.join().unwrap().unwrap();
    assert!(matches!(limits.hold(long, long), Err(HoldError::Held(_))));
    let (so_long, left) = (limits.held_for().unwrap(), limits.held().unwrap());
    // The second was read a moment later.
    assert!(so_long > Duration::ZERO && so_long + left <= long);
    assert!(!limits.let_go_of(number + 1) && limits.held().is_some());
    assert!(limits.let_go_of(number) && !limits.let_go_of(number) && !limits.let_go());
    for gate in &mut gates {
        gate.begin_turn();
        assert!(!gate.is_held() && gate.admits(&mut Waiter::default()));
    }
}
