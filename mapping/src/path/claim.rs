//! What counts the requests that may be in flight, within one thread.

use std::rc::Rc;

use crate::Mark;

/// A request's part in a generation, to be kept until its I/O has ended: nobody gets the file, and no block of it is
/// given away, before it is dropped.
#[must_use = "what is dropped before the I/O has ended protects nothing"]
#[derive(Debug)]
pub struct Claim {
    _counted: Rc<()>,
}

/// Requests that were planned between two moments of the map.
#[derive(Debug)]
pub(super) struct Generation {
    /// Nothing of it was looked up before this.
    pub(super) since: Mark,
    /// Each claim has one more reference.
    claims: Rc<()>,
}

impl Generation {
    pub(super) fn new(since: Mark) -> Generation {
        Generation {
            since,
            claims: Rc::default(),
        }
    }

    #[inline]
    pub(super) fn claim(&self) -> Claim {
        Claim {
            _counted: Rc::clone(&self.claims),
        }
    }

    #[inline]
    pub(super) fn is_claimed(&self) -> bool {
        Rc::strong_count(&self.claims) > 1
    }
}
