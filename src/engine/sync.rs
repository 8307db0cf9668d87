//! Operations by plain system calls, each done when it is submitted: for
//! hosts that refuse io_uring, and as the oracle of tests.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use mapping::path::Permit;
use pulse::Doing;
use rustix::event::{Timespec, epoll};

use super::{Engine, Files, Slot, Target, WITHDRAWN, Work};
use crate::host::sys;

/// Operations wait in order and are done one after the other.
#[derive(Debug)]
pub struct Sync {
    files: Files,
    queued: Vec<(u32, Work)>,
    ended: Vec<(u32, i32)>,
    watched: Vec<Option<RawFd>>,
    /// Tells each signal of what is watched once. Nobody reads those eventfds:
    /// their other owners could have that wait.
    events: OwnedFd,
}

/// Most events that one call takes.
const EVENTS: usize = 16;

impl Sync {
    /// At most `depth` operations are in flight at a time.
    ///
    /// # Errors
    /// The host gives no descriptor.
    pub(crate) fn new(files: Files, depth: usize) -> io::Result<Self> {
        Ok(Self {
            files,
            queued: Vec::with_capacity(depth),
            ended: Vec::with_capacity(depth),
            watched: Vec::new(),
            events: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
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
            self.watched.resize(index + 1, None);
        }
        let old = std::mem::replace(&mut self.watched[index], fd);
        // Others have the same open file: it would be watched on when it is
        // closed here.
        let removed = old.map_or(Ok(()), |old| {
            // SAFETY: it stays open until this call has ended.
            epoll::delete(&self.events, unsafe { BorrowedFd::borrow_raw(old) })
        });
        let added = fd.map_or(Ok(()), |fd| {
            // SAFETY: it is open, and stays so until it is replaced here.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&self.events, fd, epoll::EventData::new_u64(0), flags)
        });
        if let Err(error) = removed.and(added) {
            log::error!("an event cannot be watched: {error}");
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, may: &mut impl FnMut() -> Option<Permit>) {
        pulse::during(Doing::Disk, || self.submit(may));
        if !self.ended.is_empty() {
            return;
        }
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        match epoll::wait(&self.events, &mut events, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => log::error!("cannot wait for requests: {error}"),
        }
    }
}
