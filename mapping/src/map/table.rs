//! The table of windows: one pointer and one byte each, allocated as untouched zero pages.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::map::slab::{Slab, SlabBox};
use crate::sync::{AtomicPtr, AtomicU8, Ordering};

/// Somebody asked for the window and was not answered yet.
pub(crate) const WANTED: u8 = 1;
/// Never evicted.
pub(crate) const PINNED: u8 = 2;
/// The clock knows the window.
pub(crate) const IN_CLOCK: u8 = 4;
/// A hold has ended in the window since the filler last looked at it.
pub(crate) const SPOILT: u8 = 8;
/// The bits and the place of what [`filling`](crate::map::filling) counts.
pub(crate) const LEVEL: u8 = 0x70;
pub(crate) const LEVEL_SHIFT: u32 = 4;
/// The window was being filled, and was found to have become quiet.
pub(crate) const CALM: u8 = 0x80;

/// Bytes of a window in the table.
const EACH: u64 = (size_of::<AtomicPtr<Slab>>() + size_of::<AtomicU8>()) as u64;

/// log2 of the windows whose pointers are a page of memory: what is touched together.
const PART: u32 = 9;

/// The part of a table that a window is in.
pub(crate) fn part_of(window: usize) -> usize {
    window >> PART
}

/// The windows of a part, in a table of `len`.
pub(crate) fn windows_of(part: usize, len: usize) -> Range<usize> {
    (part << PART).min(len)..((part + 1) << PART).min(len)
}

pub(crate) struct Table {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// log2 of the bytes of a window.
    pub(crate) shift: u32,
    windows: Box<[AtomicPtr<Slab>]>,
    states: Box<[AtomicU8]>,
}

impl Table {
    /// `None` if there is not that much memory.
    pub(crate) fn new(size: u64, shift: u32) -> Option<Table> {
        let count = usize::try_from(size.div_ceil(1 << shift)).ok()?;
        Some(Table {
            size,
            shift,
            windows: null_pointers(count)?,
            states: zero_bytes(count)?,
        })
    }

    /// Bytes of memory that the table of a file of `size` bytes takes once all of it is touched.
    pub(crate) fn bytes_for(size: u64, shift: u32) -> u64 {
        size.div_ceil(1 << shift).saturating_mul(EACH)
    }

    pub(crate) fn len(&self) -> usize {
        self.windows.len()
    }

    /// Bytes of memory the table takes once all of it is touched.
    pub(crate) fn bytes(&self) -> u64 {
        Table::bytes_for(self.size, self.shift)
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

impl Table {
    /// Frees the slab of a window of a table that nobody else uses any more.
    pub(crate) fn free(&mut self, window: usize) {
        let raw = self.windows[window].swap(std::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: a pointer in a table came from `into_raw` and belongs to the table; whoever moves
        // slabs to another table stores null here first.
        drop(unsafe { SlabBox::from_raw(raw) });
    }
}

#[cfg(not(loom))]
fn null_pointers(count: usize) -> Option<Box<[AtomicPtr<Slab>]>> {
    // SAFETY: an atomic pointer of all zero bytes is a null pointer.
    unsafe { zeroed(count) }
}

#[cfg(not(loom))]
fn zero_bytes(count: usize) -> Option<Box<[AtomicU8]>> {
    // SAFETY: an atomic byte of all zero bytes is 0.
    unsafe { zeroed(count) }
}

/// A slice that costs no memory until it is written: the allocator gets it as zero pages. `None` if there
/// is not so much.
///
/// # Safety
/// All zero bytes must be a valid `T`.
#[cfg(not(loom))]
unsafe fn zeroed<T>(count: usize) -> Option<Box<[T]>> {
    use std::alloc::{Layout, alloc_zeroed};
    let layout = Layout::array::<T>(count).ok()?;
    if layout.size() == 0 {
        return Some(Box::new([]));
    }
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: a fresh allocation of the layout of `[T; count]`, whose zero bytes are valid by contract.
    Some(unsafe {
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(
            memory.cast::<T>(),
            count,
        ))
    })
}

#[cfg(loom)]
fn null_pointers(count: usize) -> Option<Box<[AtomicPtr<Slab>]>> {
    let null = |_| AtomicPtr::new(std::ptr::null_mut());
    Some((0..count).map(null).collect())
}

#[cfg(loom)]
fn zero_bytes(count: usize) -> Option<Box<[AtomicU8]>> {
    Some((0..count).map(|_| AtomicU8::new(0)).collect())
}
