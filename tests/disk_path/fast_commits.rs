//! ext4 with fast commits: a sync that finds another's commit under way may be
//! content with it, and send no flush of its own. Who is told that a FLUSH has
//! ended must have had one all the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rig::file_systems::{EXT4, Made, Mounted};

use crate::barriers::{Cache, Flushing, WRITES, flushes};
use crate::disturb::Stopper;

const FAST: Made = Made {
    name: "ext4-fast-commit",
    mkfs: &["mkfs.ext4", "-q", "-F", "-O", "fast_commit"],
    ..EXT4
};
/// How often the guest makes a few writes stable.
const ROUNDS: usize = 20;

/// How many of the file system's commits were fast.
fn fast_commits(host: &Mounted) -> usize {
    let name = host.device().rsplit('/').next().unwrap();
    let text = std::fs::read_to_string(format!("/proc/fs/ext4/{name}/fc_info")).unwrap();
    let count = text.lines().find_map(|line| line.strip_suffix(" commits"));
    count.unwrap().trim().parse().unwrap()
}

/// Makes small changes to a file stable, again and again; counts them.
fn sync_often(file: &File, stop: &AtomicBool, count: &AtomicUsize) {
    let mut end = 0;
    while !stop.load(Ordering::Relaxed) {
        file.write_all_at(&[1; 4096], end).unwrap();
        file.sync_all().unwrap();
        end = (end + 4096) % (4 << 20);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn every_flush_is_one(cache: Cache) {
    let Some(mut flushing) = Flushing::start(FAST, cache, "") else {
        return;
    };
    let others = [0, 1].map(|number| flushing.host.create(&format!("other-{number}")));
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        for other in &others {
            scope.spawn(|| sync_often(other, &stop, &count));
        }
        let before = flushes(&flushing.host);
        for round in 0..ROUNDS {
            assert_eq!(flushing.unflushed(round % 2 == 0), 0);
        }
        assert!(flushes(&flushing.host) - before >= ROUNDS * WRITES);
    });
    let fast = fast_commits(&flushing.host);
    eprintln!(
        "{fast} fast commits, {} syncs of others",
        count.into_inner()
    );
    assert!(fast > ROUNDS);
    // Those who have synced so much are silent now.
    for round in 0..2 {
        assert_eq!(flushing.unflushed(round == 0), 0);
    }
    assert!(flushing.served.info().on_disk);
}

#[test]
fn every_flush_is_one_of_the_disk_while_others_commit_fast() {
    every_flush_is_one(Cache::Back);
}

#[test]
fn every_write_is_stable_when_it_ends_while_others_commit_fast() {
    every_flush_is_one(Cache::Through);
}
