//! Asks a device whether direct reads can be submitted without waiting.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::engine::bounce::Pool;

/// Whether direct reads of an open device can be submitted without waiting
/// (`RWF_NOWAIT`): `None` if so, else the median time of a read of `block`
/// bytes that waits.
///
/// # Errors
/// The device cannot be read.
pub(super) fn nowait_probe(device: &File, block: u32) -> io::Result<Option<Duration>> {
    const READS: usize = 9;
    let mut pool = Pool::new(1, 4096)?;
    let Some(buffer) = pool.take() else {
        return Err(io::ErrorKind::OutOfMemory.into());
    };
    let mut entry = pool.entry(buffer);
    entry.iov_len = block as usize;
    // SAFETY: the entry is a buffer of our own, which outlives the call.
    let result =
        unsafe { libc::preadv2(device.as_raw_fd(), &raw const entry, 1, 0, libc::RWF_NOWAIT) };
    let error = io::Error::last_os_error();
    // A full queue is no reason to think otherwise.
    if result >= 0 || error.raw_os_error() != Some(libc::EOPNOTSUPP) {
        return Ok(None);
    }
    let mut times = [Duration::ZERO; READS];
    for time in &mut times {
        let start = Instant::now();
        pool.read_at(device.as_raw_fd(), buffer, block as usize, 0)?;
        *time = start.elapsed();
    }
    times.sort_unstable();
    Ok(Some(times[READS / 2]))
}
