//! Descriptor chains (virtio 1.2, 2.7.5): from indices in guest memory to
//! host buffers. Each descriptor is read once, into private memory (RING-12).
#![allow(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use libc::iovec;

use crate::device::Status;
use crate::memory::copy::{Unreachable, copy};
use crate::memory::{MAX_REGIONS, Memory};
use crate::queue::descriptor::Descriptor;
use crate::queue::request::ChainReader;
use crate::queue::ring::Ring;

/// Pieces of host memory that one request may have in one direction; more
/// make it fail.
pub(crate) const MAX_SEGMENTS: usize = 4096;

/// Descriptors that a chain may have; more than any request needs. A driver
/// that offers longer ones, perhaps all by one table, would have the worker
/// read it for each of them.
pub(crate) const MAX_DESCRIPTORS: u16 = 8192;

/// Pieces of host memory that one request may write, its status among them.
pub(crate) const MOST_RANGES: usize = MAX_SEGMENTS + MAX_REGIONS + 1;

/// The chain has no end that could be found (RING-5, RING-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endless;

#[derive(Debug)]
enum Table {
    Direct,
    /// With its guest address and, if it lies in one region, host address.
    Indirect(u64, Option<*const u8>),
}

/// The descriptors of a chain in order, those of an indirect table in place
/// of the descriptor that points to it. Ends after an error.
#[derive(Debug)]
pub(crate) struct Descriptors<'a> {
    memory: &'a Memory,
    ring: &'a Ring,
    table: Table,
    entries: u16,
    next: Option<u16>,
    /// Descriptors that can still come without one coming twice.
    left: u16,
    /// What `left` was at first, and how many had come before.
    most: u32,
}

impl<'a> Descriptors<'a> {
    pub(crate) fn new(memory: &'a Memory, ring: &'a Ring, head: u16) -> Self {
        let size = ring.size();
        let left = size.min(MAX_DESCRIPTORS);
        Self {
            memory,
            ring,
            table: Table::Direct,
            entries: size,
            next: Some(head),
            left,
            most: u32::from(left),
        }
    }

    /// Descriptors that have come, also those that came in vain.
    fn steps(&self) -> u32 {
        self.most.saturating_sub(u32::from(self.left))
    }

    fn read(&self, index: u16) -> Option<Descriptor> {
        let offset = 16 * usize::from(index);
        match self.table {
            Table::Direct => self.ring.descriptor(index),
            // SAFETY: the whole table was found in one region, which `memory`
            // keeps mapped, and the index is below its number of entries.
            Table::Indirect(_, Some(host)) => Some(unsafe { Descriptor::read(host.add(offset)) }),
            Table::Indirect(guest, None) => self.read_across(guest, offset),
        }
    }

    /// Reads a descriptor of a table that lies in several regions.
    fn read_across(&self, table: u64, offset: usize) -> Option<Descriptor> {
        let guest = table.checked_add(u64::try_from(offset).ok()?)?;
        if let Some(host) = self.memory.host(guest, 16) {
            // SAFETY: all of it is mapped as long as `memory` is held.
            return Some(unsafe { Descriptor::read(host) });
        }
        let mut bytes = [0; 16];
        for (at, byte) in (guest..=guest.checked_add(15)?).zip(&mut bytes) {
            // SAFETY: this byte is mapped as long as `memory` is held.
            *byte = unsafe { self.memory.host(at, 1)?.read_volatile() };
        }
        Some(Descriptor::from_bytes(bytes))
    }

    fn enter(&mut self, pointer: &Descriptor) -> Result<(), Endless> {
        let nested = matches!(self.table, Table::Indirect(..));
        let entries = u16::try_from(pointer.len() / 16).map_err(|_| Endless)?;
        if nested
            || pointer.has(Descriptor::NEXT)
            || !pointer.len().is_multiple_of(16)
            || entries == 0
        {
            return Err(Endless);
        }
        let host = self.memory.host(pointer.addr(), u64::from(pointer.len()));
        self.table = Table::Indirect(pointer.addr(), host.map(<*mut u8>::cast_const));
        let steps = self.steps();
        self.entries = entries;
        self.left = entries.min(MAX_DESCRIPTORS);
        self.most = steps.saturating_add(u32::from(self.left));
        Ok(())
    }

    fn step(&mut self, index: u16) -> Result<Descriptor, Endless> {
        if index >= self.entries {
            return Err(Endless);
        }
        self.left = self.left.checked_sub(1).ok_or(Endless)?;
        let descriptor = self.read(index).ok_or(Endless)?;
        if descriptor.has(Descriptor::INDIRECT) {
            self.enter(&descriptor)?;
            return self.step(0);
        }
        if descriptor.has(Descriptor::NEXT) {
            self.next = Some(descriptor.next());
        }
        Ok(descriptor)
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Result<Descriptor, Endless>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next.take()?;
        Some(self.step(index))
    }
}

