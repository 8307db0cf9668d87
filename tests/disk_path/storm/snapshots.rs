//! An operator who takes snapshots, and looks at what differs between them.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use extentd::operator::control::{self, Answer, Request};
use front_end::LIMIT;
use mapping::difference::Comparison;
use rig::files::read_direct;
use rig::random::Random;

use super::disturber::{Did, Storm};

/// Snapshots that are there at most, with other copies.
const KEPT: usize = 3;

fn ask(storm: &Storm, request: &Request) -> Did {
    let Some((_, control)) = &storm.snapshots else {
        return Err(io::Error::other("there is no folder for snapshots"));
    };
    // The process may have been killed, or be another one.
    match control::ask(control, request, LIMIT)? {
        Answer::Result(_) => Ok(()),
        Answer::Error(error) => Err(io::Error::other(error)),
    }
}

/// A snapshot, which stays as it is from then on; the oldest is looked at and
/// goes.
pub fn take(storm: &Storm, _: &mut Random) -> Did {
    let Some((folder, _)) = &storm.snapshots else {
        return Ok(());
    };
    let mut copies = storm.copies.lock().unwrap();
    if copies.names.len() >= KEPT {
        let oldest = copies.names.remove(0);
        if let Some(spoilt) = copies.files.remove(&oldest) {
            storm.violated(spoilt);
        }
    }
    let name = format!("snapshot-{}", copies.made);
    copies.made += 1;
    let request = Request::Snapshot {
        name: name.clone(),
        within_ms: 5000,
    };
    ask(storm, &request)?;
    let new = folder.join(name);
    let before = copies.names.iter().rev();
    if let Some(before) = before.clone().find(|one| one.starts_with(folder)) {
        let missed = missed(before, &new)?;
        if missed > 0 {
            storm.violated(format!("diff misses {missed} blocks that differ"));
        }
    }
    copies.files.keep(new.clone());
    copies.names.push(new);
    Ok(())
}

/// Nobody needs the one that is being made.
pub fn cancel(storm: &Storm, _: &mut Random) -> Did {
    ask(storm, &Request::SnapshotCancel {})
}

/// Ends what the image shares with all that has cloned it, while it is served: at
/// once, or so slowly that it goes on for some time. One may be under way.
pub fn unshare(storm: &Storm, random: &mut Random) -> Did {
    let rate = (random.below(2) == 0).then_some(4 << 20);
    ask(storm, &Request::Unshare { rate })
}

/// Nobody wants that any more.
pub fn end_unsharing(storm: &Storm, _: &mut Random) -> Did {
    ask(storm, &Request::UnshareCancel {})
}

/// Sectors that differ and are in no range that is told to.
fn missed(before: &Path, after: &Path) -> io::Result<usize> {
    let open = |path| File::open(path).map(Arc::new);
    let comparison = Comparison::new(&open(before)?, &open(after)?)?;
    let (old, new) = (read_direct(before), read_direct(after));
    let mut told = vec![false; new.len().div_ceil(512)];
    for range in comparison.differences() {
        let range = range?;
        let first = usize::try_from(range.start / 512).unwrap();
        let end = usize::try_from((range.start + range.len).div_ceil(512)).unwrap();
        let end = end.min(told.len());
        told[first.min(end)..end].fill(true);
    }
    let sectors = old.chunks(512).zip(new.chunks(512)).zip(&told);
    Ok(sectors
        .filter(|((old, new), told)| old != new && !**told)
        .count())
}
