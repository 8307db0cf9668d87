//! Limits that several processes have together.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use front_end::Daemon;
use tempfile::TempDir;

use crate::rig::{self, Guest, real};

const RATE: u64 = 3000;
const DEPTH: u64 = 16;

/// The first process of a group.
fn member(group: &Path, limit: &[&str]) -> (Daemon, TempDir) {
    let folder = rig::folder();
    let image = rig::image(folder.path());
    let daemon = again(folder.path(), &image, group, limit);
    (daemon, folder)
}

fn again(folder: &Path, image: &Path, group: &Path, limit: &[&str]) -> Daemon {
    let mut arguments = vec!["--limit-group", group.to_str().unwrap()];
    arguments.extend(limit);
    rig::start(folder, image, &arguments)
}

/// What each of three members has used in some seconds, and the seconds. The
/// third one, if it is `killed`, lives for a second at a time.
fn use_together(killed: bool) -> (Vec<u64>, f64) {
    let folder = rig::folder();
    let group = folder.path().join("group");
    let limit = format!("iops={RATE}");
    let limit = ["--limit", limit.as_str()];
    let begin = Barrier::new(3);
    let outcomes: Vec<(u64, Instant, Instant)> = thread::scope(|scope| {
        let members: Vec<_> = (0..3)
            .map(|number| {
                let (group, begin) = (&group, &begin);
                scope.spawn(move || {
                    let (mut daemon, folder) = member(group, &limit);
                    let image = folder.path().join("image");
                    // Who has more queues has no more of the limit.
                    let queues = [1, 4, 1][number];
                    let mut guest = Guest::new(daemon.socket(), queues, DEPTH).unwrap();
                    guest.go_on(Duration::from_millis(100)).unwrap();
                    begin.wait();
                    guest.go_on(Duration::from_millis(300)).unwrap();
                    let start = Instant::now();
                    let mut ended = 0;
                    while start.elapsed() < Duration::from_secs(4) {
                        ended += guest.go_on(Duration::from_secs(1)).unwrap();
                        if killed && number == 2 {
                            daemon.kill().unwrap();
                            drop(guest);
                            daemon = again(folder.path(), &image, group, &limit);
                            guest = Guest::new(daemon.socket(), 1, DEPTH).unwrap();
                        }
                    }
                    (ended, start, Instant::now())
                })
            })
            .collect();
        members
            .into_iter()
            .map(|member| member.join().unwrap())
            .collect()
    });
    // From when the first one began to when the last one ended.
    let start = outcomes.iter().map(|(_, start, _)| *start).min().unwrap();
    let end = outcomes.iter().map(|(_, _, end)| *end).max().unwrap();
    let each = outcomes.iter().map(|(ended, ..)| *ended).collect();
    (each, (end - start).as_secs_f64())
}

#[test]
fn three_processes_share_a_limit() {
    for _ in 0..5 {
        let (each, seconds) = use_together(false);
        let all: u64 = each.iter().sum();
        eprintln!("{each:?} in {seconds:.3} s");
        let allowed = real(RATE) * seconds;
        assert!(real(all) <= allowed * 1.02, "{all} of {allowed}");
        let even = each.iter().all(|part| part.abs_diff(all / 3) <= all / 30);
        if even && real(all) >= allowed * 0.98 {
            return;
        }
    }
    panic!("the shares are not even, or not all");
}

#[test]
fn a_member_that_is_killed_every_second_leaves_nothing_behind() {
    for _ in 0..5 {
        let (each, seconds) = use_together(true);
        let all: u64 = each.iter().sum();
        eprintln!("{each:?} in {seconds:.3} s, the third one killed");
        let allowed = real(RATE) * seconds;
        assert!(real(all) <= allowed * 1.02, "{all} of {allowed}");
        let even = each[0].abs_diff(each[1]) <= each[0] / 10;
        // It had its share, in the time that it lived.
        if even && each[2] > all / 6 && real(all) >= allowed * 0.98 {
            return;
        }
    }
    panic!("the survivors' shares are not even, or not all");
}

