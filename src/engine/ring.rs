//! Setting rings up, and entering them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{CloneBuffersFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};

use mapping::path::Permit;

use super::Files;
use crate::host::logging;
use crate::host::switches;

/// The result of an operation on the device that the ring had no device for any
/// more when the kernel came to it.
pub(super) const REVOKED: i32 = -libc::EBADF;
/// Which registered file is the device.
pub(super) const DEVICE: u32 = 1;

/// Threads that the kernel may use for what would wait.
const IO_THREADS: u32 = 64;

/// What of io_uring the host's kernel has, found by trying it; each has a
/// way round where it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Features {
    /// Completions are posted when the worker asks (6.1): "deferred"; when it
    /// is in the kernel anyway (5.19): "cooperative"; else "interrupting".
    pub task_work: &'static str,
    /// The threads that take what would wait can be limited (5.15).
    pub bounded_threads: bool,
    /// Registered buffers can be shared between rings (6.12): without it,
    /// guest memory is not pinned.
    pub shared_buffers: bool,
    /// Vectors of registered buffers (6.15); without it, only single ones.
    pub vectored_buffers: bool,
}

/// A ring for at most `depth` operations at a time. The files are registered
/// before its first operation: a ring's own end waits for all its requests
/// before it lets go of registered files, so a lease on the image, or a claim
/// of a device, outlives every write, whatever ends the process.
///
/// # Errors
/// The kernel lacks or forbids io_uring, or polled rings.
pub(super) fn set_up(files: &Files, depth: usize, polled: bool) -> io::Result<(IoUring, Features)> {
    // Twice as many can be told ended: that leaves room for watched eventfds.
    let entries = u32::try_from(depth.max(2).next_power_of_two()).unwrap_or(u32::MAX);
    let entries = entries.min(32768);
    let (ring, task_work) = build(entries, polled)?;
    let submitter = ring.submitter();
    let image = Some(files.image).filter(|_| !switches::unregistered());
    let keeper = files.keeper.filter(|_| !switches::left_out("keeper"));
    let files = [image, files.device, files.tail, keeper];
    submitter.register_files(&files.map(|file| file.unwrap_or(-1)))?;
    // Allocating writes wait for locks of the file system in threads of the
    // kernel; a sync must not wait behind all of them.
    let bounded_threads = submitter
        .register_iowq_max_workers(&mut [IO_THREADS, 0])
        .is_ok();
    let mut probe = Probe::new();
    let vectored_buffers = submitter.register_probe(&mut probe).is_ok()
        && probe.is_supported(opcode::ReadvFixed::CODE)
        && probe.is_supported(opcode::WritevFixed::CODE);
    // There are none yet: a kernel that knows the call says so in another way
    // than one that does not.
    let none = CloneBuffersFlags::empty();
    let shared_buffers = submitter
        .register_buffers_clone_offset(ring.as_raw_fd(), 0, 0, 0, none)
        .is_err_and(|error| error.raw_os_error() != Some(libc::EINVAL));
    let features = Features {
        task_work,
        bounded_threads,
        shared_buffers,
        vectored_buffers,
    };
    Ok((ring, features))
}

/// Each set of flags needs a newer kernel than the one after it.
fn build(entries: u32, polled: bool) -> io::Result<(IoUring, &'static str)> {
    let attempt = |task_work| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries * 2).dontfork();
        match task_work {
            "deferred" => {
                builder.setup_single_issuer().setup_defer_taskrun();
                builder.setup_taskrun_flag();
            }
            "cooperative" => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            _ => {}
        }
        if polled {
            builder.setup_iopoll();
        }
        builder.build(entries).map(|ring| (ring, task_work))
    };
    attempt("deferred")
        .or_else(|_| attempt("cooperative"))
        .or_else(|_| attempt("interrupting"))
}

