//! Those who share, move or exchange blocks of the image, with what is there
//! staying as it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use rig::files::{fallocate, reflink};
use rig::program::run;
use rig::random::Random;

use super::disturber::{Did, Storm};
use super::ioctls::{clone_range, dedupe_range, exchange_range, move_extent};
use super::{LEAST, MOST, STILL};

/// `FALLOC_FL_UNSHARE_RANGE`
const UNSHARE: libc::c_int = 0x40;
/// Copies of the image, or of parts of it, that are there at most.
const COPIES: usize = 3;
/// What ranges begin and end at: a multiple of every block here.
const GRAIN: usize = 4096;

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// A range within the first `bytes`, of at most 4 MiB.
fn range(random: &mut Random, bytes: usize) -> Range<u64> {
    let start = random.below(bytes / GRAIN);
    let most = (bytes / GRAIN - start).min(1024);
    let end = start + 1 + random.below(most);
    (start * GRAIN) as u64..(end * GRAIN) as u64
}

/// A new file, kept as it is from then on; the oldest is looked at and goes.
fn copy(storm: &Storm, fill: impl FnOnce(&File) -> io::Result<()>) -> Did {
    let mut copies = storm.copies.lock().unwrap();
    if copies.names.len() >= COPIES {
        let oldest = copies.names.remove(0);
        if let Some(spoilt) = copies.files.remove(&oldest) {
            storm.violated(spoilt);
        }
    }
    let name = storm.host.path(&format!("copy-{}", copies.made));
    copies.made += 1;
    // A full file system may not even have room for its inode.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&name)?;
    let filled = fill(&file);
    if filled.is_err() {
        std::fs::remove_file(&name)?;
        return filled;
    }
    copies.files.keep(name.clone());
    copies.names.push(name);
    Ok(())
}

/// Shares all of the image with a new file.
pub fn share(storm: &Storm, _: &mut Random) -> Did {
    copy(storm, |to| reflink(&File::open(&storm.image)?, to))
}

/// Shares all of it with a new file that goes at once: what is left of it is
/// what the file system prepared for writes to come.
pub fn share_briefly(storm: &Storm, _: &mut Random) -> Did {
    let name = storm.host.path("brief");
    let to = File::create(&name)?;
    let shared = File::open(&storm.image).and_then(|image| reflink(&image, &to));
    std::fs::remove_file(name)?;
    shared
}

/// Shares a part of it with a new file.
pub fn clone_out(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, LEAST);
    copy(storm, |to| {
        clone_range(&File::open(&storm.image)?, &range, to, 0)
    })
}

/// Replaces a part of it that never changes by blocks of another file with
/// the same content.
pub fn clone_in(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, STILL);
    clone_range(
        &File::open(storm.twin())?,
        &range,
        &open(&storm.image)?,
        range.start,
    )
}

/// The same by comparing, with descriptors that are open for reading.
pub fn dedupe(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, STILL);
    let (twin, image) = (File::open(storm.twin())?, File::open(&storm.image)?);
    match dedupe_range(&twin, &range, &image, range.start) {
        Ok(false) => {
            storm.violated("a comparison saw other bytes where nothing changes".to_owned());
            Ok(())
        }
        result => result.map(drop),
    }
}

/// The same with a copy of what changes: equal only where nothing was written
/// since.
pub fn dedupe_changing(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, LEAST);
    let copies = storm.copies.lock().unwrap();
    let copy = copies.names.first().ok_or(io::ErrorKind::NotFound)?;
    let (copy, image) = (File::open(copy)?, File::open(&storm.image)?);
    let end = range.end.min(copy.metadata()?.len());
    if range.start >= end {
        return Ok(());
    }
    dedupe_range(&copy, &(range.start..end), &image, range.start).map(drop)
}

/// Gives the image blocks of its own where others share them.
pub fn unshare(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, LEAST);
    let length = range.end - range.start;
    fallocate(&open(&storm.image)?, UNSHARE, range.start, length)
}

/// Has blocks allocated where there are none, also behind the end: what is
/// there goes on reading as zeros.
pub fn allocate(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, MOST);
    let length = range.end - range.start;
    let image = open(&storm.image)?;
    fallocate(&image, libc::FALLOC_FL_KEEP_SIZE, range.start, length)
}

/// Moves what the image holds to blocks of a new file, which gets the old ones
/// and goes.
pub fn move_blocks(storm: &Storm, random: &mut Random) -> Did {
    let name = storm.host.path("donor");
    let range = range(random, LEAST);
    let blocks = range.start / storm.block..range.end / storm.block;
    let moved = (|| {
        let donor = File::create_new(&name)?;
        fallocate(&donor, 0, range.start, range.end - range.start)?;
        move_extent(&open(&storm.image)?, &blocks, &donor)
    })();
    std::fs::remove_file(name)?;
    match moved? {
        0 => Err(io::ErrorKind::Other.into()),
        _ => Ok(()),
    }
}

/// Exchanges blocks with a file of the same content.
pub fn exchange(storm: &Storm, random: &mut Random) -> Did {
    let range = range(random, STILL);
    exchange_range(&open(&storm.image)?, &open(&storm.twin())?, &range)
}

/// With the file system's own tool. Either may end early where the file
/// changes, or leave it alone: what it has moved counts.
pub fn defragment(storm: &Storm, _: &mut Random) -> Did {
    let tool = if storm.host.is_ext4() {
        "e4defrag"
    } else {
        "xfs_fsr"
    };
    run(Command::new(tool).arg(&storm.image))
        .map(drop)
        .map_err(io::Error::other)
}
