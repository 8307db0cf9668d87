//! Records as no file system should tell them, through the parser of FIEMAP.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mapping::fuzzing::{Record, read};
use mapping::{Extent, Kind, Reason};

#[derive(Arbitrary, Debug)]
struct Input {
    size: Number,
    start: Number,
    end: Number,
    /// log2 of the alignment.
    align: u8,
    calls: Vec<Vec<Told>>,
    /// Records in a call that fills its buffer.
    batch: u8,
}

#[derive(Arbitrary, Debug)]
struct Told {
    logical: Number,
    physical: Number,
    length: Number,
    flags: Flags,
}

#[derive(Arbitrary, Debug)]
enum Number {
    Blocks(u8),
    Sectors(u16),
    FromTop(u16),
    Any(u64),
}

impl Number {
    fn value(&self) -> u64 {
        match *self {
            Number::Blocks(n) => u64::from(n) << 12,
            Number::Sectors(n) => u64::from(n) << 9,
            Number::FromTop(n) => u64::MAX - u64::from(n),
            Number::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Flags {
    None,
    One(u8),
    Any(u32),
}

impl Flags {
    fn value(&self) -> u32 {
        match *self {
            Flags::None => 0,
            Flags::One(bit) => 1 << (bit % 32),
            Flags::Any(flags) => flags,
        }
    }
}

/// From linux/fiemap.h: flags that say nothing against using the disk.
const HARMLESS: u32 = 0x1 | 0x1000;
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;

/// The extent is what this record says, wholly.
fn told_by(extent: &Extent, record: &Record) -> bool {
    let (logical, physical, length, flags) = *record;
    let inside = logical <= extent.start
        && u128::from(extent.end()) <= u128::from(logical) + u128::from(length);
    let place = inside && physical.checked_add(extent.start - logical) == Some(extent.disk);
    let kind = match flags & !HARMLESS {
        0 => Kind::Written,
        SHARED => Kind::Shared,
        UNWRITTEN => Kind::Unwritten,
        both if both == UNWRITTEN | SHARED => Kind::Unwritten,
        _ => return false,
    };
    place && physical != 0 && kind == extent.kind
}

fuzz_target!(|input: Input| {
    let (size, align) = (input.size.value(), 1_u64 << (9 + input.align % 5));
    let range = input.start.value()..input.end.value();
    let calls: Vec<Vec<Record>> = input
        .calls
        .iter()
        .map(|call| {
            let told = |told: &Told| {
                (
                    told.logical.value(),
                    told.physical.value(),
                    told.length.value(),
                    told.flags.value(),
                )
            };
            call.iter().map(told).collect()
        })
        .collect();
    let batch = usize::from(input.batch % 8) + 1;
    let mut extents = Vec::new();
    // An error ends it; what was told before is used.
    let _ = read(&calls, batch, size, range.clone(), align, &mut extents);
    let mut at = range.start;
    for extent in &extents {
        assert!(extent.len > 0, "{extent:?}");
        assert!(extent.start >= at, "{extent:?} overlaps or goes back");
        at = extent.start.checked_add(extent.len).unwrap();
        assert!(at <= range.end.min(size), "{extent:?} is outside");
        match extent.kind {
            Kind::Opaque(reason) => {
                assert_eq!(extent.disk, 0);
                assert!(!matches!(reason, Reason::Changing | Reason::BeyondEnd));
            }
            Kind::Hole => panic!("a record told of a hole"),
            _ => {
                assert!(
                    calls.iter().flatten().any(|r| told_by(extent, r)),
                    "{extent:?} was never told"
                );
                assert!(extent.disk + extent.len <= 1 << 56);
                // Ends that were cut off lie where what was asked for ends.
                let aligned = |at: u64| at.is_multiple_of(align);
                assert!(
                    aligned(extent.disk.wrapping_sub(extent.start)),
                    "{extent:?}"
                );
                assert!(aligned(extent.start) || extent.start == range.start);
                assert!(aligned(at) || at == range.end.min(size), "{extent:?}");
            }
        }
    }
});
