//! The names of a worker's requests in flight. There are fewer of them than
//! its rings have entries: what a request needs on its way is kept for as many
//! as a disk makes use of, not for as many as a front-end could ask.

#[cfg(any(test, feature = "fuzzing"))]
use crate::device::Tag;

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The queue, as its worker counts.
    pub queue: u16,
    /// The descriptor that its chain begins with.
    pub head: u16,
}

/// Free tags, and who has the others.
#[derive(Debug)]
pub(crate) struct Tags {
    /// The last one is taken first: what belongs to it was used a moment ago.
    free: Vec<u32>,
    owners: Vec<Option<Owner>>,
    most: usize,
}

impl Tags {
    /// At most `most` at a time, and none before it has [grown](Self::grow).
    pub(crate) fn new(most: usize) -> Self {
        Self {
            free: Vec::new(),
            owners: Vec::new(),
            most,
        }
    }

    /// Has room for rings of so many entries together; returns for how many
    /// requests that is.
    pub(crate) fn grow(&mut self, entries: usize) -> usize {
        let (old, new) = (self.owners.len(), entries.min(self.most));
        if new > old {
            self.owners.resize(new, None);
            self.free.reserve(new);
            let added = u32::try_from(old).unwrap_or(u32::MAX)..u32::try_from(new).unwrap_or(0);
            self.free.extend(added.rev());
        }
        self.owners.len()
    }

    /// No request is in flight.
    pub(crate) fn all_are_free(&self) -> bool {
        self.free.len() == self.owners.len()
    }

    /// None is free.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    #[inline(always)]
    pub(crate) fn take(&mut self, owner: Owner) -> Option<u32> {
        let tag = self.free.pop()?;
        *self.slot(tag)? = Some(owner);
        Some(tag)
    }

    /// The request has ended; `None` if it was not in flight.
    #[inline(always)]
    pub(crate) fn give_back(&mut self, tag: u32) -> Option<Owner> {
        let owner = self.slot(tag)?.take()?;
        self.free.push(tag);
        Some(owner)
    }

    #[inline(always)]
    fn slot(&mut self, tag: u32) -> Option<&mut Option<Owner>> {
        self.owners.get_mut(usize::try_from(tag).ok()?)
    }
}

/// What tests know is the head.
#[cfg(any(test, feature = "fuzzing"))]
impl Tags {
    /// All are there from the start.
    pub(crate) fn full(count: usize) -> Self {
        let mut tags = Self::new(count);
        tags.grow(count);
        tags
    }

    /// The tag of a request in flight.
    pub(crate) fn of(&self, queue: u16, head: u16) -> Option<Tag> {
        let owner = Some(Owner { queue, head });
        let index = self.owners.iter().position(|one| *one == owner)?;
        u32::try_from(index).ok().map(Tag)
    }

    /// The head of a request in flight.
    pub(crate) fn head(&self, tag: Tag) -> Option<u16> {
        let owner = self.owners.get(usize::try_from(tag.0).ok()?)?;
        owner.map(|owner| owner.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { queue: 1, head: 7 };

    #[test]
    fn there_are_as_many_as_entries_up_to_the_most() {
        let mut tags = Tags::new(3);
        assert!(tags.is_empty());
        assert_eq!(tags.grow(2), 2);
        assert_eq!(tags.take(OWNER), Some(0));
        assert_eq!(tags.take(OWNER), Some(1));
        assert!(tags.is_empty());
        assert_eq!(tags.take(OWNER), None);
        assert_eq!(tags.grow(100), 3);
        assert_eq!(tags.grow(1), 3);
        assert_eq!(tags.take(OWNER), Some(2));
        assert!(tags.is_empty());
    }

    #[test]
    fn a_tag_is_given_back_once_and_taken_again_first() {
        let mut tags = Tags::new(4);
        tags.grow(4);
        let taken = [tags.take(OWNER), tags.take(OWNER)];
        assert_eq!(taken, [Some(0), Some(1)]);
        assert_eq!(tags.of(1, 7), Some(Tag(0)));
        assert_eq!(tags.head(Tag(1)), Some(7));
        assert_eq!(tags.give_back(0), Some(OWNER));
        assert_eq!(tags.give_back(0), None);
        assert_eq!(tags.give_back(4), None);
        assert_eq!(tags.take(OWNER), Some(0));
    }
}