/// As a migration on one host moves it: to a process that serves the same
/// guest under the same limit.
#[test]
fn a_guest_that_moves_to_another_process_keeps_to_the_limit() {
    let folder = rig::folder();
    let group = folder.path().join("group");
    let (source, _source) = member(&group, &["--limit", "iops=1000"]);
    let (destination, _destination) = member(&group, &[]);
    let mut guest = Guest::new(source.socket(), 1, DEPTH).unwrap();
    guest.go_on(Duration::from_millis(300)).unwrap();
    let start = Instant::now();
    let mut ended = guest.go_on(Duration::from_millis(500)).unwrap();
    guest.session.stop(1).unwrap();
    let mut guest = Guest::new(destination.socket(), 1, DEPTH).unwrap();
    let moved = guest.go_on(Duration::from_millis(500)).unwrap();
    assert!(moved > 100, "{moved}");
    ended += moved;
    // And what may be saved up while it moves.
    let allowed = 1000.0 * start.elapsed().as_secs_f64();
    assert!(real(ended) <= allowed * 1.02 + 2.0, "{ended} of {allowed}");
}

#[test]
fn what_one_member_sets_holds_for_all_soon() {
    let folder = rig::folder();
    let group = folder.path().join("group");
    let (one, _one) = member(&group, &["--limit", "iops=1"]);
    let (other, _other) = member(&group, &[]);
    let mut guest = Guest::new(other.socket(), 1, DEPTH).unwrap();
    guest.go_on(Duration::from_millis(500)).unwrap();
    let start = Instant::now();
    let ended = guest.go_on(Duration::from_secs(1)).unwrap();
    assert!(
        real(ended) <= start.elapsed().as_secs_f64() + 2.0,
        "{ended}"
    );
    let control = one.socket().with_file_name("control");
    let output = std::process::Command::new(::rig::extentctl!())
        .arg("--control-path")
        .arg(&control)
        .args(["--json", "limits", "--iops", "2000"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["group"], group.to_str().unwrap());
    guest.go_on(Duration::from_millis(200)).unwrap();
    let start = Instant::now();
    let ended = guest.go_on(Duration::from_secs(1)).unwrap();
    let allowed = 2000.0 * start.elapsed().as_secs_f64();
    // And what may be saved up.
    assert!(real(ended) <= allowed * 1.02 + 84.0, "{ended}");
    assert!(ended > 500, "{ended}");
}

/// What others do to the file ends nothing, and holds nobody for ever.
#[test]
fn a_file_that_others_spoil_holds_nobody_for_ever() {
    let folder = rig::folder();
    let group = folder.path().join("group");
    let (daemon, _folder) = member(&group, &["--limit", "iops=1000"]);
    let mut guest = Guest::new(daemon.socket(), 1, DEPTH).unwrap();
    let file = OpenOptions::new().write(true).open(&group).unwrap();
    // Times in the far future, in all places but those of limits.
    let start = Instant::now();
    guest.go_on(Duration::from_millis(100)).unwrap();
    for place in 0..6 {
        file.write_all_at(&[0xff; 8], 64 + place * 64 + 16).unwrap();
    }
    let before = guest.ended[0];
    while guest.ended[0] < before + 50 {
        guest.go_on(Duration::from_millis(10)).unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            guest.ended
        );
    }
    // Any limits at all.
    file.write_all_at(&[0xff; 4088], 8).unwrap();
    file.write_all_at(&[0; 4096], 0).unwrap();
    guest.go_on(Duration::from_millis(300)).unwrap();
    // What it takes to read that is lost, and limits stay as they were known.
    file.write_all_at(&1500_u64.to_ne_bytes(), 64).unwrap();
    file.write_all_at(&9_u64.to_ne_bytes(), 8).unwrap();
    guest.go_on(Duration::from_millis(300)).unwrap();
    file.set_len(0).unwrap();
    guest.go_on(Duration::from_millis(300)).unwrap();
    daemon
        .wait_stderr(|line| line.contains("--limit-group cannot be reached any more"))
        .unwrap();
    let time = Instant::now();
    let ended = guest.go_on(Duration::from_secs(1)).unwrap();
    let allowed = 1500.0 * time.elapsed().as_secs_f64();
    assert!(
        real(ended) <= allowed * 1.02 + 63.0 && ended > 300,
        "{ended}"
    );
    drop(guest);
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn a_hand_over_keeps_the_limits_of_the_group() {
    let folder = rig::folder();
    let group = folder.path().join("group");
    let (one, _one) = member(&group, &["--limit", "iops=1000"]);
    let (other, _other) = member(&group, &["--limit", "iops=77"]);
    one.signal(libc::SIGUSR2).unwrap();
    one.wait_stderr(|line| line.contains("taken over after"))
        .unwrap();
    for daemon in [&one, &other] {
        let info = ::rig::operator::info(&daemon.socket().with_file_name("control"));
        assert_eq!(info["limits"]["limits"]["iops"], 77);
        assert_eq!(info["sandbox"]["denied_calls"], 0);
    }
}
