//! A small image whose sectors all differ.

/// The size of the image, in bytes.
pub const IMAGE: usize = 4 << 20;

/// A byte of the image as it is at first.
fn byte(offset: usize) -> u8 {
    u8::try_from((offset + offset / 512 + offset / 131_072) % 251).unwrap()
}

/// The bytes of the image as they are at first.
pub fn content(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(byte).collect()
}