/// The last writable byte of a chain, where the driver expects the status.
#[derive(Debug)]
pub(crate) struct StatusByte(*mut u8);

impl StatusByte {
    /// The byte as a piece of host memory.
    pub(crate) fn piece(&self) -> iovec {
        iovec {
            iov_base: self.0.cast(),
            iov_len: 1,
        }
    }

    /// # Safety
    /// The memory that the chain was walked over is still held.
    pub(crate) unsafe fn write(&self, status: Status) {
        // SAFETY: it is the address of a byte of that memory. Volatile, as the
        // guest shares it.
        unsafe { self.0.write_volatile(status as u8) }
    }
}

/// The buffers of one direction. Room for all that one chain may have is made
/// once.
#[derive(Debug)]
struct Buffers {
    pieces: Vec<iovec>,
    /// The first piece that is not used up, which may be cut at its front.
    first: usize,
    bytes: u64,
    /// Not all pieces are here: there are too many, or the request cannot be
    /// executed anyway.
    partial: bool,
}

impl Buffers {
    fn new() -> Self {
        let pieces = Vec::with_capacity(MAX_SEGMENTS + MAX_REGIONS);
        Self {
            pieces,
            first: 0,
            bytes: 0,
            partial: false,
        }
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.first = 0;
        self.bytes = 0;
        self.partial = false;
    }

    /// Adds a buffer; `false` if that was not possible, and none can be added
    /// any more.
    fn add(&mut self, memory: &Memory, guest: u64, len: u32) -> bool {
        let pieces = memory.pieces(guest, u64::from(len), &mut self.pieces);
        // Chains are bounded in number of 32-bit lengths.
        self.bytes = self.bytes.wrapping_add(u64::from(len));
        pieces.is_some() && self.pieces.len() <= MAX_SEGMENTS
    }

    /// Cuts off the last byte, which is here.
    fn take_last(&mut self) -> Option<StatusByte> {
        let piece = self.pieces.last_mut()?;
        piece.iov_len = piece.iov_len.checked_sub(1)?;
        self.bytes = self.bytes.saturating_sub(1);
        // SAFETY: no piece is empty, so this is the address of its last byte.
        let last = unsafe { piece.iov_base.cast::<u8>().add(piece.iov_len) };
        if piece.iov_len == 0 {
            self.pieces.pop();
        }
        Some(StatusByte(last))
    }

    /// Uses up to `len` bytes at the front, each stretch by `with(host, offset
    /// in what is used, length)`, as long as that goes well.
    fn consume(
        &mut self,
        len: usize,
        mut with: impl FnMut(*mut u8, usize, usize) -> Result<(), Unreachable>,
    ) -> Result<usize, Unreachable> {
        let mut used = 0;
        while used < len
            && let Some(piece) = self.pieces.get_mut(self.first)
        {
            let bytes = piece.iov_len.min(len.saturating_sub(used));
            let host = piece.iov_base.cast::<u8>();
            with(host, used, bytes)?;
            // SAFETY: not beyond the end of the piece.
            piece.iov_base = unsafe { host.add(bytes) }.cast();
            piece.iov_len = piece.iov_len.saturating_sub(bytes);
            if piece.iov_len == 0 {
                self.first = self.first.saturating_add(1);
            }
            used = used.saturating_add(bytes);
            self.bytes = self.bytes.saturating_sub(bytes as u64);
        }
        Ok(used)
    }

    fn rest(&self) -> Option<&[iovec]> {
        self.pieces.get(self.first..).filter(|_| !self.partial)
    }
}

/// Descriptors that are followed in a turn: as many as a full turn of ordinary
/// requests has, and few enough that nobody else waits for long.
const STEPS: u32 = 16 << 10;

/// Room for the pieces of one chain at a time.
#[derive(Debug)]
pub(crate) struct Scratch {
    readable: Buffers,
    writable: Buffers,
    /// Descriptors that may still be followed in this turn; a chain that is
    /// longer is followed all the same.
    steps: u32,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            readable: Buffers::new(),
            writable: Buffers::new(),
            steps: STEPS,
        }
    }

    /// A new turn begins.
    pub(crate) fn begin_turn(&mut self) {
        self.steps = STEPS;
    }

    /// No more chains are to be followed in this turn.
    #[inline(always)]
    pub(crate) fn is_spent(&self) -> bool {
        self.steps == 0
    }

    /// Follows a chain to its end.
    pub(crate) fn walk<'a>(&'a mut self, memory: &'a Memory, ring: &Ring, head: u16) -> Walked<'a> {
        let Self {
            readable,
            writable,
            steps,
        } = self;
        readable.clear();
        writable.clear();
        let mut total = 0u32;
        let mut failed: Option<Failed> = None;
        let mut descriptors = Descriptors::new(memory, ring, head);
        while let Some(descriptor) = descriptors.next() {
            let Ok(descriptor) = descriptor else {
                *steps = steps.saturating_sub(descriptors.steps());
                return Walked::Bad(None);
            };
            let len = descriptor.len();
            if len == 0 {
                continue;
            }
            if let Some(failed) = &mut failed {
                failed.goes_on(readable, writable, descriptor);
                continue;
            }
            let good = match total.checked_add(len) {
                // Without end if the driver wants so, but bounded by the table.
                None => false,
                Some(sum) => {
                    total = sum;
                    if descriptor.is_writable() {
                        writable.add(memory, descriptor.addr(), len)
                    } else {
                        // RING-9: all that is read comes before all that is written.
                        writable.bytes == 0 && readable.add(memory, descriptor.addr(), len)
                    }
                }
            };
            if !good {
                failed = Some(Failed::at(readable, writable, descriptor, total));
            }
        }
        *steps = steps.saturating_sub(descriptors.steps());
        let (sound, status) = match failed {
            None => (true, writable.take_last()),
            Some(failed) => failed.ends(memory, writable),
        };
        match status {
            Some(status) if sound => Walked::Good(
                Chain {
                    memory,
                    readable,
                    writable,
                },
                status,
            ),
            status => Walked::Bad(status),
        }
    }
}

