//! A split virtqueue, the driver's side: chains go in, used heads come out.
//!
//! Nothing here allocates, locks or calls the system per chain, except the
//! kick that the device wants and the wait that the caller asks for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::codes::descriptor::{INDIRECT, NEXT, WRITE};
use crate::error::{Error, Result};
use crate::memory::{GuestMemory, Region};
use crate::ring_memory::{Descriptor, RingMemory, Table};

mod over;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest address.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// The device writes to it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: true,
        }
    }

    fn flags(self) -> u16 {
        if self.writable { WRITE } else { 0 }
    }
}

/// A chain that the device has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its head.
    pub head: u16,
    /// How many bytes the device says it has written.
    pub length: u32,
}

/// Where indirect tables lie: one for each head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// The guest address of the first, a multiple of 16.
    pub address: u64,
    /// The number of descriptors in each.
    pub entries: u16,
}

/// Indirect tables that are mapped.
#[derive(Debug)]
struct Indirect {
    at: Tables,
    start: std::ptr::NonNull<u8>,
    _region: Arc<Region>,
}

impl Indirect {
    /// Those of a ring of `size`.
    fn find(memory: &GuestMemory, at: Tables, size: u16) -> Result<Self> {
        let length = 16 * u64::from(at.entries) * u64::from(size);
        let region = memory.region(at.address, length)?;
        let start = region.pointer(at.address, length);
        let start = start.filter(|s| (s.as_ptr() as usize).is_multiple_of(16));
        Ok(Self {
            at,
            start: start.ok_or(Error::NoMemory {
                address: at.address,
                length,
            })?,
            _region: Arc::clone(region),
        })
    }
}

/// A ring and the state that a driver keeps beside it.
#[derive(Debug)]
pub struct Ring {
    memory: RingMemory,
    event_idx: bool,
    indirect: Option<Indirect>,
    /// The next descriptor in the chain or in the free list.
    links: Box<[u16]>,
    /// By head: the last descriptor and the number of them; 0 if not in flight.
    chains: Box<[(u16, u16)]>,
    free_head: u16,
    free: u16,
    /// The available index with what is not published yet.
    avail: u16,
    /// The available index at the last kick.
    kicked: u16,
    /// The next position of the used ring to look at.
    used: u16,
    kick: EventFd,
    call: EventFd,
}

fn event() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK).map_err(|e| Error::Host("make an eventfd", e))
}

// SAFETY: the pointer of `Indirect` goes to memory that its region keeps
// mapped, and only this ring writes there.
unsafe impl Send for Ring {}

impl Ring {
    /// A new, empty ring; its memory is cleared.
    ///
    /// # Errors
    /// There is no guest memory for the tables, or no eventfd.
    pub fn new(
        memory: &GuestMemory,
        ring: RingMemory,
        event_idx: bool,
        tables: Option<Tables>,
    ) -> Result<Self> {
        let size = ring.size();
        let indirect = tables.map(|at| Indirect::find(memory, at, size));
        let indirect = indirect.transpose()?;
        ring.clear();
        Ok(Self {
            memory: ring,
            event_idx,
            indirect,
            links: (1..=size).collect(),
            chains: vec![(0, 0); size.into()].into(),
            free_head: 0,
            free: size,
            avail: 0,
            kicked: 0,
            used: 0,
            kick: event()?,
            call: event()?,
        })
    }

    /// The memory, for looking closer and for doing harm.
    pub fn memory(&self) -> &RingMemory {
        &self.memory
    }

    /// The eventfd by which the device is kicked.
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// The eventfd by which the driver is called.
    pub fn call_fd(&self) -> RawFd {
        self.call.as_raw_fd()
    }

    /// The number of chains added so far, modulo 2^16.
    pub fn next_avail(&self) -> u16 {
        self.avail
    }

    /// The number of chains taken back so far, modulo 2^16.
    pub fn next_used(&self) -> u16 {
        self.used
    }

    /// The number of free descriptors.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The head of the next chain, if a descriptor is free.
    #[inline]
    pub fn next_head(&self) -> Option<u16> {
        (self.free > 0).then_some(self.free_head)
    }

    /// Adds a chain of descriptors; the head, or `None` if there is no room
    /// for it. The device sees it after [`publish`](Self::publish).
    #[inline]
    pub fn add(&mut self, buffers: impl Iterator<Item = Buffer>) -> Option<u16> {
        let head = self.free_head;
        let mut buffers = buffers.peekable();
        let mut index = head;
        let mut last = head;
        let mut count = 0;
        while let Some(buffer) = buffers.next() {
            if count == self.free {
                return None;
            }
            let next = self.links[usize::from(index)];
            let more = if buffers.peek().is_some() { NEXT } else { 0 };
            let descriptor = Descriptor {
                address: buffer.address,
                length: buffer.length,
                flags: buffer.flags() | more,
                next,
            };
            self.memory.set_descriptor(index, descriptor);
            count += 1;
            last = index;
            index = next;
        }
        self.commit(head, last, count)
    }