/// Places an entry, after giving others to the kernel if there is no room.
///
/// # Safety
/// What the entry points to is valid until it has ended.
pub(super) unsafe fn place(ring: &mut IoUring, entry: &squeue::Entry) {
    loop {
        // SAFETY: the caller's promise.
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return;
        }
        enter(ring, 0, None);
    }
}

/// How many entries can be placed before others have to be given.
fn room(ring: &mut IoUring) -> usize {
    let submission = ring.submission();
    submission.capacity() - submission.len()
}

/// Gives reads and writes of the device to the kernel, with all that was placed
/// before, by a permit of `may`, which is asked last. Whether they were given;
/// those that were and must not be carried out any more end with [`REVOKED`].
///
/// # Safety
/// What the entries point to is valid until they have ended.
pub(super) unsafe fn enter_if(
    ring: &mut IoUring,
    entries: &[squeue::Entry],
    may: &mut impl FnMut() -> Option<Permit>,
) -> bool {
    while room(ring) < entries.len() {
        enter(ring, 0, None);
    }
    let mut submission = ring.submission();
    // SAFETY: the caller's promise.
    let placed = unsafe { submission.push_multiple(entries) }.is_ok();
    let queued = submission.len();
    let Some(permit) = may().filter(|_| placed) else {
        // Without this the kernel would be shown them.
        std::mem::forget(submission);
        return false;
    };
    drop(submission);
    let flags = EnterFlags::GETEVENTS.bits() as usize;
    let descriptor = ring.as_raw_fd().cast_unsigned() as usize;
    let mut first = Some(permit);
    // SAFETY: no argument struct is passed, so none is read; the entries are
    // valid by the caller's promise.
    let result = unsafe {
        Permit::submit(
            || first.take().or_else(&mut *may),
            libc::SYS_io_uring_enter,
            [descriptor, queued, 0, flags, 0, 0],
        )
    };
    match result {
        Some(result) => check(result),
        None => revoke(ring),
    }
    true
}

/// What the kernel has been shown cannot be taken back: it is given, and finds
/// no device, as nothing does until whoever is told calls [`restore`].
#[cold]
fn revoke(ring: &mut IoUring) {
    let submitter = ring.submitter();
    if let Err(error) = submitter.register_files_update(DEVICE, &[-1]) {
        // Nothing has to be allocated for this.
        log::error!("the device cannot be taken from a ring: {error}");
        logging::finish();
        std::process::abort();
    }
    enter(ring, 0, None);
}

/// Lets a ring have the device again; whether it has.
pub(super) fn restore(ring: &IoUring, device: Option<RawFd>) -> bool {
    let Some(device) = device else {
        return false;
    };
    let restored = ring.submitter().register_files_update(DEVICE, &[device]);
    restored
        .inspect_err(|error| log::warn!("a ring has no device for now: {error}"))
        .is_ok()
}

/// Submits, lets the kernel post completions, and waits for `want`.
pub(super) fn enter(ring: &mut IoUring, want: usize, timeout: Option<Duration>) {
    let result = match timeout {
        Some(time) if want > 0 => {
            let spec = Timespec::new()
                .sec(time.as_secs())
                .nsec(time.subsec_nanos());
            ring.submitter()
                .submit_with_args(want, &SubmitArgs::new().timespec(&spec))
        }
        _ if want > 0 => ring.submitter().submit_and_wait(want),
        _ => {
            let queued = u32::try_from(ring.submission().len()).unwrap_or(u32::MAX);
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: no argument struct is passed, so none is read.
            unsafe {
                ring.submitter()
                    .enter::<libc::sigset_t>(queued, 0, flags, None)
            }
        }
    };
    check(result);
}

/// What entering the ring has said.
fn check(result: io::Result<usize>) {
    match result.map_err(|error| error.raw_os_error()) {
        Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
        // Nothing can be given to the kernel any more: no request would
        // ever end, so the front-end is better served by a new process.
        Err(errno) => {
            log::error!("io_uring_enter failed: errno {errno:?}");
            logging::finish();
            std::process::abort();
        }
    }
}
