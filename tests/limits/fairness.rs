//! Queues share a limit evenly, on one thread and on several.

use std::time::Duration;

use crate::rig::{Disk, Guest};

fn shares(threads: &str, limit: &str) {
    let disk = Disk::new(&["--threads", threads, "--limit", limit]);
    let mut guest = Guest::new(disk.socket(), 4, 8).unwrap();
    guest.go_on(Duration::from_millis(300)).unwrap();
    let before = guest.ended.clone();
    guest.go_on(Duration::from_secs(2)).unwrap();
    let each: Vec<u64> = guest
        .ended
        .iter()
        .zip(before)
        .map(|(now, then)| now - then)
        .collect();
    let all: u64 = each.iter().sum();
    eprintln!("{limit}, {threads} threads: {each:?}");
    for part in &each {
        assert!(part.abs_diff(all / 4) <= all / 4 / 4, "{each:?}");
    }
}

#[test]
fn queues_of_one_thread_share_a_limit() {
    shares("1", "iops=500");
    shares("1", "bytes=20000000");
}

#[test]
fn queues_of_several_threads_share_a_limit() {
    shares("2", "iops=400");
    shares("4", "iops=1000");
}