/// A chain that has failed at some buffer: it is followed to its end for the
/// status byte, but no more buffers are looked for.
#[derive(Debug)]
struct Failed {
    /// There are too many pieces, and all else is as it should be.
    sound: bool,
    /// The last buffer to be written since, if there is one.
    last: Option<Descriptor>,
    total: u32,
}

impl Failed {
    #[cold]
    fn at(readable: &mut Buffers, writable: &mut Buffers, at: Descriptor, total: u32) -> Self {
        let too_many = |of: &Buffers| of.pieces.len() > MAX_SEGMENTS;
        let sound = too_many(readable) || too_many(writable);
        readable.partial = true;
        writable.partial = true;
        Self {
            sound,
            last: at.is_writable().then_some(at),
            total,
        }
    }

    #[cold]
    fn goes_on(&mut self, readable: &mut Buffers, writable: &mut Buffers, next: Descriptor) {
        let len = next.len();
        let sum = self.total.checked_add(len);
        self.sound &= sum.is_some();
        self.total = sum.unwrap_or(self.total);
        if next.is_writable() {
            writable.bytes = writable.bytes.wrapping_add(u64::from(len));
            self.last = Some(next);
        } else {
            self.sound &= writable.bytes == 0;
            readable.bytes = readable.bytes.wrapping_add(u64::from(len));
        }
    }

    #[cold]
    fn ends(self, memory: &Memory, writable: &mut Buffers) -> (bool, Option<StatusByte>) {
        let Some(last) = self.last else {
            return (self.sound, writable.take_last());
        };
        // All of the buffer has to be there, not only its end.
        writable.pieces.clear();
        let there = memory.pieces(last.addr(), u64::from(last.len()), &mut writable.pieces);
        (self.sound, there.and_then(|()| writable.take_last()))
    }
}

/// What came of following a chain.
#[derive(Debug)]
pub(crate) enum Walked<'a> {
    /// All buffers are mapped, in order, and there is a status byte.
    Good(Chain<'a>, StatusByte),
    /// The request cannot be executed; a status byte may have been found.
    Bad(Option<StatusByte>),
}

/// The buffers of a chain without its status byte. Bytes that were read or
/// written through [`ChainReader`] are not part of it any more.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    memory: &'a Memory,
    readable: &'a mut Buffers,
    writable: &'a mut Buffers,
}

impl Chain<'_> {
    /// What is left of the buffers that the device reads; `None`: too many.
    pub(crate) fn readable_pieces(&self) -> Option<&[iovec]> {
        self.readable.rest()
    }

    /// All that may be written, but for the status, and the memory it is in;
    /// before anything is.
    pub(crate) fn written(&self) -> (&Memory, &[iovec]) {
        (self.memory, &self.writable.pieces)
    }

    /// What is left of the buffers that the device writes.
    pub(crate) fn writable_pieces(&self) -> Option<&[iovec]> {
        self.writable.rest()
    }
}

impl ChainReader for Chain<'_> {
    fn readable(&self) -> u64 {
        self.readable.bytes
    }

    fn writable(&self) -> u64 {
        self.writable.bytes
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Unreachable> {
        self.readable.consume(into.len(), |host, offset, len| {
            // SAFETY: `host` is a piece of `memory` with at least `len` bytes,
            // and `consume` stays within what it was asked for. The guest may
            // change the bytes meanwhile; any value is valid, and what was
            // copied is all that is looked at.
            unsafe { copy(host, into.as_mut_ptr().add(offset), len) }
        })
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, Unreachable> {
        self.writable.consume(from.len(), |host, offset, len| {
            // SAFETY: as in `read`, the other way round.
            unsafe { copy(from.as_ptr().add(offset), host, len) }
        })
    }
}

#[cfg(test)]
mod tests;
