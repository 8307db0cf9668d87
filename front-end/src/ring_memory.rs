//! The three parts of a split virtqueue as they lie in guest memory, with no
//! rules about what is written there (virtio 1.2, 2.7).
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::memory::{GuestMemory, Region};

/// Where the parts of a ring lie, as guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The descriptor table; a multiple of 16.
    pub descriptors: u64,
    /// The available ring; a multiple of 2.
    pub avail: u64,
    /// The used ring; a multiple of 4.
    pub used: u64,
}

impl Addresses {
    /// The parts of a ring of `size` one after the other from `base`.
    pub fn from(base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        Self {
            descriptors: base,
            avail,
            used: (avail + avail_bytes(size)).next_multiple_of(64),
        }
    }

    /// The first address after the used ring.
    pub fn end(&self, size: u16) -> u64 {
        self.used + used_bytes(size)
    }
}

fn avail_bytes(size: u16) -> u64 {
    6 + 2 * u64::from(size)
}

fn used_bytes(size: u16) -> u64 {
    6 + 8 * u64::from(size)
}

/// One descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// The guest address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Flags of [`descriptor`](crate::codes::descriptor).
    pub flags: u16,
    /// The next one, with NEXT.
    pub next: u16,
}

/// A table of descriptors in guest memory.
#[derive(Debug)]
pub(crate) struct Table(NonNull<u8>);

impl Table {
    /// # Safety
    /// `start` is the start of mapped memory, aligned to 8, for as many
    /// descriptors as will be written, and stays so.
    pub(crate) unsafe fn new(start: NonNull<u8>) -> Self {
        Self(start)
    }

    /// # Safety
    /// The table has more than `index` descriptors.
    pub(crate) unsafe fn set(&self, index: usize, descriptor: Descriptor) {
        // SAFETY: the caller's promise; 16 bytes from there are mapped and
        // the fields are aligned, as the table is.
        unsafe {
            let at = self.0.add(16 * index).as_ptr();
            AtomicU64::from_ptr(at.cast()).store(descriptor.address.to_le(), Ordering::Relaxed);
            AtomicU32::from_ptr(at.add(8).cast())
                .store(descriptor.length.to_le(), Ordering::Relaxed);
            AtomicU16::from_ptr(at.add(12).cast())
                .store(descriptor.flags.to_le(), Ordering::Relaxed);
            AtomicU16::from_ptr(at.add(14).cast())
                .store(descriptor.next.to_le(), Ordering::Relaxed);
        }
    }
}

/// A ring in guest memory. Every value can be read and written, sensible or
/// not; positions are taken modulo the size.
#[derive(Debug)]
pub struct RingMemory {
    addresses: Addresses,
    size: u16,
    descriptors: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    /// Keep what the pointers point to.
    _regions: [Arc<Region>; 3],
}

