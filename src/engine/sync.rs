//! Operations by plain system calls, each done when it is submitted: for
//! hosts that refuse io_uring, and as the oracle of tests.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mapping::path::Permit;

use super::{Engine, Files, Slot, Target, WITHDRAWN, Work};
use crate::host::sys;

/// Operations wait in order and are done one after the other.
#[derive(Debug)]
pub struct Sync {
    files: Files,
    queued: Vec<(u32, Work)>,
    ended: Vec<(u32, i32)>,
    /// Negative where nothing is watched.
    watched: Vec<RawFd>,
}

impl Sync {
    /// At most `depth` operations are in flight at a time.
    pub(crate) fn new(files: Files, depth: usize) -> Self {
        Self {
            files,
            queued: Vec::with_capacity(depth),
            ended: Vec::with_capacity(depth),
            watched: Vec::new(),
        }
    }
}

/// Carries one operation out; bytes moved, or a negative errno.
///
/// # Safety
/// The vector is valid as [`Engine::push`] asks for.
pub(super) unsafe fn result_of(files: &Files, work: Work) -> i32 {
    // SAFETY: the caller keeps the promise.
    match unsafe { perform(files, work) } {
        Ok(moved) => moved,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Reads or writes the device by a permit of `may`; bytes moved, or a negative
/// errno.
///
/// # Safety
/// As for [`result_of`].
pub(super) unsafe fn permitted(
    files: &Files,
    work: Work,
    may: &mut impl FnMut() -> Option<Permit>,
) -> i32 {
    let (number, vector, stable) = match work {
        Work::Read(_, vector) => (libc::SYS_preadv2, vector, false),
        Work::Write { vector, stable, .. } => (libc::SYS_pwritev2, vector, stable),
        Work::Sync(_) | Work::Allocate { .. } => return -libc::EINVAL,
    };
    let flags = if stable { libc::RWF_DSYNC } else { 0 };
    let args = [
        files.descriptor(Target::Device).cast_unsigned() as usize,
        vector.iov.expose_provenance(),
        vector.count as usize,
        // One register holds it all where addresses have 64 bits.
        usize::try_from(vector.offset).unwrap_or(usize::MAX),
        0,
        flags.cast_unsigned() as usize,
    ];
    // SAFETY: the caller keeps the promise.
    match unsafe { Permit::submit(may, number, args) } {
        None => WITHDRAWN,
        Some(Ok(moved)) => i32::try_from(moved).unwrap_or(i32::MAX),
        Some(Err(error)) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

unsafe fn perform(files: &Files, work: Work) -> io::Result<i32> {
    match work {
        Work::Read(target, vector) => {
            let fd = files.descriptor(target);
            // SAFETY: the caller vouches for the vector.
            unsafe { sys::preadv(fd, vector.iov, count(vector.count), signed(vector.offset)?) }
        }
        Work::Write {
            target,
            vector,
            stable,
        } => {
            let flags = if stable { libc::RWF_DSYNC } else { 0 };
            let fd = files.descriptor(target);
            // SAFETY: as for reads.
            unsafe {
                sys::pwritev2(
                    fd,
                    vector.iov,
                    count(vector.count),
                    signed(vector.offset)?,
                    flags,
                )
            }
        }
        Work::Sync(target) => sys::fdatasync(files.descriptor(target)).map(|()| 0),
        Work::Allocate { mode, offset, len } => {
            sys::fallocate(files.image, mode, signed(offset)?, signed(len)?).map(|()| 0)
        }
    }
}

/// Vectors have at most 1024 entries.
fn count(entries: u32) -> i32 {
    i32::try_from(entries).unwrap_or(1024)
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

impl Engine for Sync {
    unsafe fn push(&mut self, token: u32, work: Work) {
        self.queued.push((token, work));
    }

    fn submit(&mut self, may: &mut impl FnMut() -> Option<Permit>) {
        for index in 0..self.queued.len() {
            let (token, work) = self.queued[index];
            // SAFETY: whoever pushed it keeps the vector valid until its
            // result was given, which is after this call.
            let result = unsafe {
                if work.is_raw() {
                    permitted(&self.files, work, may)
                } else {
                    result_of(&self.files, work)
                }
            };
            self.ended.push((token, result));
        }
        self.queued.clear();
    }

    fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    fn completions(&mut self, mut done: impl FnMut(u32, i32)) {
        for (token, result) in self.ended.drain(..) {
            done(token, result);
        }
    }

    fn has_ended(&mut self) -> bool {
        !self.ended.is_empty()
    }

    fn clone_buffers(&mut self, _ring: RawFd, _slots: &[Slot]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn drop_buffers(&mut self) {}

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        if self.watched.len() <= index {
            self.watched.resize(index + 1, -1);
        }
        self.watched[index] = fd.unwrap_or(-1);
    }

    fn wait(&mut self, timeout: Option<Duration>, may: &mut impl FnMut() -> Option<Permit>) {
        self.submit(may);
        if !self.ended.is_empty() {
            return;
        }
        let milliseconds = match timeout {
            None => -1,
            Some(time) => i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
        };
        match sys::poll_events(&self.watched, milliseconds) {
            Ok(()) => {}
            Err(error) => log::error!("cannot wait for requests: {error}"),
        }
    }
}
