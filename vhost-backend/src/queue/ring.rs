//! A split virtqueue, device side (virtio 1.2, 2.7), over host addresses that
//! are looked up once when the ring starts or moves.
//!
//! All indices are free-running `u16` counters, as in guest memory. Nothing
//! the driver writes is used before it was read once and checked.
#![allow(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::command::{PartBytes, RingAddresses};
use crate::crash;
use crate::memory::Memory;
use crate::memory::dirty::UsedLog;
use crate::memory::inflight::{Record, Region};
use crate::memory::sigbus::losses;
use crate::probes;
use crate::queue::descriptor::Descriptor;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`.
const SILENT: u16 = 1;

/// Host addresses of a ring's three parts, and what keeps them valid.
#[derive(Debug)]
struct Place {
    descriptors: *const u8,
    avail: *const u8,
    used: *mut u8,
    memory: Arc<Memory>,
}

impl Place {
    /// A part of it was lost.
    #[cold]
    fn is_lost(&self, at: RingAddresses) -> bool {
        let parts = [at.descriptors, at.avail, at.used];
        parts.into_iter().any(|part| self.memory.is_lost_at(part))
    }

    /// Each part lies in one region, aligned for the guest and for us (RING-2).
    fn find(memory: &Arc<Memory>, at: RingAddresses, size: u16, event_idx: bool) -> Option<Self> {
        let event = if event_idx { 2 } else { 0 };
        let bytes = PartBytes::of(size);
        let part = |guest: u64, len: u64, align: u64| {
            let host = memory.host(guest, len)?;
            let aligned = guest.is_multiple_of(align)
                && host.addr().is_multiple_of(usize::try_from(align).ok()?);
            aligned.then_some(host)
        };
        Some(Self {
            descriptors: part(at.descriptors, bytes.descriptors, 16)?,
            avail: part(at.avail, bytes.avail.saturating_add(event), 2)?,
            used: part(at.used, bytes.used.saturating_add(event), 4)?,
            memory: Arc::clone(memory),
        })
    }

    /// Field `index` of the available ring: flags, idx, ring[..], used_event.
    fn avail(&self, index: usize) -> &AtomicU16 {
        // SAFETY: callers pass 0, 1, 2 + (an index below the size) or, with
        // EVENT_IDX, 2 + the size; `find` saw that much memory, 2-aligned, and
        // `memory` keeps it mapped. The guest may write it at any time, which
        // an atomic allows.
        unsafe { AtomicU16::from_ptr(self.avail.cast_mut().cast::<u16>().add(index)) }
    }

    /// Field `index` of the used ring in units of `u16`: flags, idx, elements
    /// of 4, avail_event.
    fn used(&self, index: usize) -> &AtomicU16 {
        // SAFETY: callers pass 0, 1 or, with EVENT_IDX, 2 + 4 * the size; the
        // rest as in `avail`.
        unsafe { AtomicU16::from_ptr(self.used.cast::<u16>().add(index)) }
    }
}

/// What the driver offers next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Popped {
    /// Nothing now.
    Empty,
    /// A chain that begins with this descriptor.
    Head(u16),
    /// An index beyond the table, which names no chain and gets no answer.
    OutOfRange(u16),
    /// The driver is out of its mind; told once, `Empty` from then on (RING-4).
    Broken,
}

/// A started ring.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Entries; a power of two.
    size: u16,
    event_idx: bool,
    addresses: RingAddresses,
    /// `None` while guest memory does not contain the ring.
    place: Option<Place>,
    /// [`losses`] when it was last known that the ring can be reached.
    losses: u64,
    next_avail: u16,
    /// `avail.idx` as last read: what lies before it may be fetched.
    seen_avail: u16,
    /// Where the next used element goes.
    next_used: u16,
    /// `used.idx` as the guest sees it.
    published: u16,
    /// `used.idx` when it was last found out whether the driver wants an
    /// interrupt.
    signalled: u16,
    /// Answers that came while the ring was not in memory: at most one for
    /// each head.
    unplaced: Vec<(u16, u32)>,
    /// Outlives this process; kept if the front-end wants it.
    record: Option<Record>,
    /// Where writes to the used ring are logged, while they are.
    used_log: Option<UsedLog>,
    /// The driver was asked to kick.
    armed: bool,
    broken: bool,
}

impl Ring {
    /// A ring at these addresses; the used index comes from guest memory
    /// (VU-16). `None` if it does not lie in guest memory, aligned, or if the
    /// size is not a power of two.
    pub(crate) fn new(
        memory: &Arc<Memory>,
        size: u16,
        addresses: RingAddresses,
        next_avail: u16,
        event_idx: bool,
    ) -> Option<Self> {
        if !size.is_power_of_two() {
            return None;
        }
        let losses_before = losses();
        let place = Place::find(memory, addresses, size, event_idx)?;
        let used = u16::from_le(place.used(1).load(Ordering::Acquire));
        if losses() != losses_before && place.is_lost(addresses) {
            return None;
        }
        Some(Self {
            size,
            event_idx,
            addresses,
            place: Some(place),
            losses: losses_before,
            next_avail,
            seen_avail: next_avail,
            next_used: used,
            published: used,
            signalled: used,
            unplaced: Vec::with_capacity(usize::from(size)),
            record: None,
            used_log: None,
            armed: false,
            broken: false,
        })
    }

    /// What is in flight is recorded.
    pub(crate) fn is_recorded(&self) -> bool {
        self.record.as_ref().is_some_and(|record| !record.is_lost())
    }

    /// Keeps a record of what is in flight, and takes over what a predecessor
    /// has left in it: returns the heads it has fetched and not answered, in
    /// that order. They are carried out before anything is fetched, which
    /// goes on behind them (VU-32, VU-33). `None`: the record is not usable.
    pub(crate) fn recover(&mut self, region: Region) -> Option<Vec<u16>> {
        let (record, heads) = region.recover(self.size, self.published)?;
        if record.is_lost() {
            return None;
        }
        let in_flight = u16::try_from(heads.len()).ok()?;
        self.next_avail = self.published.wrapping_add(in_flight);
        self.seen_avail = self.next_avail;
        self.record = Some(record);
        Some(heads)
    }

    /// The chain that was popped last is about to be carried out.
    pub(crate) fn fetched(&mut self, head: u16) {
        if let Some(record) = &mut self.record {
            record.fetched(head);
        }
    }

    /// Logs writes to the used ring there from now on.
    pub(crate) fn log_used(&mut self, used_log: Option<UsedLog>) {
        self.used_log = used_log;
    }

    /// Uses this memory and these addresses from now on. Returns whether the
    /// ring lies there; if not it rests until it is moved again, and its
    /// answers are kept.
    pub(crate) fn relocate(&mut self, memory: &Arc<Memory>, addresses: RingAddresses) -> bool {
        self.addresses = addresses;
        self.losses = losses();
        self.place = Place::find(memory, addresses, self.size, self.event_idx);
        self.armed = false;
        if self.place.is_some() {
            let mut unplaced = std::mem::take(&mut self.unplaced);
            for (head, len) in unplaced.drain(..) {
                self.put(head, len);
            }
            self.unplaced = unplaced;
        }
        self.place.is_some()
    }

    pub(crate) fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// The ring had buffers before it was started here.
    pub(crate) fn resumed(&self) -> bool {
        self.published != 0
    }

    /// Nothing will be fetched from it, whatever the driver does.
    pub(crate) fn broken(&self) -> bool {
        self.broken
    }

    /// Guest memory does not contain it.
    pub(crate) fn rests(&self) -> bool {
        self.place.is_none()
    }

    /// From now on nothing is.
    pub(crate) fn set_broken(&mut self) {
        self.broken = true;
    }

    /// What a successor would learn from could not be reached.
    pub(crate) fn has_lost_record(&self) -> bool {
        self.record.as_ref().is_some_and(Record::is_lost)
    }

    /// Memory was lost since the ring was last known to be reached, and a part
    /// of the ring with it.
    #[inline(always)]
    fn is_doubtful(&self) -> bool {
        let is_lost = |place: &Place| place.is_lost(self.addresses);
        losses() != self.losses && self.place.as_ref().is_some_and(is_lost)
    }

    /// The driver has offered something that was not taken yet, or is out of
    /// its mind.
    pub(crate) fn has_available(&self) -> bool {
        let Some(place) = self.place.as_ref().filter(|_| !self.broken) else {
            return false;
        };
        u16::from_le(place.avail(1).load(Ordering::Acquire)) != self.next_avail
    }

    /// Chains that the driver has offered and that were not taken yet, as far
    /// as it makes sense.
    pub(crate) fn waiting(&self) -> u16 {
        let Some(place) = &self.place else { return 0 };
        let avail = u16::from_le(place.avail(1).load(Ordering::Acquire));
        avail.wrapping_sub(self.next_avail).min(self.size)
    }

    /// Takes the next chain from the available ring.
    pub(crate) fn pop(&mut self) -> Popped {
        let Some(place) = &self.place else {
            return Popped::Empty;
        };
        if self.broken {
            return Popped::Empty;
        }
        if self.next_avail == self.seen_avail {
            // Acquire: entries and descriptors are read after it (RING-3).
            let avail = u16::from_le(place.avail(1).load(Ordering::Acquire));
            if avail.wrapping_sub(self.next_avail) > self.size {
                if self.is_doubtful() {
                    return Popped::Empty;
                }
                self.broken = true;
                return Popped::Broken;
            }
            self.seen_avail = avail;
            if avail == self.next_avail {
                return Popped::Empty;
            }
        }
        let slot = usize::from(self.next_avail & self.last_slot());
        let head = u16::from_le(place.avail(slot.wrapping_add(2)).load(Ordering::Relaxed));
        self.next_avail = self.next_avail.wrapping_add(1);
        if head < self.size {
            Popped::Head(head)
        } else {
            Popped::OutOfRange(head)
        }
    }

    /// The highest place in the rings: the size is a power of two.
    fn last_slot(&self) -> u16 {
        self.size.wrapping_sub(1)
    }

    /// One read of a descriptor of the ring's own table.
    pub(crate) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let place = self.place.as_ref().filter(|_| index < self.size)?;
        // SAFETY: the table has `size` descriptors of 16 bytes, which `place`
        // keeps mapped.
        Some(unsafe {
            Descriptor::read(place.descriptors.add(usize::from(index).wrapping_mul(16)))
        })
    }

    /// Returns a chain to the driver; it learns of it by [`publish`](Self::publish).
    /// Each head that was popped is answered at most once.
    pub(crate) fn answer(&mut self, head: u16, len: u32) {
        if self.place.is_some() {
            self.put(head, len);
        } else {
            self.unplaced.push((head, len));
        }
    }

    fn put(&mut self, head: u16, len: u32) {
        let Some(place) = &self.place else { return };
        let slot = usize::from(self.next_used & self.last_slot());
        // SAFETY: `slot` is below the size, so the element lies in the used
        // ring, which is 4-aligned and kept mapped by `place`. Volatile, as
        // the guest shares it.
        unsafe {
            let element = place.used.add(used_element(slot)).cast::<u32>();
            element.write_volatile(u32::from(head).to_le());
            element.add(1).write_volatile(len.to_le());
        }
        crash::point();
        if let Some(record) = &mut self.record {
            record.answered(head);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Answers that the driver was not [shown](Self::show) yet.
    pub(crate) fn hidden(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Answers that the driver was shown since it was last found out whether
    /// it wants an [interrupt](Self::wants_interrupt) for them.
    pub(crate) fn untold(&self) -> u16 {
        self.published.wrapping_sub(self.signalled)
    }

    /// Shows the driver what was answered, all at once (RING-13). It may sleep
    /// all the same: see [`wants_interrupt`](Self::wants_interrupt).
    pub(crate) fn show(&mut self) {
        let Some(place) = &self.place else { return };
        if self.next_used == self.published {
            return;
        }
        let before = self.published;
        // Release: the elements are seen before the index (RING-3).
        place
            .used(1)
            .store(self.next_used.to_le(), Ordering::Release);
        if self.is_doubtful() {
            // Nobody may see it: the record has to say so, if there is one.
            self.broken = true;
            return;
        }
        self.published = self.next_used;
        crash::point();
        let batch = self.published.wrapping_sub(before);
        probes::published(batch);
        if let Some(record) = &mut self.record {
            record.published(batch, self.published);
        }
        if let Some(log) = &self.used_log {
            mark_used(log, self.size, before, batch);
        }
    }

    /// Tells whether the driver wants an interrupt for what it was shown since
    /// this was last asked (RING-13, RING-14). Whoever shows something asks
    /// before 2^15 more are shown and before it sleeps.
    pub(crate) fn wants_interrupt(&mut self) -> bool {
        let before = self.signalled;
        let Some(place) = self.place.as_ref().filter(|_| before != self.published) else {
            return false;
        };
        self.signalled = self.published;
        // The driver writes used_event or flags and then looks at used.idx.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = u16::from_le(
                place
                    .avail(2 + usize::from(self.size))
                    .load(Ordering::Relaxed),
            );
            crossed(event, before, self.published)
        } else {
            u16::from_le(place.avail(0).load(Ordering::Relaxed)) & SILENT == 0
        }
    }

    /// Both: shows what was answered, and tells whether the driver wants an
    /// interrupt for that.
    #[cfg(test)]
    pub(crate) fn publish(&mut self) -> bool {
        self.show();
        self.wants_interrupt()
    }

    /// Asks the driver to kick, and tells whether it has already added
    /// something for which it may not have kicked (RING-16).
    pub(crate) fn arm(&mut self) -> bool {
        let Some(place) = &self.place else {
            return false;
        };
        if self.broken {
            return false;
        }
        if !self.armed {
            if self.event_idx {
                let event = place.used(used_element(usize::from(self.size)) / 2);
                event.store(self.next_avail.to_le(), Ordering::Relaxed);
                if let Some(log) = &self.used_log {
                    log.mark(used_element(usize::from(self.size)) as u64, 2);
                }
            }
            // With EVENT_IDX this stays 0 (RING-14), also after a previous
            // owner of the ring.
            place.used(0).store(0, Ordering::Relaxed);
            if let Some(log) = &self.used_log {
                log.mark(0, 2);
            }
            self.armed = true;
            fence(Ordering::SeqCst);
        }
        self.has_available()
    }

    /// The driver need not kick for now. With EVENT_IDX it does not kick again
    /// anyway until avail_event is renewed.
    pub(crate) fn disarm(&mut self) {
        let Some(place) = self.place.as_ref().filter(|_| self.armed) else {
            return;
        };
        if !self.event_idx {
            place.used(0).store(SILENT.to_le(), Ordering::Relaxed);
            if let Some(log) = &self.used_log {
                log.mark(0, 2);
            }
        }
        self.armed = false;
    }

    /// The ring ends here: returns the next avail index. Kicks are left
    /// enabled for whoever serves it next.
    pub(crate) fn end(mut self) -> u16 {
        self.arm();
        self.next_avail
    }
}

/// The offset in a used ring of its element `slot`, and behind the last one of
/// the word for EVENT_IDX; in bytes. Rings have 32768 elements at most.
fn used_element(slot: usize) -> usize {
    slot.wrapping_mul(8).wrapping_add(4)
}

/// Logs the used index and the elements of a batch that began at index
/// `before`.
#[cold]
fn mark_used(log: &UsedLog, size: u16, before: u16, batch: u16) {
    let (batch, first) = (batch.min(size), before & size.wrapping_sub(1));
    let to_the_end = batch.min(size.saturating_sub(first));
    let element = |slot: u16| used_element(usize::from(slot)) as u64;
    let bytes = |elements: u16| u64::from(elements).wrapping_mul(8);
    log.mark(element(first), bytes(to_the_end));
    log.mark(element(0), bytes(batch.saturating_sub(to_the_end)));
    log.mark(2, 2);
}

/// `event` is among the indices `before .. now` (virtio 1.2, 2.7.10).
fn crossed(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

#[cfg(test)]
mod tests;
