//! Clone before write: what of a file another one is still to get before it may change.
//!
//! A file is cloned as it is at one moment while it goes on being written: at that moment, at which nothing is in
//! flight, all of it is *pending*. A change of what is pending waits; whoever clones lets each range
//! [pass](Pending::pass) once it is cloned. From then on its blocks are shared, which the map must have forgotten
//! before the first write is planned there: so a range is cloned, then taken out of the map, and only then not pending
//! any more. Whoever is told by [`Pending::touches`] that nothing is pending, and asks the map afterwards, finds
//! nothing there of before.

use std::ops::Range;

use crate::map::Map;
use crate::sync::{AtomicU8, AtomicU64, Ordering};

/// Bytes of the smallest unit. No file system has larger blocks, of which parts would have to pass together.
const UNIT: u64 = 64 << 10;
/// Most words of the bitmap, 4 MiB: beyond 2 TiB the units are larger.
const MOST_WORDS: u64 = 512 << 10;

/// Something is pending, or may be.
const CLONING: u8 = 0;
/// All has passed.
const WHOLE: u8 = 1;
/// Nobody wants the rest.
const GIVEN_UP: u8 = 2;

/// What of a file may not change yet. Shared by those who change it and the one who clones it.
#[derive(Debug)]
pub struct Pending {
    /// A bit for each unit that has not passed.
    bits: Box<[AtomicU64]>,
    /// Bytes of a unit, as a power of two.
    shift: u32,
    /// Bytes of the file at its moment: nothing behind is pending.
    len: u64,
    /// Bytes that have passed.
    passed: AtomicU64,
    state: AtomicU8,
}

impl Pending {
    /// All of a file of `len` bytes.
    #[must_use]
    pub fn new(len: u64) -> Pending {
        let mut shift = UNIT.trailing_zeros();
        while len.div_ceil(1 << shift).div_ceil(64) > MOST_WORDS {
            shift += 1;
        }
        let units = len.div_ceil(1 << shift);
        let words = (0..units.div_ceil(64)).map(|word| {
            let left = units - word * 64;
            AtomicU64::new(if left < 64 { (1 << left) - 1 } else { u64::MAX })
        });
        Pending {
            bits: words.collect(),
            shift,
            len,
            passed: AtomicU64::new(0),
            state: AtomicU8::new(CLONING),
        }
    }

    /// Bytes that pass together at least: a power of two.
    #[must_use]
    pub fn unit(&self) -> u64 {
        1 << self.shift
    }

