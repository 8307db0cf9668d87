//! What a device has to make of the bytes in guest memory (virtio 1.2, 2.7), written down apart
//! from the code under test. Guest memory is one file; everything here is an offset in it.

use std::ops::Range;

use vhost_backend::fuzzing::{Place, Region};

/// Bytes of the file behind guest memory.
pub const MEMORY: usize = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Memory tables over the file: with neighbours, with gaps, with odd ends, at the end of addresses.
pub fn tables() -> [Vec<Region>; 4] {
    let region = |guest, size, offset| Region {
        guest,
        size,
        offset,
    };
    [
        vec![
            region(0, 0x4000, 0),
            region(0x4000, 0x2000, 0x4000),
            region(0x1_0000, 0x2000, 0x6000),
        ],
        vec![region(0, 0x4000, 0), region(0x1_0000, 0x2000, 0x6000)],
        vec![
            region(0x4000, 0x2000, 0x2000),
            region(0, 0x2000, 0),
            region(0x2000, 0x2000, 0x4000),
        ],
        vec![
            region(0x104, 0x3e00, 0x104),
            region(u64::MAX - 0x1fff, 0x1fff, 0x6000),
        ],
    ]
}

/// The file offset of a guest address, and the bytes that follow it in its region.
pub fn find(table: &[Region], guest: u64) -> Option<(usize, u64)> {
    table.iter().find_map(|region| {
        let within = guest.checked_sub(region.guest)?;
        (within < region.size).then(|| ((region.offset + within) as usize, region.size - within))
    })
}

/// Where a buffer lies in the file, if all of it is mapped.
fn stretches(table: &[Region], mut guest: u64, len: u32) -> Option<Vec<Range<usize>>> {
    let (mut left, mut found) = (u64::from(len), Vec::new());
    while left > 0 {
        let (offset, bytes) = find(table, guest)?;
        let bytes = bytes.min(left);
        found.push(offset..offset + bytes as usize);
        left -= bytes;
        // All that is left lies behind it.
        guest = guest.wrapping_add(bytes);
    }
    Some(found)
}

/// File offsets of the parts of a ring, if each lies in one region, aligned.
pub fn place(table: &[Region], at: Place, size: u16, event_idx: bool) -> Option<[usize; 3]> {
    let (entries, event) = (u64::from(size), if event_idx { 2 } else { 0 });
    let part = |guest: u64, len: u64, align: u64| {
        let (offset, left) = find(table, guest)?;
        (left >= len && guest % align == 0 && offset as u64 % align == 0).then_some(offset)
    };
    Some([
        part(at[0], 16 * entries, 16)?,
        part(at[1], 4 + 2 * entries + event, 2)?,
        part(at[2], 4 + 8 * entries + event, 4)?,
    ])
}

pub fn u16_at(memory: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(memory[at..at + 2].try_into().unwrap())
}

pub fn u32_at(memory: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
}

/// What a chain is.
#[derive(Debug)]
pub enum Chain {
    /// Without an end: nothing of it may be touched.
    Endless,
    /// Not to be executed; where its status byte is, if there is one.
    Bad(Option<usize>),
    /// The bytes to be read, where those to be written are, and the status byte.
    Good(Vec<u8>, Vec<Range<usize>>, usize),
    /// In so many pieces that it may be refused or executed.
    Long,
}

/// The descriptors of a chain: address, length, writable.
fn descriptors(
    memory: &[u8],
    table: &[Region],
    descriptor_table: usize,
    size: u16,
    head: u16,
) -> Option<Vec<(u64, u32, bool)>> {
    let mut found = Vec::new();
    let (mut indirect, mut entries, mut index) = (None, u32::from(size), u32::from(head));
    let mut steps = 0;
    loop {
        if index >= entries || steps == entries {
            return None;
        }
        steps += 1;
        let mut bytes = [0; 16];
        for (at, byte) in (16 * u64::from(index)..).zip(&mut bytes) {
            *byte = match indirect {
                None => memory[descriptor_table + at as usize],
                Some(guest) => memory[find(table, u64::checked_add(guest, at)?)?.0],
            };
        }
        let addr = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let (len, flags) = (u32_at(&bytes, 8), u16_at(&bytes, 12));
        if flags & INDIRECT != 0 {
            let whole = len > 0 && len % 16 == 0 && len / 16 <= u32::from(u16::MAX);
            if indirect.is_some() || flags & NEXT != 0 || !whole {
                return None;
            }
            (indirect, entries, index, steps) = (Some(addr), len / 16, 0, 0);
            continue;
        }
        found.push((addr, len, flags & WRITE != 0));
        if flags & NEXT == 0 {
            return Some(found);
        }
        index = u16_at(&bytes, 14).into();
    }
}

/// Follows the chain that begins with `head`.
pub fn chain(
    memory: &[u8],
    table: &[Region],
    descriptor_table: usize,
    size: u16,
    head: u16,
) -> Chain {
    let Some(all) = descriptors(memory, table, descriptor_table, size, head) else {
        return Chain::Endless;
    };
    let buffers: Vec<_> = all.into_iter().filter(|(_, len, _)| *len > 0).collect();
    let status = || {
        let &(addr, len, _) = buffers.iter().rfind(|(_, _, writable)| *writable)?;
        Some(stretches(table, addr, len)?.last()?.end - 1)
    };
    let total: u64 = buffers.iter().map(|(_, len, _)| u64::from(*len)).sum();
    let ordered = buffers.is_sorted_by_key(|(_, _, writable)| *writable);
    if !ordered || total > u64::from(u32::MAX) {
        return Chain::Bad(status());
    }
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for &(addr, len, writable) in &buffers {
        match stretches(table, addr, len) {
            Some(stretches) if writable => written.extend(stretches),
            Some(stretches) => read.extend(stretches),
            None => return Chain::Bad(status()),
        }
    }
    if read.len().max(written.len()) > 4000 {
        return Chain::Long;
    }
    let bytes = read
        .into_iter()
        .flat_map(|at| memory[at].to_vec())
        .collect();
    let Some(last) = written.last_mut() else {
        return Chain::Bad(None);
    };
    last.end -= 1;
    let status = last.end;
    Chain::Good(bytes, written, status)
}
