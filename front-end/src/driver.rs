//! virtio-blk requests on a ring (virtio 1.2, 5.2.6).
#![allow(unsafe_code)]

use std::iter::once;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::codes::{feature, status};
use crate::error::{Error, Result};
use crate::memory::{GuestMemory, Region};
use crate::process::limit;
use crate::ring::{Buffer, Ring, Tables};
use crate::ring_memory::{Addresses, RingMemory};

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Data from the disk.
    Read,
    /// Data to the disk.
    Write,
    /// What was written is to be stable.
    Flush,
    /// The serial number, 20 bytes.
    GetId,
    /// Ranges that are not needed any more, as [`Segment`]s.
    Discard,
    /// Ranges that are to read as zeros, as [`Segment`]s.
    WriteZeroes,
    /// Any other type of request.
    Other(u32),
}

impl Op {
    /// The type as it stands in the header.
    pub fn code(self) -> u32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(code) => code,
        }
    }
}

/// A range to discard or to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The first sector.
    pub sector: u64,
    /// The number of sectors.
    pub sectors: u32,
    /// 1 for `unmap`; anything else is not defined.
    pub flags: u32,
}

impl Segment {
    /// As it is written for the device.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// A finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// What the caller gave with the request.
    pub tag: u64,
    /// The status byte; [`status::UNTOUCHED`] if the device wrote none.
    pub status: u8,
    /// How many bytes the device says it has written.
    pub length: u32,
}

/// How a driver uses its ring.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// The size of the ring.
    pub size: u16,
    /// The negotiated device features.
    pub features: u64,
    /// Entries of each indirect table; 0 for none. Without the feature
    /// INDIRECT none are used.
    pub indirect: u16,
}

/// The stride of what each head has for itself: a header of 16 bytes, then
/// the status byte.
const SLOT: u64 = 32;

/// A driver of one queue.
#[derive(Debug)]
pub struct Driver {
    ring: Ring,
    indirect: bool,
    slots: u64,
    slots_start: NonNull<u8>,
    /// By head.
    tags: Box<[u64]>,
    /// By head: where the status byte is mapped.
    statuses: Box<[NonNull<u8>]>,
    end: u64,
    memory: GuestMemory,
    _region: Arc<Region>,
}

// SAFETY: the pointers go to memory that `_region` and `memory` keep mapped.
unsafe impl Send for Driver {}