    /// Adds a chain by its head's indirect table; the head, or `None` if
    /// there is no room for it, or no table.
    #[inline]
    pub fn add_indirect(&mut self, buffers: impl Iterator<Item = Buffer>) -> Option<u16> {
        let head = self.next_head()?;
        let tables = self.indirect.as_ref()?;
        let first = usize::from(head) * usize::from(tables.at.entries);
        // SAFETY: `new` has checked that the tables of all heads are mapped
        // and aligned, and the region is kept.
        let table = unsafe { Table::new(tables.start.add(16 * first)) };
        let mut buffers = buffers.peekable();
        let mut count = 0_u16;
        while let Some(buffer) = buffers.next() {
            if count == tables.at.entries {
                return None;
            }
            let more = if buffers.peek().is_some() { NEXT } else { 0 };
            let descriptor = Descriptor {
                address: buffer.address,
                length: buffer.length,
                flags: buffer.flags() | more,
                next: count + 1,
            };
            // SAFETY: `count` is below the number of entries.
            unsafe { table.set(count.into(), descriptor) };
            count += 1;
        }
        let descriptor = Descriptor {
            address: tables.at.address + 16 * first as u64,
            length: 16 * u32::from(count),
            flags: INDIRECT,
            next: 0,
        };
        self.memory.set_descriptor(head, descriptor);
        self.commit(head, head, 1)
    }

    #[inline]
    fn commit(&mut self, head: u16, last: u16, count: u16) -> Option<u16> {
        if count == 0 {
            return None;
        }
        self.chains[usize::from(head)] = (last, count);
        self.free -= count;
        self.free_head = self.links[usize::from(last)];
        self.memory.set_avail_entry(self.avail, head);
        self.avail = self.avail.wrapping_add(1);
        Some(head)
    }

    /// Lets the device see all chains added so far, and kicks it if it wants
    /// that; whether it did.
    ///
    /// # Errors
    /// The eventfd cannot be written.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        let before = self.kicked;
        if self.avail == before {
            return Ok(false);
        }
        self.memory.set_avail_index(self.avail);
        // The index must be out before it is read whether that goes unnoticed.
        fence(Ordering::SeqCst);
        self.kicked = self.avail;
        let wanted = if self.event_idx {
            crossed(self.memory.avail_event(), before, self.avail)
        } else {
            self.memory.used_flags() & 1 == 0
        };
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Kicks the device, wanted or not.
    ///
    /// # Errors
    /// The eventfd cannot be written.
    pub fn kick(&self) -> Result<()> {
        self.kick.write(1).map_err(|e| Error::Host("kick", e))
    }

    /// Takes back a chain that the device has returned.
    ///
    /// # Errors
    /// [`Error::NotInFlight`]: the device returned what it did not hold. The
    /// entry is passed over.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>> {
        if self.memory.used_index() == self.used {
            return Ok(None);
        }
        let (id, length) = self.memory.used_entry(self.used);
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(id).map_err(|_| Error::NotInFlight(id))?;
        let chain = self.chains.get_mut(usize::from(head));
        let chain = chain.filter(|chain| chain.1 > 0);
        let (last, count) = std::mem::take(chain.ok_or(Error::NotInFlight(id))?);
        self.links[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free += count;
        Ok(Some(Used { head, length }))
    }

    /// Offers a head, whatever the caller has written to its descriptors or
    /// not. The device sees it after [`publish`](Self::publish); it comes back
    /// by [`pop_raw`](Self::pop_raw).
    pub fn offer(&mut self, head: u16) {
        self.memory.set_avail_entry(self.avail, head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Takes an entry of the used ring, head and bytes written, without
    /// asking whether it makes sense or freeing its descriptors.
    pub fn pop_raw(&mut self) -> Option<(u32, u32)> {
        if self.memory.used_index() == self.used {
            return None;
        }
        let entry = self.memory.used_entry(self.used);
        self.used = self.used.wrapping_add(1);
        Some(entry)
    }

    /// The used index that the device has published, which this driver may
    /// not have looked at yet.
    pub fn device_index(&self) -> u16 {
        self.memory.used_index()
    }

    /// Asks the device for a call at its next completion, or to leave calls
    /// out: then with EVENT_IDX there is one every 65536 completions.
    pub fn want_call(&self, wanted: bool) {
        if self.event_idx {
            let at = if wanted {
                self.used
            } else {
                self.used.wrapping_sub(1)
            };
            self.memory.set_used_event(at);
        } else {
            self.memory.set_avail_flags(u16::from(!wanted));
        }
        // The wish must be out before the used index is read again.
        fence(Ordering::SeqCst);
    }

    /// Waits for a call until the device has returned something that was not
    /// taken back yet.
    ///
    /// # Errors
    /// [`Error::Late`] after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            self.want_call(true);
            if self.memory.used_index() != self.used {
                return Ok(());
            }
            let left = limit.saturating_sub(start.elapsed());
            let called = crate::sys::readable(self.call_fd(), left);
            if !called.map_err(|e| Error::Host("wait for a call", e))? {
                return Err(Error::Late("a completion"));
            }
            self.take_calls()?;
        }
    }

