//! The table of windows: one pointer and one byte each, allocated as untouched zero pages.
#![allow(unsafe_code)]

use crate::map::slab::{Slab, SlabBox};
use crate::sync::{AtomicPtr, AtomicU8, Ordering};

/// Somebody asked for the window and was not answered yet.
pub(crate) const WANTED: u8 = 1;
/// Never evicted.
pub(crate) const PINNED: u8 = 2;
/// The clock knows the window.
pub(crate) const IN_CLOCK: u8 = 4;

pub(crate) struct Table {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// log2 of the bytes of a window.
    pub(crate) shift: u32,
    windows: Box<[AtomicPtr<Slab>]>,
    states: Box<[AtomicU8]>,
}

impl Table {
    pub(crate) fn new(size: u64, shift: u32) -> Table {
        let count = size.div_ceil(1 << shift);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Table {
            size,
            shift,
            windows: null_pointers(count),
            states: zero_bytes(count),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.windows.len()
    }

    /// Bytes of memory the table takes once all of it is touched.
    pub(crate) fn bytes(&self) -> u64 {
        let each = size_of::<AtomicPtr<Slab>>() + size_of::<AtomicU8>();
        u64::try_from(self.len().saturating_mul(each)).unwrap_or(u64::MAX)
    }

    #[inline]
    pub(crate) fn window_of(&self, offset: u64) -> usize {
        usize::try_from(offset >> self.shift).unwrap_or(usize::MAX)
    }

    #[inline]
    pub(crate) fn base(&self, window: usize) -> u64 {
        (window as u64) << self.shift
    }

    /// The bytes of the file in the window, relative to it: less than a window for the last one.
    #[inline]
    pub(crate) fn window_end(&self, window: usize) -> u32 {
        let len = (self.size - self.base(window)).min(1 << self.shift);
        u32::try_from(len).unwrap_or(u32::MAX)
    }

    #[inline]
    pub(crate) fn window(&self, window: usize) -> &AtomicPtr<Slab> {
        &self.windows[window]
    }

    #[inline]
    pub(crate) fn state(&self, window: usize) -> &AtomicU8 {
        &self.states[window]
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for window in &self.windows {
            // SAFETY: a pointer in a table came from `into_raw` and belongs to the table; whoever moves
            // slabs to another table stores null here first.
            drop(unsafe { SlabBox::from_raw(window.load(Ordering::Acquire)) });
        }
    }
}

#[cfg(not(loom))]
fn null_pointers(count: usize) -> Box<[AtomicPtr<Slab>]> {
    // SAFETY: an atomic pointer of all zero bytes is a null pointer.
    unsafe { zeroed(count) }
}

#[cfg(not(loom))]
fn zero_bytes(count: usize) -> Box<[AtomicU8]> {
    // SAFETY: an atomic byte of all zero bytes is 0.
    unsafe { zeroed(count) }
}

/// A slice that costs no memory until it is written: the allocator gets it as zero pages.
///
/// # Safety
/// All zero bytes must be a valid `T`.
#[cfg(not(loom))]
unsafe fn zeroed<T>(count: usize) -> Box<[T]> {
    use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
    let Ok(layout) = Layout::array::<T>(count) else {
        return Box::new([]);
    };
    if layout.size() == 0 {
        return Box::new([]);
    }
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: a fresh allocation of the layout of `[T; count]`, whose zero bytes are valid by contract.
    unsafe {
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(
            memory.cast::<T>(),
            count,
        ))
    }
}

#[cfg(loom)]
fn null_pointers(count: usize) -> Box<[AtomicPtr<Slab>]> {
    (0..count)
        .map(|_| AtomicPtr::new(std::ptr::null_mut()))
        .collect()
}

#[cfg(loom)]
fn zero_bytes(count: usize) -> Box<[AtomicU8]> {
    (0..count).map(|_| AtomicU8::new(0)).collect()
}
