//! Two clones of a file on real file systems: what is told to differ, against every byte of both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use mapping::difference::{Comparison, Difference};
use rig::file_systems::{BTRFS, BTRFS_COMPRESSED, EXT4, Made, Mounted, XFS, XFS_1K};
use rig::files::{create, fallocate, open_direct, pattern, punch, read_all, reflink, write_direct};
use rig::random::Random;

const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 4096;

fn clone(mounted: &Mounted, from: &str, to: &str) -> Arc<File> {
    let source = File::open(mounted.path(from)).unwrap();
    let clone = File::create_new(mounted.path(to)).unwrap();
    reflink(&source, &clone).unwrap();
    clone.sync_all().unwrap();
    Arc::new(File::open(mounted.path(to)).unwrap())
}

/// Bytes that a file system which compresses makes less of.
fn content(made: Made, seed: u64, offset: u64, len: usize) -> Vec<u8> {
    if made.name == BTRFS_COMPRESSED.name {
        return seed.to_le_bytes().repeat(len.div_ceil(8))[..len].to_vec();
    }
    pattern(seed, offset, len)
}

fn differences(from: &Arc<File>, to: &Arc<File>) -> Vec<Difference> {
    let comparison = Comparison::new(from, to).unwrap();
    comparison.differences().map(Result::unwrap).collect()
}

fn at(bytes: &[u8], range: Range<u64>) -> &[u8] {
    let [start, end] = [range.start, range.end].map(|at| {
        let at = usize::try_from(at).unwrap();
        at.min(bytes.len())
    });
    &bytes[start..end]
}

/// The older content, with what is told taken from the newer one, is the newer one.
fn assert_enough(from: &Arc<File>, to: &Arc<File>, told: &[Difference]) {
    let (mut old, new) = (read_all(from), read_all(to));
    old.resize(new.len(), 0);
    for one in told {
        let range = one.start..one.end().min(u64::try_from(new.len()).unwrap());
        let changed = at(&new, range.clone());
        assert!(
            !one.zeros || changed.iter().all(|&byte| byte == 0),
            "{one:?} are no zeros"
        );
        let start = usize::try_from(range.start).unwrap().min(old.len());
        old[start..start + changed.len()].copy_from_slice(changed);
    }
    let missed = old.iter().zip(&new).position(|(one, other)| one != other);
    assert_eq!(missed, None, "a byte that differs was not told");
}

/// One change of the kinds that a guest, an operator or the host may make.
fn change(mounted: &Mounted, random: &mut Random, direct: &File, buffered: &File) {
    let size = direct.metadata().unwrap().len();
    let start = random.number(size / BLOCK) * BLOCK;
    let len = (random.number(24) + 1) * BLOCK;
    let len = len.min(size - start);
    let len_here = usize::try_from(len).unwrap();
    let bytes = content(mounted.made, random.number(1 << 40), start, len_here);
    match random.number(9) {
        0..=3 => write_direct(direct, &bytes, usize::try_from(start).unwrap()),
        4 => buffered.write_all_at(&bytes[..777], start + 100).unwrap(),
        5 => punch(direct, start, len),
        6 => fallocate(
            direct,
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            start,
            len,
        )
        .unwrap_or_else(|_| punch(direct, start, len)),
        7 => {
            let new = SIZE - random.number(64) * 512;
            buffered.set_len(new).unwrap();
            buffered.set_len(SIZE).unwrap();
        }
        _ if mounted.made.name.starts_with("xfs") => {
            let done = Command::new("xfs_fsr").arg(mounted.path("image")).output();
            assert!(done.is_ok_and(|done| done.status.success()));
        }
        _ => buffered.sync_all().unwrap(),
    }
}

fn rounds(made: Made) {
    let Some(mounted) = Mounted::new(made) else {
        return;
    };
    let mut random = Random::seeded(20);
    let name = mounted.path("image");
    let image = create(&name, SIZE);
    let half = usize::try_from(SIZE / 2).unwrap();
    image.write_all_at(&content(made, 1, 0, half), 0).unwrap();
    // btrfs does not compress what is written out after a file had a place reserved.
    image.sync_all().unwrap();
    fallocate(&image, 0, SIZE / 2, SIZE / 4).unwrap();
    image.sync_all().unwrap();
    let direct = open_direct(&name);
    let buffered = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&name)
        .unwrap();
    let mut last = clone(&mounted, "image", "snapshot-0");
    for round in 1..=8 {
        for _ in 0..40 {
            change(&mounted, &mut random, &direct, &buffered);
        }
        let next = clone(&mounted, "image", &format!("snapshot-{round}"));
        let told = differences(&last, &next);
        assert_enough(&last, &next, &told);
        // Backwards as well: a restore of what was before.
        assert_enough(&next, &last, &differences(&next, &last));
        let bytes: u64 = told.iter().map(|one| one.len).sum();
        assert!((1..=SIZE).contains(&bytes), "{bytes}");
        let alike = differences(&next, &next).is_empty();
        assert_eq!(alike, made.name != BTRFS_COMPRESSED.name);
        last = next;
    }
}

#[test]
fn nothing_is_missed_on_xfs() {
    rounds(XFS);
}

#[test]
fn nothing_is_missed_on_xfs_with_small_blocks() {
    rounds(XFS_1K);
}

#[test]
fn nothing_is_missed_on_btrfs() {
    rounds(BTRFS);
}

#[test]
fn nothing_is_missed_where_extents_are_compressed() {
    rounds(BTRFS_COMPRESSED);
}

#[test]
fn a_block_is_told_as_a_block_and_a_longer_file_to_its_end() {
    let Some(mounted) = Mounted::new(XFS) else {
        return;
    };
    let image = create(mounted.path("image"), SIZE);
    image.write_all_at(&pattern(1, 0, 1 << 20), 0).unwrap();
    let before = clone(&mounted, "image", "before");
    let direct = open_direct(mounted.path("image"));
    write_direct(&direct, &pattern(2, 8192, 4096), 8192);
    punch(&direct, 65536, 4096);
    image.set_len(SIZE + 1024).unwrap();
    image.write_all_at(b"end", SIZE + 1000).unwrap();
    let after = clone(&mounted, "image", "after");
    let told = differences(&before, &after);
    let expected = [
        (8192, 4096, false),
        (65536, 4096, true),
        (SIZE, 1024, false),
    ];
    let told: Vec<_> = told
        .iter()
        .map(|one| (one.start, one.len, one.zeros))
        .collect();
    assert_eq!(told, expected);
    assert_enough(&before, &after, &differences(&before, &after));
    // The other way the end of the shorter one is zeros.
    let back = differences(&after, &before);
    assert_eq!(
        back.last().map(|one| (one.start, one.len, one.zeros)),
        Some((SIZE, 1024, true))
    );
}

#[test]
fn files_of_different_file_systems_differ_wherever_there_are_data() {
    let (Some(one), Some(other)) = (Mounted::new(XFS), Mounted::new(EXT4)) else {
        return;
    };
    let files = [&one, &other].map(|mounted| {
        let file = create(mounted.path("image"), SIZE);
        file.write_all_at(&pattern(1, 4096, 8192), 4096).unwrap();
        Arc::new(file)
    });
    let comparison = Comparison::new(&files[0], &files[1]).unwrap();
    assert!(!comparison.one_disk());
    let told: Vec<_> = comparison.differences().map(Result::unwrap).collect();
    assert_eq!(
        told,
        [Difference {
            start: 4096,
            len: 8192,
            zeros: false
        }]
    );
}
