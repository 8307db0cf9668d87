//! Guest memory: regions of memfds, shared with the back-end.
#![allow(unsafe_code)]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::sys::{self, Mapping};

/// Where a region of guest memory appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The guest physical address.
    pub guest: u64,
    /// The address that the front-end tells the back-end, not where it is
    /// mapped here.
    pub user: u64,
    /// The size in bytes.
    pub size: u64,
}

/// A region of guest memory, mapped here.
#[derive(Debug)]
pub struct Region {
    place: Place,
    file: File,
    offset: u64,
    mapping: Mapping,
}

impl Region {
    /// A region with a sealed file of its own, as QEMU makes them.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(place: Place) -> Result<Self> {
        let file = sys::sealed_memory(place.size).map_err(|e| Error::Host("make memory", e))?;
        Self::in_file(place, file, 0)
    }

    /// A region that begins `offset` bytes into a file, which should be long
    /// enough.
    ///
    /// # Errors
    /// The file cannot be mapped so.
    pub fn in_file(place: Place, file: File, offset: u64) -> Result<Self> {
        let length = usize::try_from(place.size).map_err(|_| Error::TooLarge("the region"))?;
        let mapping =
            Mapping::new(&file, offset, length).map_err(|e| Error::Host("map memory", e))?;
        Ok(Self {
            place,
            file,
            offset,
            mapping,
        })
    }

    /// Where it appears.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The file that is shared.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it begins in the file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where `address` lies in the region, if `length` bytes from there do.
    fn offset_of(&self, address: u64, length: u64) -> Option<u64> {
        let offset = address.checked_sub(self.place.guest)?;
        (offset.checked_add(length)? <= self.place.size).then_some(offset)
    }

    /// Where the guest address is mapped, if `length` bytes from there lie in
    /// the region. Others write there at any time: only for volatile, atomic
    /// or raw access, while the region exists.
    pub fn pointer(&self, address: u64, length: u64) -> Option<NonNull<u8>> {
        let offset = usize::try_from(self.offset_of(address, length)?).ok()?;
        debug_assert!(offset <= self.mapping.length());
        // SAFETY: the offset is within the mapping, which is `size` bytes long.
        Some(unsafe { self.mapping.start().add(offset) })
    }
}

