//! The record of requests in flight as any front-end may hand it over: what is accepted names each
//! request once, within the ring, in the order in which it was fetched, and nothing around it is
//! touched.
#![no_main]

use std::collections::HashSet;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_backend::fuzzing::{Claim, recover};

#[derive(Arbitrary, Debug)]
struct Input {
    offset: u8,
    short: bool,
    any_size: Option<u64>,
    queues: u8,
    entries: u8,
    queue: u8,
    ring: u8,
    used: u16,
    /// The header of the queue that starts.
    version: u16,
    last: u16,
    batch: u8,
    flights: Vec<Entry>,
    /// Any bytes, anywhere.
    damage: Vec<(u16, u8)>,
}

/// Mostly what a back-end writes.
#[derive(Arbitrary, Debug)]
struct Entry {
    in_flight: bool,
    next: u8,
    counter: u64,
}

fuzz_target!(|input: Input| {
    let (queues, entries) = (u16::from(input.queues % 5), u16::from(input.entries % 33));
    let region = (16 + 16 * usize::from(entries)).next_multiple_of(64);
    let offset = usize::from(input.offset % 64) * if input.offset < 64 { 1 } else { 8 };
    let len = region * usize::from(queues);
    let mut bytes = vec![0xee; offset + len + 64];
    bytes[offset..offset + len].fill(0);
    let queue = u16::from(input.queue % 5);
    if queue < queues {
        let at = offset + region * usize::from(queue);
        let mut put =
            |place: usize, field: &[u8]| bytes[at + place..][..field.len()].copy_from_slice(field);
        put(8, &(input.version % 3).to_le_bytes());
        put(10, &entries.to_le_bytes());
        put(12, &(input.last % 40).to_le_bytes());
        put(
            14,
            &input
                .used
                .wrapping_sub(u16::from(input.batch))
                .to_le_bytes(),
        );
        for (index, entry) in input.flights.iter().take(usize::from(entries)).enumerate() {
            let at = 16 + 16 * index;
            put(at, &[u8::from(entry.in_flight)]);
            put(at + 6, &u16::from(entry.next % 40).to_le_bytes());
            put(at + 8, &entry.counter.to_le_bytes());
        }
    }
    for &(place, byte) in &input.damage {
        if let Some(place) = bytes.get_mut(usize::from(place)) {
            *place = byte;
        }
    }
    let claim = Claim {
        offset: offset as u64,
        size: input
            .any_size
            .unwrap_or(len as u64 - u64::from(input.short && len > 0)),
        queues,
        entries,
        queue,
        ring: u16::from(input.ring % 40),
        used: input.used,
    };
    let Some(recovered) = recover(&bytes, claim) else {
        return;
    };
    assert!(claim.size >= len as u64 && queue < queues && offset.is_multiple_of(8));
    assert!(claim.ring <= entries);
    let at = offset + region * usize::from(queue);
    let entry = |head: u16| &bytes[at + 16 + 16 * usize::from(head)..][..16];
    let counter = |head: &u16| u64::from_le_bytes(entry(*head)[8..].try_into().unwrap());
    let heads = &recovered.heads;
    assert!(
        heads
            .iter()
            .all(|&head| head < claim.ring && entry(head)[0] == 1)
    );
    assert_eq!(heads.iter().collect::<HashSet<_>>().len(), heads.len());
    assert!(heads.is_sorted_by_key(counter));
    // All that was in flight is there, but for a batch that the used ring shows already.
    let flying = (0..claim.ring).filter(|&head| entry(head)[0] == 1).count();
    let version = u16::from_le_bytes(bytes[at + 8..at + 10].try_into().unwrap());
    let recorded = u16::from_le_bytes(bytes[at + 14..at + 16].try_into().unwrap());
    let batch = usize::from(claim.used.wrapping_sub(recorded));
    if version == 0 {
        assert!(heads.is_empty());
    } else {
        assert!(heads.len() <= flying && heads.len() + batch >= flying);
    }
    assert_eq!(
        recovered.left.as_deref(),
        Some(&[][..]),
        "not all were answered"
    );
    assert_eq!(recovered.file[..at], bytes[..at]);
    assert_eq!(recovered.file[at + region..], bytes[at + region..]);
});
