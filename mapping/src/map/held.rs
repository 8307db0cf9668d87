//! The ranges that are held.

use std::ops::Range;

/// Ranges held at a time before memory is asked for: what some queues can have in flight.
const ROOM: usize = 1024;

/// Held ranges, in order, never overlapping. There are as many as there are changes in flight, so that moving those
/// behind is cheap, and room for them is there from the start: a request asks for no memory.
pub(crate) struct Holds(Vec<Range<u64>>);

impl Holds {
    pub(crate) fn new() -> Holds {
        Holds(Vec::with_capacity(ROOM))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first that ends behind `offset`.
    fn behind(&self, offset: u64) -> usize {
        self.0.partition_point(|held| held.end <= offset)
    }

    /// Adds a range that overlaps none.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        let at = self.behind(range.start);
        self.0.insert(at, range);
    }

    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        let at = self.behind(range.start);
        if self.0.get(at) == Some(range) {
            self.0.remove(at);
        }
    }

    /// Those that overlap `range`.
    pub(crate) fn over(&self, range: &Range<u64>) -> impl Iterator<Item = &Range<u64>> {
        let end = range.end;
        self.0[self.behind(range.start)..]
            .iter()
            .take_while(move |held| held.start < end)
    }

    /// The first of them.
    pub(crate) fn first_over(&self, range: &Range<u64>) -> Option<Range<u64>> {
        self.over(range).next().cloned()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_in_order_and_found_where_they_overlap() {
        let mut holds = Holds::new();
        for start in [40, 0, 80, 20] {
            holds.add(start..start + 10);
        }
        let over = |holds: &Holds, range| -> Vec<u64> {
            holds.over(&range).map(|held| held.start).collect()
        };
        assert_eq!(over(&holds, 0..100), [0, 20, 40, 80]);
        assert_eq!(over(&holds, 9..41), [0, 20, 40]);
        assert_eq!(over(&holds, 10..40), [20]);
        assert_eq!(holds.first_over(&(30..40)), None);
        assert_eq!(holds.first_over(&(49..81)), Some(40..50));
        holds.remove(&(20..30));
        holds.remove(&(41..50));
        assert_eq!(over(&holds, 0..100), [0, 40, 80]);
        assert_eq!(holds.len(), 3);
    }
}