/// All memory of a guest. Clones share the regions.
#[derive(Debug, Clone, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// Memory in one region from guest address 0, at some user address.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn flat(size: u64) -> Result<Self> {
        let mut memory = Self::default();
        memory.add(Region::new(Place {
            guest: 0,
            user: 0x7f00_0000_0000,
            size,
        })?);
        Ok(memory)
    }

    /// A copy of all of it, at the same addresses.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn copied(&self) -> Result<Self> {
        let mut copy = Self::default();
        for region in &self.regions {
            let Place { guest, size, .. } = region.place;
            copy.add(Region::new(region.place)?);
            let length = usize::try_from(size).map_err(|_| Error::TooLarge("the memory"))?;
            copy.write(guest, &self.read(guest, length)?)?;
        }
        Ok(copy)
    }

    /// Adds a region, which may be adjacent to others.
    pub fn add(&mut self, region: Region) -> Arc<Region> {
        let region = Arc::new(region);
        self.regions.push(Arc::clone(&region));
        region
    }

    /// Takes the region at a guest address away. What uses it keeps it.
    pub fn remove(&mut self, guest: u64) -> Option<Arc<Region>> {
        let index = self.regions.iter().position(|r| r.place.guest == guest)?;
        Some(self.regions.remove(index))
    }

    /// The regions, in the order in which they were added.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map(Arc::as_ref)
    }

    /// The regions as they are shared with rings and sessions.
    pub(crate) fn shared(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The region that holds all of a range.
    ///
    /// # Errors
    /// There is none.
    pub fn region(&self, address: u64, length: u64) -> Result<&Arc<Region>> {
        let holds = |region: &&Arc<Region>| region.offset_of(address, length).is_some();
        let none = Error::NoMemory { address, length };
        self.regions.iter().find(holds).ok_or(none)
    }

    /// The user address of a guest address.
    ///
    /// # Errors
    /// There is no memory.
    pub fn user(&self, address: u64) -> Result<u64> {
        let place = self.region(address, 1)?.place;
        Ok(address - place.guest + place.user)
    }

    /// Calls `visit` with each piece of a range that lies in one region: its
    /// start and the range within `0..length`.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        mut visit: impl FnMut(NonNull<u8>, std::ops::Range<usize>),
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            let at = address + done as u64;
            let region = self.region(at, 1)?;
            let left = region.place.guest + region.place.size - at;
            let piece = usize::try_from(left).map_or(length - done, |l| l.min(length - done));
            let none = Error::NoMemory {
                address: at,
                length: piece as u64,
            };
            visit(
                region.pointer(at, piece as u64).ok_or(none)?,
                done..done + piece,
            );
            done += piece;
        }
        Ok(())
    }

    /// Writes bytes, over the borders of regions.
    ///
    /// # Errors
    /// There is no memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.pieces(address, bytes.len(), |to, range| {
            let from = &bytes[range];
            // SAFETY: the piece is mapped and as long as `from`, which lies
            // elsewhere. The device may look at the same bytes; it is another
            // process.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        })
    }

    /// Fills a range with one byte.
    ///
    /// # Errors
    /// There is no memory.
    pub fn fill(&self, address: u64, length: usize, byte: u8) -> Result<()> {
        self.pieces(address, length, |to, range| {
            // SAFETY: the piece is mapped and that long.
            unsafe { std::ptr::write_bytes(to.as_ptr(), byte, range.len()) };
        })
    }

    /// Reads bytes, over the borders of regions.
    ///
    /// # Errors
    /// There is no memory.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_into(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads as many bytes as `to` holds, over the borders of regions.
    ///
    /// # Errors
    /// There is no memory.
    pub fn read_into(&self, address: u64, to: &mut [u8]) -> Result<()> {
        self.pieces(address, to.len(), |from, range| {
            let to = &mut to[range];
            // SAFETY: the piece is mapped and as long as `to`, which lies
            // elsewhere.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjacent() -> GuestMemory {
        let mut memory = GuestMemory::default();
        for (guest, user) in [(0x1000, 0x5000_0000), (0x3000, 0x1000_0000)] {
            let place = Place {
                guest,
                user,
                size: 0x2000,
            };
            memory.add(Region::new(place).unwrap());
        }
        memory
    }

    #[test]
    fn ranges_cross_adjacent_regions_and_nothing_else() {
        let memory = adjacent();
        let bytes: Vec<u8> = (0..=255).collect();
        memory.write(0x2f80, &bytes).unwrap();
        assert_eq!(memory.read(0x2f80, 256).unwrap(), bytes);
        assert_eq!(memory.read(0x3000, 1).unwrap(), [128]);
        assert!(memory.region(0x2f80, 256).is_err());
        assert!(memory.read(0x4fff, 2).is_err());
        assert!(memory.read(0xfff, 1).is_err());
    }

    #[test]
    fn user_addresses_follow_their_regions() {
        let mut memory = adjacent();
        assert_eq!(memory.user(0x2fff).unwrap(), 0x5000_1fff);
        assert_eq!(memory.user(0x3001).unwrap(), 0x1000_0001);
        assert!(memory.remove(0x3000).is_some());
        assert!(memory.user(0x3001).is_err());
        assert!(memory.remove(0x3000).is_none());
    }

    #[test]
    fn two_mappings_of_one_file_show_the_same_bytes() {
        let file = sys::sealed_memory(0x4000).unwrap();
        let mut memory = GuestMemory::default();
        for (guest, offset) in [(0, 0x2000), (0x10_0000, 0)] {
            let place = Place {
                guest,
                user: guest,
                size: 0x4000 - offset,
            };
            memory.add(Region::in_file(place, file.try_clone().unwrap(), offset).unwrap());
        }
        memory.fill(0x10, 3, 7).unwrap();
        assert_eq!(memory.read(0x10_200f, 5).unwrap(), [0, 7, 7, 7, 0]);
    }
}
