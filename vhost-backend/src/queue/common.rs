//! What the queues of a worker share: its I/O, guest memory, and the names of
//! what is in flight.

use super::Queue;
use super::chain::Scratch;
use super::disk::Disk;
use super::epochs::Epochs;
use super::tags::Tags;
use crate::device::{Device, IoChannel};
use crate::held::Holding;
use crate::limits::gate::Gate;
use crate::memory::dirty::Tracker;

/// What the queues of a worker share.
pub(crate) struct Common<D: Device> {
    /// Before the memory, so that it is dropped before anything is unmapped.
    pub channel: D::Channel,
    pub epochs: Epochs,
    pub scratch: Scratch,
    pub disk: Disk<D>,
    /// Names of requests in flight.
    pub tags: Tags,
    /// Knows what requests write, while that is logged.
    pub dirty: Option<Tracker>,
    /// What may be fetched before which time.
    pub gate: Gate,
    /// A request was fetched whose stages are timed.
    pub timed: bool,
    /// What could not be carried out yet.
    pub holding: Holding,
}

impl<D: Device> Common<D> {
    /// There is room for one more request: else only an end goes on.
    #[inline(always)]
    pub(crate) fn has_room(&self) -> bool {
        !self.tags.is_empty() && self.dirty.as_ref().is_none_or(Tracker::has_room)
    }

    /// One more request may be fetched in this turn.
    #[inline(always)]
    pub(crate) fn may_fetch(&self) -> bool {
        !self.scratch.is_spent() && self.has_room()
    }

    /// Lets these queues answer what has ended; returns how many requests.
    pub(crate) fn reap(&mut self, queues: &mut [Queue]) -> usize {
        let Self {
            channel,
            epochs,
            tags,
            dirty,
            holding,
            ..
        } = self;
        let mut ended = 0;
        channel.reap(&mut |completion| {
            ended += 1;
            let owner = tags.give_back(completion.tag.0);
            let queue = owner.and_then(|owner| queues.get_mut(usize::from(owner.queue)));
            match owner.zip(queue) {
                Some((owner, queue)) => {
                    queue.complete(owner.head, completion, epochs, dirty, holding)
                }
                None => log::error!(
                    "a request was reported that does not exist: {:?}",
                    completion.tag
                ),
            }
        });
        channel.give_back(&mut |back| {
            ended += 1;
            let owner = tags.give_back(back.tag.0);
            if let Some(owner) = owner
                && let Some(queue) = queues.get_mut(usize::from(owner.queue))
            {
                queue.hold(owner.head, back, epochs, dirty, holding);
            }
        });
        ended
    }
}
