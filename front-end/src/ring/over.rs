//! The driver of a guest that was copied.

use super::{Indirect, Ring, event};
use crate::error::Result;
use crate::memory::GuestMemory;
use crate::ring_memory::RingMemory;

impl Ring {
    /// The driver as it is now, over a copy of its guest's memory and with
    /// events of its own.
    ///
    /// # Errors
    /// The memory has no room for it, or no eventfd can be made.
    pub fn over(&self, memory: &GuestMemory) -> Result<Self> {
        let ring = &self.memory;
        let size = ring.size();
        let tables = self.indirect.as_ref().map(|one| one.at);
        let indirect = tables.map(|at| Indirect::find(memory, at, size));
        Ok(Self {
            memory: RingMemory::new(memory, ring.addresses(), size)?,
            event_idx: self.event_idx,
            indirect: indirect.transpose()?,
            links: self.links.clone(),
            chains: self.chains.clone(),
            free_head: self.free_head,
            free: self.free,
            avail: self.avail,
            kicked: self.kicked,
            used: self.used,
            kick: event()?,
            call: event()?,
        })
    }
}
