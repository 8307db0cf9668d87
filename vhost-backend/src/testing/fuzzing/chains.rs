//! Chains as they are taken from descriptor tables, to be compared with
//! another implementation's.

use crate::queue::chain::{Descriptors, Endless};
use crate::queue::ring::Ring;
use crate::testing::guest::{Driver, Guest};

/// What a walk through the tables found.
#[derive(Debug)]
pub struct Found {
    /// Guest address, length, and whether the device writes it.
    pub buffers: Vec<(u64, u32, bool)>,
    /// It is against the specification from there on.
    pub malformed: bool,
    /// Where the ring has its table, its available and its used part.
    pub ring: [u64; 3],
}

/// Walks the chain at `head` of a ring of `size` entries at `base`, in memory
/// of these regions (guest address and size) that holds these bytes.
#[must_use]
pub fn walk(
    regions: &[(u64, u64)],
    contents: &[(u64, &[u8])],
    base: u64,
    size: u16,
    head: u16,
) -> Found {
    let guest = Guest::new(regions);
    for (at, bytes) in contents {
        guest.write(*at, bytes);
    }
    let at = Driver::new(&guest, base, size).at;
    let ring = Ring::new(&guest.memory, size, at, 0, false).unwrap();
    let mut found = Found {
        buffers: Vec::new(),
        malformed: false,
        ring: [at.descriptors, at.avail, at.used],
    };
    for one in Descriptors::new(&guest.memory, &ring, head) {
        match one {
            Ok(one) => found
                .buffers
                .push((one.addr(), one.len(), one.is_writable())),
            Err(Endless) => found.malformed = true,
        }
    }
    found
}
