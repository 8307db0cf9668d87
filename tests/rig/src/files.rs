//! Files: what is in them, and what is asked of the file system under them.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Opens for direct I/O.
pub fn open_direct(path: impl AsRef<Path>) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

/// A new file of `len` zero bytes, open for reading and writing through the page cache.
pub fn create(path: impl AsRef<Path>, len: u64) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(len).unwrap();
    file
}

/// The whole file, as the file system gives it.
pub fn read_all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Bytes that tell where in which file they belong, never all zeros in a sector.
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for word in 0..len.div_ceil(8) as u64 {
        let at = offset / 8 + word;
        let mixed = (at ^ seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        bytes.extend_from_slice(&mixed.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// fallocate(2), with its `mode`.
pub fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> std::io::Result<()> {
    let (offset, len) = (i64::try_from(offset).unwrap(), i64::try_from(len).unwrap());
    // SAFETY: no memory is involved.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Frees the blocks of a range, which reads as zeros then.
pub fn punch(file: &File, offset: u64, len: u64) {
    fallocate(
        file,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
    .unwrap();
}

/// FICLONE: the whole of `from` becomes shared with `to`.
pub fn reflink(from: &File, to: &File) -> std::io::Result<()> {
    const FICLONE: libc::c_ulong = 0x4004_9409;
    // SAFETY: no memory is involved.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A buffer for direct I/O; the kernel takes what `Vec` gives only by chance.
pub fn write_direct(file: &File, bytes: &[u8], offset: usize) {
    try_write_direct(file, bytes, offset).unwrap();
}

/// As [`write_direct`], where there may be no room.
pub fn try_write_direct(file: &File, bytes: &[u8], offset: usize) -> std::io::Result<()> {
    let mut room = vec![0; bytes.len() + 4096];
    let start = room.as_ptr().align_offset(4096);
    room[start..start + bytes.len()].copy_from_slice(bytes);
    file.write_all_at(&room[start..start + bytes.len()], offset as u64)
}

/// What is on the disk of a file, past the page cache.
pub fn read_direct(path: &Path) -> Vec<u8> {
    const CHUNK: usize = 1 << 20;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut room = vec![0; CHUNK + 4096];
    let start = room.as_ptr().align_offset(4096);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let chunk = &mut room[start..start + CHUNK];
        let count = file.read_at(chunk, bytes.len() as u64).unwrap();
        assert!(count > 0, "{} has become shorter", path.display());
        bytes.extend_from_slice(&chunk[..count]);
    }
    bytes
}