impl Driver {
    /// A driver whose ring, tables and headers lie from guest address `base`,
    /// a multiple of 64, in one region.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(memory: &GuestMemory, base: u64, setup: Setup) -> Result<Self> {
        let size = u64::from(setup.size);
        let at = Addresses::from(base, setup.size);
        let slots = at.end(setup.size).next_multiple_of(64);
        let tables = slots + SLOT * size;
        let indirect = setup.features & feature::INDIRECT != 0 && setup.indirect > 0;
        let entries = if indirect { setup.indirect } else { 0 };
        let end = (tables + 16 * u64::from(entries) * size).next_multiple_of(64);
        let region = memory.region(base, end - base)?;
        let none = || Error::NoMemory {
            address: slots,
            length: SLOT * size,
        };
        let slots_start = region.pointer(slots, SLOT * size).ok_or_else(none)?;
        let ring = Ring::new(
            memory,
            RingMemory::new(memory, at, setup.size)?,
            setup.features & feature::EVENT_IDX != 0,
            indirect.then_some(Tables {
                address: tables,
                entries,
            }),
        )?;
        Ok(Self {
            ring,
            indirect,
            slots,
            slots_start,
            tags: vec![0; setup.size.into()].into(),
            statuses: vec![slots_start; setup.size.into()].into(),
            end,
            memory: memory.clone(),
            _region: Arc::clone(region),
        })
    }

    /// The driver as it is now, over a copy of its guest's memory: that of a
    /// guest that was saved and restored.
    ///
    /// # Errors
    /// As [`Ring::over`].
    pub fn over(&self, memory: &GuestMemory) -> Result<Self> {
        let length = SLOT * self.tags.len() as u64;
        let region = memory.region(self.slots, length)?;
        let slots_start = region.pointer(self.slots, length);
        let slots_start = slots_start.ok_or(Error::NoMemory {
            address: self.slots,
            length,
        })?;
        let status = |head| {
            // SAFETY: a slot for each head is mapped there, as was just looked up.
            unsafe { slots_start.add(32 * head + 16) }
        };
        Ok(Self {
            ring: self.ring.over(memory)?,
            indirect: self.indirect,
            slots: self.slots,
            slots_start,
            tags: self.tags.clone(),
            statuses: (0..self.tags.len()).map(status).collect(),
            end: self.end,
            memory: memory.clone(),
            _region: Arc::clone(region),
        })
    }

    /// The first guest address after what the driver uses.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The ring, to put anything there. Chains added so come back from
    /// [`pop`](Self::pop) with the tag of an earlier request.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Adds a request: its header, `data`, and the status byte, each a
    /// descriptor. False if the ring has no room. Goes out with
    /// [`publish`](Self::publish).
    #[inline]
    pub fn submit(&mut self, op: Op, sector: u64, data: &[Buffer], tag: u64) -> bool {
        let Some(head) = self.ring.next_head() else {
            return false;
        };
        let slot = SLOT * u64::from(head);
        let address = self.slots + slot;
        // The slot is that of a head that is not in flight.
        let status = self.write_slot(usize::from(head), op, sector);
        let buffers = once(Buffer::readable(address, 16))
            .chain(data.iter().copied())
            .chain(once(Buffer::writable(address + 16, 1)));
        let added = if self.indirect {
            self.ring.add_indirect(buffers)
        } else {
            self.ring.add(buffers)
        };
        if added.is_none() {
            return false;
        }
        self.tags[usize::from(head)] = tag;
        self.statuses[usize::from(head)] = status;
        true
    }

    /// Writes the header and an untouched status; where the status is mapped.
    #[inline]
    fn write_slot(&self, head: usize, op: Op, sector: u64) -> NonNull<u8> {
        debug_assert!(head < self.tags.len());
        // SAFETY: `new` has checked that a slot for each head is mapped, on
        // addresses aligned to the slot, and the region is kept.
        unsafe {
            let slot = self.slots_start.add(32 * head);
            let at = slot.as_ptr();
            AtomicU32::from_ptr(at.cast()).store(op.code().to_le(), Ordering::Relaxed);
            AtomicU32::from_ptr(at.add(4).cast()).store(0, Ordering::Relaxed);
            AtomicU64::from_ptr(at.add(8).cast()).store(sector.to_le(), Ordering::Relaxed);
            AtomicU8::from_ptr(at.add(16)).store(status::UNTOUCHED, Ordering::Relaxed);
            slot.add(16)
        }
    }

    /// Adds a chain as it is, header and status included; the status byte is
    /// read from guest address `status_at`, where nothing is written first.
    ///
    /// # Errors
    /// [`Error::Full`], and no memory at `status_at`.
    pub fn submit_chain(
        &mut self,
        chain: &[Buffer],
        status_at: u64,
        indirect: bool,
        tag: u64,
    ) -> Result<u16> {
        let none = Error::NoMemory {
            address: status_at,
            length: 1,
        };
        let region = self.memory.region(status_at, 1)?;
        let status = region.pointer(status_at, 1).ok_or(none)?;
        let chain = chain.iter().copied();
        let added = if indirect {
            self.ring.add_indirect(chain)
        } else {
            self.ring.add(chain)
        };
        let head = added.ok_or(Error::Full)?;
        self.tags[usize::from(head)] = tag;
        self.statuses[usize::from(head)] = status;
        Ok(head)
    }

    /// Lets the device see what was submitted; whether it was kicked.
    ///
    /// # Errors
    /// As [`Ring::publish`].
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        self.ring.publish()
    }

    /// Takes a finished request, without waiting.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Done>> {
        let Some(used) = self.ring.pop()? else {
            return Ok(None);
        };
        let head = usize::from(used.head);
        // SAFETY: the pointer was found in memory that `memory` or `_region`
        // keeps, when the request was submitted.
        let status = unsafe { AtomicU8::from_ptr(self.statuses[head].as_ptr()) };
        Ok(Some(Done {
            tag: self.tags[head],
            status: status.load(Ordering::Relaxed),
            length: used.length,
        }))
    }

    /// Takes a finished request, after a call if there is none yet.
    ///
    /// # Errors
    /// As [`Ring::wait`] and [`Ring::pop`].
    pub fn wait(&mut self, limit: Duration) -> Result<Done> {
        loop {
            if let Some(done) = self.pop()? {
                return Ok(done);
            }
            self.ring.wait(limit)?;
        }
    }

    /// Submits one request and waits for the next that ends: this one, if no
    /// other is in flight.
    ///
    /// # Errors
    /// [`Error::Full`], and as [`wait`](Self::wait).
    pub fn run(&mut self, op: Op, sector: u64, data: &[Buffer]) -> Result<Done> {
        if !self.submit(op, sector, data, u64::MAX) {
            return Err(Error::Full);
        }
        self.publish()?;
        self.wait(limit())
    }

    /// Reads sectors into guest memory at `to`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn read(&mut self, sector: u64, to: u64, length: u32) -> Result<Done> {
        self.run(Op::Read, sector, &[Buffer::writable(to, length)])
    }

    /// Writes sectors from guest memory at `from`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn write(&mut self, sector: u64, from: u64, length: u32) -> Result<Done> {
        self.run(Op::Write, sector, &[Buffer::readable(from, length)])
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn flush(&mut self) -> Result<Done> {
        self.run(Op::Flush, 0, &[])
    }

    /// Reads the serial number into 20 bytes of guest memory at `to`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn get_id(&mut self, to: u64) -> Result<Done> {
        self.run(Op::GetId, 0, &[Buffer::writable(to, 20)])
    }

    /// Discards or zeroes segments, which are written to guest memory `at`.
    ///
    /// # Errors
    /// As [`run`](Self::run), and no memory there.
    pub fn segments(&mut self, op: Op, at: u64, segments: &[Segment]) -> Result<Done> {
        let bytes: Vec<_> = segments.iter().flat_map(|s| s.bytes()).collect();
        self.memory.write(at, &bytes)?;
        let length = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge("the list"))?;
        self.run(op, 0, &[Buffer::readable(at, length)])
    }
}
