//! One descriptor of a chain (virtio 1.2, 2.7.5), read once into private
//! memory.
#![allow(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

/// A descriptor, copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, packed)]
pub(crate) struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    pub(crate) const NEXT: u16 = 1;
    pub(crate) const WRITE: u16 = 2;
    pub(crate) const INDIRECT: u16 = 4;

    /// Reads 16 bytes of guest memory, once.
    ///
    /// # Safety
    /// They are mapped; alignment does not matter.
    pub(crate) unsafe fn read(from: *const u8) -> Self {
        // SAFETY: promised by the caller; the type is packed and any bytes
        // are valid for it. Volatile, as the guest shares the memory.
        unsafe { from.cast::<Self>().read_volatile() }
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        // SAFETY: the source is an array of 16 bytes.
        unsafe { Self::read(bytes.as_ptr()) }
    }

    pub(crate) fn addr(&self) -> u64 {
        u64::from_le(self.addr)
    }

    pub(crate) fn len(&self) -> u32 {
        u32::from_le(self.len)
    }

    pub(crate) fn next(&self) -> u16 {
        u16::from_le(self.next)
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        u16::from_le(self.flags) & flag != 0
    }

    /// The device writes this buffer.
    pub(crate) fn is_writable(&self) -> bool {
        self.has(Self::WRITE)
    }
}
