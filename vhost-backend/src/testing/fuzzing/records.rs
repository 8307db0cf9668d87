//! The records that a front-end keeps for the back-end: requests in flight,
//! and pages that were written.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::memory::dirty::Log;
use crate::memory::inflight::{Inflight, Shape};
use crate::testing::guest::memfd;

/// What a front-end says of the record of requests in flight, and the ring
/// that is to go on with it.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Where the record begins in its file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// For so many queues.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
    /// The queue whose ring starts.
    pub queue: u16,
    /// The size of the ring.
    pub ring: u16,
    /// Its used index.
    pub used: u16,
}

/// What came of a record that was accepted.
#[derive(Debug)]
pub struct Recovered {
    /// Requests to carry out again, in order.
    pub heads: Vec<u16>,
    /// The file, once all of these were answered in one batch.
    pub file: Vec<u8>,
    /// Requests that the next process would carry out again then.
    pub left: Option<Vec<u16>>,
}

fn filled(bytes: &[u8]) -> File {
    let file = memfd(bytes.len() as u64);
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn content(file: &File, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Goes on with the record in a file of these bytes; `None`: it is refused.
#[must_use]
pub fn recover(bytes: &[u8], claim: Claim) -> Option<Recovered> {
    let file = filled(bytes);
    let shape = Shape {
        queues: claim.queues,
        entries: claim.entries,
    };
    let open = || {
        let file = file.try_clone().unwrap();
        Inflight::open(file, claim.offset, claim.size, shape).ok()
    };
    let region = open()?.region(claim.queue)?;
    let (mut record, heads) = region.recover(claim.ring, claim.used)?;
    for &head in &heads {
        record.answered(head);
    }
    let batch = u16::try_from(heads.len()).unwrap();
    let used = claim.used.wrapping_add(batch);
    record.published(batch, used);
    drop(record);
    let left = open().and_then(|inflight| inflight.region(claim.queue)?.recover(claim.ring, used));
    Some(Recovered {
        heads,
        file: content(&file, bytes.len()),
        left: left.map(|(_, heads)| heads),
    })
}

/// Marks ranges of guest addresses, each a first byte and a length, in the
/// log at `offset` of a file of these bytes; the file then. `None`: it is
/// refused.
#[must_use]
pub fn mark(bytes: &[u8], offset: u64, size: u64, ranges: &[(u64, u64)]) -> Option<Vec<u8>> {
    let file = filled(bytes);
    let log = Log::open(file.try_clone().unwrap(), offset, size).ok()?;
    for &(guest, len) in ranges {
        log.mark(guest, len);
    }
    Some(content(&file, bytes.len()))
}
