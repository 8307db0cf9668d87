//! What the verifier writes into a sector, known to the guest's program and to the host's check
//! alike.
//!
//! Every sector says which sector and which generation it is, and the rest follows from those two.
//! So the host can judge an image with no other knowledge, and one number, [`digest`], tells
//! whether each sector holds the very generation that the guest wrote last.

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// Fills `bytes` with what the `generation` of the sector holds; generation 0 is a sector never
/// written.
pub fn fill(bytes: &mut [u8], sector: u64, generation: u64) {
    if generation == 0 {
        bytes.fill(0);
        return;
    }
    let mut state = mix(sector, generation);
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => sector,
            1 => generation,
            _ => {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            }
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The generation found in a sector, or what is wrong with its bytes.
pub fn generation(bytes: &[u8], sector: u64) -> Result<u64, String> {
    let word = |at: usize| {
        bytes[at..at + 8]
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    let found = word(8);
    let mut expected = [0; SECTOR];
    fill(&mut expected, sector, found);
    if bytes == expected {
        Ok(found)
    } else {
        Err(format!(
            "sector {sector} holds a torn or foreign sector: it says sector {}, generation {found}",
            word(0)
        ))
    }
}

/// One sector's share in the digest of a disk; the shares are combined by exclusive or.
pub fn digest(sector: u64, generation: u64) -> u64 {
    if generation == 0 {
        0
    } else {
        mix(sector, generation)
    }
}

/// Spreads the pair over 64 bits; never 0, which would stop the generator in [`fill`].
fn mix(sector: u64, generation: u64) -> u64 {
    let mut value =
        sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.wrapping_mul(0xd6e8_feb8_6659_fd93);
    value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value = (value ^ (value >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ (value >> 32)) | 1
}
