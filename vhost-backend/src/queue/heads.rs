//! Which requests of a queue could not be carried out yet.

use std::collections::VecDeque;

/// What becomes of a request that cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fate {
    /// It is tried again later.
    #[default]
    Kept,
    /// It stays in the record, for whoever comes next.
    Left,
    /// It is answered with an error.
    Answered,
}

/// The requests of a queue that are held, by the descriptors that their chains
/// begin with.
#[derive(Debug, Default)]
pub(super) struct HeldHeads {
    /// The one that has waited longest is the first.
    pub(super) heads: VecDeque<u16>,
    /// So many of them are tried again as soon as there are tags.
    pub(super) due: usize,
    pub(super) fate: Fate,
}

impl HeldHeads {
    /// Has room for all of a ring, so that nothing is allocated later.
    pub(super) fn begin(&mut self, entries: u16) {
        self.heads = VecDeque::with_capacity(usize::from(entries));
        self.due = 0;
        self.fate = Fate::Kept;
    }

    /// Those that are about to be tried again.
    #[inline(always)]
    pub(super) fn due(&self) -> usize {
        self.due
    }

    /// This one is held.
    #[inline(always)]
    pub(super) fn has(&self, head: u16) -> bool {
        !self.heads.is_empty() && self.heads.contains(&head)
    }

    /// One that was taken to be tried again was not.
    pub(super) fn put_back(&mut self, head: u16) {
        self.heads.push_front(head);
        self.due += 1;
    }

    /// From now on what is held is tried again later.
    pub(super) fn keep(&mut self) {
        self.fate = Fate::Kept;
    }
}
