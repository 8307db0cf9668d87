//! The log of pages that were written: exactly the pages of the ranges are marked, and nothing
//! around the log is touched, wherever the front-end says that it lies.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_backend::fuzzing::mark;

#[derive(Arbitrary, Debug)]
struct Input {
    file: u8,
    offset: Number,
    size: Number,
    before: u8,
    ranges: Vec<(Number, Number)>,
}

/// Mostly within the log's reach.
#[derive(Arbitrary, Debug)]
enum Number {
    Small(u16),
    Pages(u16, u8),
    Any(u64),
}

impl Number {
    fn value(&self) -> u64 {
        match *self {
            Number::Small(n) => n.into(),
            Number::Pages(n, more) => u64::from(n % 2200) * 4096 + u64::from(more),
            Number::Any(n) => n,
        }
    }

    /// For a place in a small file.
    fn place(&self) -> u64 {
        match *self {
            Number::Small(n) | Number::Pages(n, _) => u64::from(n % 300),
            Number::Any(n) => n,
        }
    }
}

fuzz_target!(|input: Input| {
    let bytes = vec![input.before; usize::from(input.file)];
    let (offset, size) = (input.offset.place(), input.size.place());
    let ranges: Vec<_> = input
        .ranges
        .iter()
        .take(16)
        .map(|(guest, len)| (guest.value(), len.value()))
        .collect();
    let fits = size > 0
        && offset
            .checked_add(size)
            .is_some_and(|end| end <= bytes.len() as u64);
    let marked = mark(&bytes, offset, size, &ranges);
    assert_eq!(
        marked.is_some(),
        fits,
        "{offset} + {size} of {}",
        bytes.len()
    );
    let Some(marked) = marked else { return };
    let mut expected = bytes;
    for page in 0..size * 8 {
        let (first, last) = (page * 4096, page * 4096 + 4095);
        let touched = |&(guest, len): &(u64, u64)| {
            len > 0 && guest <= last && guest.saturating_add(len - 1) >= first
        };
        if ranges.iter().any(touched) {
            let at = usize::try_from(offset + page / 8).unwrap();
            expected[at] |= 1 << (page % 8);
        }
    }
    assert_eq!(marked, expected);
});