    /// Bytes of the file at its moment.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Bytes that have passed.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Part of `range` is pending: it must not change. To be asked before the map is.
    #[must_use]
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.state.load(Ordering::Acquire) == CLONING && self.piece(range, 1).is_some()
    }

    /// The first bytes of `range` that are pending, with the rest of their units: about `most` bytes, but one unit at
    /// least; `None` if there are none.
    #[must_use]
    pub fn piece(&self, range: &Range<u64>, most: u64) -> Option<Range<u64>> {
        let to = range.end.min(self.len).div_ceil(self.unit());
        let first = self.next(range.start >> self.shift, to, |word| word)?;
        let to = to.min(first + (most >> self.shift).max(1));
        let end = self.next(first, to, |word| !word).unwrap_or(to);
        Some(first << self.shift..(end << self.shift).min(self.len))
    }

    /// Clones a [piece](Self::piece) by `clone`, has the `map` forget it, and lets it change from then on.
    ///
    /// # Errors
    /// Those of `clone`: it stays pending then.
    pub fn pass<E>(
        &self,
        piece: &Range<u64>,
        map: Option<&Map>,
        clone: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        clone()?;
        if let Some(map) = map {
            match map.hold(piece.clone()) {
                Ok(hold) => hold.release(),
                // Somebody looks at some of it, or the map is shorter by now.
                Err(_) => drop(map.forget(piece.clone())),
            }
        }
        let (mut at, end) = (piece.start >> self.shift, piece.end.div_ceil(self.unit()));
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            if let Some(word) = self.word(at) {
                word.fetch_and(!mask, Ordering::Release);
            }
            at += count;
        }
        self.passed
            .fetch_add(piece.end - piece.start, Ordering::Relaxed);
        Ok(())
    }

    /// All has passed, and it is not given up: from now on it cannot be.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.piece(&(0..self.len), 1).is_none() && self.end(WHOLE)
    }

    /// The rest is not wanted any more: nothing is pending. False if it was over before.
    pub fn give_up(&self) -> bool {
        self.end(GIVEN_UP)
    }

    /// The rest is not wanted any more.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN_UP
    }

    fn end(&self, state: u8) -> bool {
        let (order, or) = (Ordering::SeqCst, Ordering::SeqCst);
        self.state
            .compare_exchange(CLONING, state, order, or)
            .is_ok()
    }

    fn word(&self, unit: u64) -> Option<&AtomicU64> {
        self.bits.get(usize::try_from(unit / 64).ok()?)
    }

    /// The first unit in `from..to` of which `what` has a bit.
    fn next(&self, from: u64, to: u64, what: impl Fn(u64) -> u64) -> Option<u64> {
        let mut at = from;
        while at < to {
            let word = what(self.word(at)?.load(Ordering::Acquire)) >> (at % 64);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < to).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn pass(pending: &Pending, piece: &Range<u64>) {
        assert!(pending.pass(piece, None, || Ok::<_, ()>(())).is_ok());
    }

    #[test]
    fn pieces_are_found_in_order_until_all_has_passed() {
        let len = 200 * UNIT + 5;
        let pending = Pending::new(len);
        assert_eq!(pending.unit(), UNIT);
        let whole = 0..u64::MAX;
        let middle = 70 * UNIT + 9..70 * UNIT + 10;
        assert_eq!(pending.piece(&middle, 1 << 30), Some(70 * UNIT..71 * UNIT));
        pass(&pending, &(70 * UNIT..71 * UNIT));
        assert!(!pending.touches(&middle));
        assert!(pending.touches(&(70 * UNIT - 1..70 * UNIT)));
        assert!(pending.touches(&(71 * UNIT..71 * UNIT + 1)));
        assert_eq!(pending.piece(&whole, 65 * UNIT), Some(0..65 * UNIT));
        pass(&pending, &(0..65 * UNIT));
        assert_eq!(
            pending.piece(&whole, 65 * UNIT),
            Some(65 * UNIT..70 * UNIT),
            "not beyond what has passed"
        );
        pass(&pending, &(65 * UNIT..70 * UNIT));
        assert_eq!(pending.piece(&whole, u64::MAX), Some(71 * UNIT..len));
        assert!(!pending.is_whole());
        assert!(pending.touches(&(len - 1..len)));
        assert!(!pending.touches(&(201 * UNIT..whole.end)), "behind its end");
        pass(&pending, &(71 * UNIT..len));
        assert_eq!((pending.passed(), pending.piece(&whole, 1)), (len, None));
        assert!(pending.is_whole() && !pending.give_up());
    }

    #[test]
    fn what_cannot_be_cloned_stays_pending_until_it_is_given_up() {
        let pending = Pending::new(UNIT);
        assert_eq!(pending.pass(&(0..UNIT), None, || Err(7)), Err(7));
        assert!(pending.touches(&(0..1)));
        assert!(pending.give_up() && pending.is_given_up());
        assert!(!pending.touches(&(0..1)) && !pending.is_whole() && !pending.give_up());
    }

    #[test]
    fn of_large_files_the_units_are_larger_and_of_none_there_are_none() {
        let pending = Pending::new(1 << 44);
        assert_eq!((pending.unit(), pending.bits.len()), (512 << 10, 512 << 10));
        assert_eq!(
            pending.piece(&((1 << 44) - 1..1 << 44), 1),
            Some((1 << 44) - (512 << 10)..1 << 44)
        );
        assert!(Pending::new(0).is_whole());
    }
}