// SAFETY: the pointers go to memory that the regions keep mapped, and all
// access is atomic.
unsafe impl Send for RingMemory {}
// SAFETY: as above.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// The ring of `size`, a power of two, at these addresses. Its memory is
    /// left as it is.
    ///
    /// # Errors
    /// [`Error::NoMemory`], also for an address that is not aligned.
    pub fn new(memory: &GuestMemory, addresses: Addresses, size: u16) -> Result<Self> {
        let find = |address: u64, length: u64, align: u64| {
            let none = || Error::NoMemory { address, length };
            let region = memory.region(address, length)?;
            let pointer = region.pointer(address, length).ok_or_else(none)?;
            let aligned = (pointer.as_ptr() as usize as u64).is_multiple_of(align);
            let found = aligned.then(|| (pointer, Arc::clone(region)));
            found.ok_or_else(none)
        };
        if !size.is_power_of_two() {
            return Err(Error::TooLarge("a ring size that is no power of two"));
        }
        let table = 16 * u64::from(size);
        let (descriptors, first) = find(addresses.descriptors, table, 16)?;
        let (avail, second) = find(addresses.avail, avail_bytes(size), 2)?;
        let (used, third) = find(addresses.used, used_bytes(size), 4)?;
        Ok(Self {
            addresses,
            size,
            descriptors,
            avail,
            used,
            _regions: [first, second, third],
        })
    }

    /// Where it lies.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    fn slot(&self, position: u16) -> usize {
        usize::from(position & (self.size - 1))
    }

    /// The `index`th 16-bit field of the available ring.
    fn avail_field(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < usize::from(self.size) + 3);
        // SAFETY: the ring has size + 3 such fields, mapped and aligned as
        // `new` has checked; callers stay below. They live as long as `self`.
        unsafe { AtomicU16::from_ptr(self.avail.as_ptr().cast::<u16>().add(index)) }
    }

    /// The 16-bit field of the used ring at a byte offset.
    fn used_field(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset <= 4 + 8 * usize::from(self.size));
        // SAFETY: the used ring has 6 + 8 * size bytes, mapped and aligned as
        // `new` has checked; callers stay within. It lives as long as `self`.
        unsafe { AtomicU16::from_ptr(self.used.as_ptr().add(offset).cast()) }
    }

    /// The 32-bit field of the used ring at a byte offset.
    fn used_word(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= 4 + 8 * usize::from(self.size));
        // SAFETY: as in `used_field`, aligned to 4.
        unsafe { AtomicU32::from_ptr(self.used.as_ptr().add(offset).cast()) }
    }

    /// Writes a descriptor.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        // SAFETY: the table has `size` descriptors, aligned and mapped as
        // `new` has checked.
        unsafe { Table(self.descriptors).set(self.slot(index), descriptor) };
    }

    /// The bytes of the descriptor table, to see whether they change.
    pub fn descriptor_bytes(&self) -> Vec<u8> {
        let length = 16 * usize::from(self.size);
        // SAFETY: the offset is within the table, as `new` has checked.
        let byte = |i| unsafe { self.descriptors.add(i).as_ptr().read_volatile() };
        (0..length).map(byte).collect()
    }

    /// Writes the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.avail_field(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// The index of the available ring.
    pub fn avail_index(&self) -> u16 {
        u16::from_le(self.avail_field(1).load(Ordering::Relaxed))
    }

    /// Publishes everything written before up to an index.
    pub fn set_avail_index(&self, index: u16) {
        self.avail_field(1).store(index.to_le(), Ordering::Release);
    }

    /// Writes an entry of the available ring.
    pub fn set_avail_entry(&self, position: u16, head: u16) {
        let field = self.avail_field(2 + self.slot(position));
        field.store(head.to_le(), Ordering::Relaxed);
    }

    /// At which used index the driver wants to be called (EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        let field = self.avail_field(2 + usize::from(self.size));
        field.store(index.to_le(), Ordering::Relaxed);
    }

    /// The flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.used_field(0).load(Ordering::Relaxed))
    }

    /// The index of the used ring; what was written before it can be seen.
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used_field(2).load(Ordering::Acquire))
    }

    /// An entry of the used ring: the head, and the bytes written.
    pub fn used_entry(&self, position: u16) -> (u32, u32) {
        let at = 4 + 8 * self.slot(position);
        let word = |at| u32::from_le(self.used_word(at).load(Ordering::Relaxed));
        (word(at), word(at + 4))
    }

    /// At which available index the device wants to be kicked (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        let field = self.used_field(4 + 8 * usize::from(self.size));
        u16::from_le(field.load(Ordering::Relaxed))
    }

    /// Sets the flags and the index of both rings to 0.
    pub fn clear(&self) {
        self.set_avail_flags(0);
        self.set_used_event(0);
        self.set_avail_index(0);
        self.write_used(0, 0);
        self.used_field(4 + 8 * usize::from(self.size))
            .store(0, Ordering::Release);
    }

    /// Writes what only a device should write: flags and index of the used
    /// ring.
    pub fn write_used(&self, flags: u16, index: u16) {
        self.used_field(0).store(flags.to_le(), Ordering::Relaxed);
        self.used_field(2).store(index.to_le(), Ordering::Release);
    }

    /// Writes what only a device should write: an entry of the used ring.
    pub fn write_used_entry(&self, position: u16, head: u32, length: u32) {
        let at = 4 + 8 * self.slot(position);
        self.used_word(at).store(head.to_le(), Ordering::Relaxed);
        self.used_word(at + 4)
            .store(length.to_le(), Ordering::Relaxed);
    }

    /// Writes what only a device should write: where it wants to be kicked.
    pub fn write_avail_event(&self, index: u16) {
        let field = self.used_field(4 + 8 * usize::from(self.size));
        field.store(index.to_le(), Ordering::Relaxed);
    }
}
