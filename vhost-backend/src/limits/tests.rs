use std::os::unix::fs::FileExt;

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