    /// The number of calls since this was last asked; does not wait.
    ///
    /// # Errors
    /// The eventfd cannot be read.
    pub fn take_calls(&self) -> Result<u64> {
        match self.call.read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other.map_err(|e| Error::Host("take calls", e)),
        }
    }
}

/// An index has moved from `before` to `now` over `event` (virtio 1.2, 2.7.10).
fn crossed(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring_memory::Addresses;

    fn ring(size: u16, event_idx: bool) -> Ring {
        let memory = GuestMemory::flat(0x10_0000).unwrap();
        let at = Addresses::from(0, size);
        let tables = Tables {
            address: at.end(size).next_multiple_of(16),
            entries: 3,
        };
        let parts = RingMemory::new(&memory, at, size).unwrap();
        Ring::new(&memory, parts, event_idx, Some(tables)).unwrap()
    }

    fn buffers(count: u32) -> impl Iterator<Item = Buffer> {
        (0..count).map(|n| Buffer::readable(n.into(), 1))
    }

    fn give_back(ring: &Ring, position: u16, head: u16) {
        ring.memory().write_used_entry(position, head.into(), 5);
        ring.memory().write_used(0, position.wrapping_add(1));
    }

    #[test]
    fn chains_come_back_in_any_order_and_room_is_used_again() {
        let mut ring = ring(8, false);
        let first = ring.add(buffers(3)).unwrap();
        let second = ring.add_indirect(buffers(3)).unwrap();
        let third = ring.add(buffers(4)).unwrap();
        assert_eq!(ring.free(), 0);
        assert!(ring.add(buffers(1)).is_none() && ring.add_indirect(buffers(1)).is_none());
        assert!(ring.publish().unwrap());
        for (position, head) in [third, first, second].into_iter().enumerate() {
            assert_eq!(ring.pop().unwrap(), None);
            give_back(&ring, u16::try_from(position).unwrap(), head);
            assert_eq!(ring.pop().unwrap(), Some(Used { head, length: 5 }));
        }
        assert_eq!(ring.free(), 8);
        assert!(ring.add_indirect(buffers(4)).is_none());
        assert!(ring.add(buffers(9)).is_none());
        assert!(ring.add(buffers(8)).is_some());
    }

    #[test]
    fn a_head_that_is_not_in_flight_is_an_error_once() {
        let mut ring = ring(4, false);
        let head = ring.add(buffers(1)).unwrap();
        give_back(&ring, 0, head);
        ring.pop().unwrap().unwrap();
        give_back(&ring, 1, head);
        assert!(matches!(ring.pop(), Err(Error::NotInFlight(_))));
        give_back(&ring, 2, 4);
        assert!(matches!(ring.pop(), Err(Error::NotInFlight(4))));
        assert_eq!(ring.pop().unwrap(), None);
    }

    #[test]
    fn the_device_is_kicked_only_where_it_wants() {
        let mut ring = ring(8, true);
        ring.memory().write_avail_event(1);
        let mut kicks = Vec::new();
        for _ in 0..3 {
            ring.add(buffers(1)).unwrap();
            kicks.push(ring.publish().unwrap());
        }
        assert_eq!(kicks, [false, true, false]);
        assert!(!ring.publish().unwrap());
        assert_eq!(ring.kick.read().unwrap(), 1);
    }

    #[test]
    fn without_event_idx_a_flag_keeps_kicks_away() {
        let mut ring = ring(8, false);
        ring.memory().write_used(1, 0);
        ring.add(buffers(1)).unwrap();
        assert!(!ring.publish().unwrap());
        ring.memory().write_used(0, 0);
        ring.add(buffers(1)).unwrap();
        assert!(ring.publish().unwrap());
    }
}
