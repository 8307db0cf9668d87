//! Guest memory with a driver in it.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use libc::iovec;

use crate::command::RingAddresses;
use crate::memory::{Memory, RegionSpec};

/// A file in memory of `size` bytes.
pub(crate) fn memfd(size: u64) -> File {
    // SAFETY: the name is a C string; a fresh descriptor is owned here.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create: {}", io::Error::last_os_error());
        File::from_raw_fd(fd)
    };
    file.set_len(size).unwrap();
    file
}

/// Guest memory, zero at first.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) memory: Arc<Memory>,
}

impl Guest {
    /// Regions by guest address and size in bytes.
    pub(crate) fn new(regions: &[(u64, u64)]) -> Self {
        let spec = |&(guest, size): &(u64, u64)| RegionSpec {
            guest,
            size,
            user: guest + (1 << 40),
            offset: 0,
        };
        let specs: Vec<_> = regions.iter().map(spec).collect();
        let files = regions.iter().map(|&(_, size)| memfd(size)).collect();
        Self {
            memory: Arc::new(Memory::new(&specs, files).unwrap()),
        }
    }

    fn pieces(&self, at: u64, len: usize) -> Vec<iovec> {
        let mut pieces = Vec::new();
        self.memory.pieces(at, len as u64, &mut pieces).unwrap();
        pieces
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in self.pieces(at, bytes.len()) {
            let (now, later) = rest.split_at(piece.iov_len);
            // SAFETY: the piece is mapped while `memory` is held.
            unsafe {
                piece
                    .iov_base
                    .cast::<u8>()
                    .copy_from_nonoverlapping(now.as_ptr(), now.len())
            };
            rest = later;
        }
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.pieces(at, len) {
            // SAFETY: as in `write`.
            bytes.extend_from_slice(unsafe {
                std::slice::from_raw_parts(piece.iov_base.cast(), piece.iov_len)
            });
        }
        bytes
    }

    pub(crate) fn fill(&self, at: u64, len: usize, byte: u8) {
        self.write(at, &vec![byte; len]);
    }

    pub(crate) fn byte(&self, at: u64) -> u8 {
        self.read(at, 1)[0]
    }

    pub(crate) fn u16(&self, at: u64) -> &AtomicU16 {
        let host = self.memory.host(at, 2).unwrap();
        // SAFETY: mapped while `self` lives; every user keeps it aligned.
        unsafe { AtomicU16::from_ptr(host.cast()) }
    }
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// The bytes of a descriptor.
pub(crate) fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// The bytes of a request header.
pub(crate) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A driver of one ring.
#[derive(Debug)]
pub(crate) struct Driver {
    pub guest: Guest,
    pub(crate) at: RingAddresses,
    pub size: u16,
    /// Next index to offer.
    pub avail: u16,
    /// Next index to look at.
    pub used: u16,
}

impl Driver {
    /// A ring whose parts lie at `base`, which is aligned, one after the other.
    pub(crate) fn new(guest: &Guest, base: u64, size: u16) -> Self {
        let entries = u64::from(size);
        let avail = base + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        Self {
            guest: guest.clone(),
            at: RingAddresses {
                descriptors: base,
                avail,
                used,
            },
            size,
            avail: 0,
            used: 0,
        }
    }

    pub(crate) fn describe(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.guest.write(
            self.at.descriptors + 16 * u64::from(index),
            &descriptor(addr, len, flags, next),
        );
    }

    /// Writes a chain from descriptor `first` on.
    pub(crate) fn chain(&self, first: u16, buffers: &[(u64, u32, u16)]) {
        for (index, &(addr, len, flags)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            self.describe(
                index,
                addr,
                len,
                if last { flags } else { flags | NEXT },
                index + 1,
            );
        }
    }

    pub(crate) fn avail_idx(&self) -> &AtomicU16 {
        self.guest.u16(self.at.avail + 2)
    }

    pub(crate) fn used_idx(&self) -> &AtomicU16 {
        self.guest.u16(self.at.used + 2)
    }

    pub(crate) fn avail_flags(&self) -> &AtomicU16 {
        self.guest.u16(self.at.avail)
    }

    pub(crate) fn used_flags(&self) -> &AtomicU16 {
        self.guest.u16(self.at.used)
    }

    pub(crate) fn used_event(&self) -> &AtomicU16 {
        self.guest.u16(self.at.avail + 4 + 2 * u64::from(self.size))
    }

    pub(crate) fn avail_event(&self) -> &AtomicU16 {
        self.guest.u16(self.at.used + 4 + 8 * u64::from(self.size))
    }

    /// Puts a head into the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.size);
        self.guest
            .u16(self.at.avail + 4 + 2 * slot)
            .store(head, Ordering::Relaxed);
        self.avail = self.avail.wrapping_add(1);
        self.avail_idx().store(self.avail, Ordering::Release);
    }

    /// Heads and lengths that were used since the last call.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        while self.used != self.used_idx().load(Ordering::Acquire) {
            let element = self
                .guest
                .read(self.at.used + 4 + 8 * u64::from(self.used % self.size), 8);
            let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
            taken.push((word(0), word(4)));
            self.used = self.used.wrapping_add(1);
        }
        taken
    }
}
