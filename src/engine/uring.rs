//! Operations by io_uring(7): one system call gives a batch and collects what
//! has ended; the same call sleeps.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{CloneBuffersFlags, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};

use super::{Engine, Files, Slot, Target, Vector, Work, sync};

/// Marks the polls of watched eventfds among the operations' tokens; below it
/// are a serial number and the index.
const WATCH: u64 = 1 << 63;
const INDEX_BITS: u32 = 16;
/// What becomes of removing a poll is of no interest.
const REMOVAL: u64 = u64::MAX;
/// Threads that the kernel may use for what would wait.
const IO_THREADS: u32 = 64;
/// `POLLIN`, as io_uring takes it.
const POLLIN: u32 = 1;

/// A ring of one thread.
pub struct Uring {
    ring: IoUring,
    files: Files,
    /// Operations that were carried out at once.
    ended: Vec<(u32, i32)>,
    /// Operations that the kernel has and has not ended.
    running: usize,
    watched: Vec<Watched>,
    /// Some watched eventfd has no poll in the ring.
    unwatched: bool,
    /// Tells polls apart that were made for the same index.
    serial: u64,
    /// Registered buffers, in the order of their indices.
    slots: Vec<Slot>,
    /// The kernel takes vectors of registered buffers (since 6.15).
    vectored: bool,
}

/// An eventfd, and the poll in the ring that watches it.
#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    fd: Option<RawFd>,
    /// The name of its poll, while the ring has one.
    poll: Option<u64>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for at most `depth` operations at a time. The files are
    /// registered before its first operation: a ring's own end waits for all
    /// its requests before it lets go of registered files, so a lease on the
    /// image outlives every raw write, whatever ends the process.
    ///
    /// # Errors
    /// The kernel lacks or forbids io_uring.
    pub fn new(files: Files, depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth + 1)
            .unwrap_or(u32::MAX)
            .next_power_of_two()
            .min(32768);
        let ring = Self::build(entries)?;
        #[cfg(not(debug_assertions))]
        let image = files.image;
        // For the negative control of tests.
        #[cfg(debug_assertions)]
        let image = match std::env::var_os("EXTENTD_TEST_UNREGISTERED") {
            Some(_) => -1,
            None => files.image,
        };
        let descriptors = [image, files.device.unwrap_or(-1)];
        ring.submitter().register_files(&descriptors)?;
        // Allocating writes wait for locks of the file system in threads of
        // the kernel; a sync must not wait behind all of them. Older kernels
        // cannot be told.
        let _ = ring
            .submitter()
            .register_iowq_max_workers(&mut [IO_THREADS, 0]);
        let mut probe = Probe::new();
        let vectored = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE);
        Ok(Self {
            ring,
            files,
            ended: Vec::with_capacity(depth),
            running: 0,
            watched: Vec::new(),
            unwatched: false,
            serial: 0,
            slots: Vec::new(),
            vectored,
        })
    }

    /// Each flag needs a newer kernel than the one after it (6.1, 6.0, 5.19).
    fn build(entries: u32) -> io::Result<IoUring> {
        let completions = entries * 2;
        let mut builder = IoUring::builder();
        builder
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .dontfork();
        if let Ok(ring) = builder.build(entries) {
            return Ok(ring);
        }
        let mut builder = IoUring::builder();
        builder
            .setup_cqsize(completions)
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .dontfork();
        if let Ok(ring) = builder.build(entries) {
            return Ok(ring);
        }
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completions).dontfork();
        builder.build(entries)
    }

    fn entry(&self, work: Work) -> squeue::Entry {
        match work {
            Work::Read(target, vector) => self.read(target, &vector),
            Work::Write {
                target,
                vector,
                stable,
            } => self.write(target, &vector, if stable { libc::RWF_DSYNC } else { 0 }),
            Work::Sync(target) => opcode::Fsync::new(slot(target))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            Work::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(slot(Target::Image), len)
                    .offset(offset)
                    .mode(mode)
                    .build()
            }
        }
    }

    /// A single buffer is cheaper without a vector, and a registered one is
    /// cheaper still.
    fn read(&self, target: Target, vector: &Vector) -> squeue::Entry {
        let (file, offset) = (slot(target), vector.offset);
        let (single, registered) = (single(vector), self.registered(vector));
        match (single, registered) {
            (Some((base, len)), Some(index)) => opcode::ReadFixed::new(file, base, len, index)
                .offset(offset)
                .build(),
            (Some((base, len)), None) => opcode::Read::new(file, base, len).offset(offset).build(),
            (None, Some(index)) => opcode::ReadvFixed::new(file, vector.iov, vector.count, index)
                .offset(offset)
                .build(),
            (None, None) => opcode::Readv::new(file, vector.iov, vector.count)
                .offset(offset)
                .build(),
        }
    }

    fn write(&self, target: Target, vector: &Vector, flags: i32) -> squeue::Entry {
        let (file, offset) = (slot(target), vector.offset);
        let (single, registered) = (single(vector), self.registered(vector));
        match (single, registered) {
            (Some((base, len)), Some(index)) => opcode::WriteFixed::new(file, base, len, index)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (Some((base, len)), None) => opcode::Write::new(file, base, len)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, Some(index)) => opcode::WritevFixed::new(file, vector.iov, vector.count, index)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, None) => opcode::Writev::new(file, vector.iov, vector.count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
        }
    }

    /// The registered buffer that all of a vector lies in.
    fn registered(&self, vector: &Vector) -> Option<u16> {
        if self.slots.is_empty() || (vector.count > 1 && !self.vectored) {
            return None;
        }
        // SAFETY: a vector that was pushed has valid entries, as many as it says.
        let entries = unsafe { std::slice::from_raw_parts(vector.iov, vector.count as usize) };
        let index = self
            .slots
            .iter()
            .position(|slot| entries.iter().all(|entry| slot.contains(entry)))?;
        u16::try_from(index).ok()
    }

    fn place(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is valid until it has ended:
            // the promise of `Engine::push`; a poll points to nothing.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enter(0, None);
        }
    }

    /// Submits, lets the kernel post completions, and waits for `want`.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) {
        let flags = EnterFlags::GETEVENTS;
        let result = match timeout {
            Some(time) if want > 0 => {
                let spec = Timespec::new()
                    .sec(time.as_secs())
                    .nsec(time.subsec_nanos());
                self.ring
                    .submitter()
                    .submit_with_args(want, &SubmitArgs::new().timespec(&spec))
            }
            _ if want > 0 => self.ring.submitter().submit_and_wait(want),
            _ => {
                let queued = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
                // SAFETY: no argument struct is passed, so none is read.
                unsafe {
                    self.ring
                        .submitter()
                        .enter::<libc::sigset_t>(queued, 0, flags.bits(), None)
                }
            }
        };
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            // Nothing can be given to the kernel any more: no request would
            // ever end, so the front-end is better served by a new process.
            Err(errno) => {
                log::error!("io_uring_enter failed: errno {errno:?}");
                crate::logging::finish();
                std::process::abort();
            }
        }
    }
}

/// The only entry of a vector. The kernel moves less than 2 GiB at a time, so
/// a longer buffer is only cut short.
fn single(vector: &Vector) -> Option<(*mut u8, u32)> {
    if vector.count != 1 {
        return None;
    }
    // SAFETY: a vector that was pushed has valid entries, as many as it says.
    let entry = unsafe { *vector.iov };
    let len = u32::try_from(entry.iov_len).unwrap_or(MOST);
    Some((entry.iov_base.cast(), len.min(MOST)))
}

/// `MAX_RW_COUNT`, a multiple of every block.
const MOST: u32 = 0x7fff_0000;

fn slot(target: Target) -> Fixed {
    match target {
        Target::Image => Fixed(0),
        Target::Device => Fixed(1),
    }
}

impl Engine for Uring {
    unsafe fn push(&mut self, token: u32, work: Work) {
        if self.files.device_inline && work.is_raw() {
            // SAFETY: the caller keeps the promise of `push`.
            let result = unsafe { sync::result_of(&self.files, work) };
            self.ended.push((token, result));
            return;
        }
        let entry = self.entry(work).user_data(u64::from(token));
        self.place(&entry);
        self.running += 1;
    }

    fn submit(&mut self) {
        if self.running > 0 {
            self.enter(0, None);
        }
    }

    fn completions(&mut self, mut done: impl FnMut(u32, i32)) {
        if self.ring.completion().is_empty() && self.is_owed() {
            self.enter(0, None);
        }
        for (token, result) in self.ended.drain(..) {
            done(token, result);
        }
        for entry in self.ring.completion() {
            match u32::try_from(entry.user_data()) {
                Ok(token) => {
                    self.running -= 1;
                    done(token, entry.result());
                }
                // A poll, which the kernel may have ended.
                Err(_) if io_uring::cqueue::more(entry.flags()) => {}
                Err(_) => {
                    let ended = Some(entry.user_data());
                    for watched in self.watched.iter_mut().filter(|w| w.poll == ended) {
                        watched.poll = None;
                        self.unwatched = true;
                    }
                }
            }
        }
    }

    fn has_ended(&mut self) -> bool {
        if !self.ended.is_empty() || !self.ring.completion().is_empty() {
            return true;
        }
        self.is_owed()
    }

    fn clone_buffers(&mut self, ring: RawFd, slots: &[Slot]) -> io::Result<()> {
        self.drop_buffers();
        self.ring.submitter().register_buffers_clone_offset(
            ring,
            0,
            0,
            0,
            CloneBuffersFlags::empty(),
        )?;
        self.slots.extend_from_slice(slots);
        Ok(())
    }

    fn drop_buffers(&mut self) {
        if !self.slots.is_empty() {
            self.slots.clear();
            if let Err(error) = self.ring.submitter().unregister_buffers() {
                log::warn!("registered buffers cannot be let go of: {error}");
            }
        }
    }

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        if self.watched.len() <= index {
            self.watched.resize(index + 1, Watched::default());
        }
        let new = Watched { fd, poll: None };
        let old = std::mem::replace(&mut self.watched[index], new);
        if let Some(poll) = old.poll {
            // It keeps the file open until it is removed.
            self.place(&opcode::PollRemove::new(poll).build().user_data(REMOVAL));
            self.enter(0, None);
        }
        self.unwatched |= fd.is_some();
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if std::mem::take(&mut self.unwatched) {
            self.poll_watched();
        }
        if self.ended.is_empty() {
            self.enter(1, timeout);
        } else {
            self.enter(0, None);
        }
    }
}

impl Uring {
    /// The kernel has completions that it posts only when it is entered.
    fn is_owed(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Lets the ring tell each signal of the watched eventfds once, for as
    /// long as it lives: nobody has to make them silent.
    fn poll_watched(&mut self) {
        for index in 0..self.watched.len() {
            let Watched {
                fd: Some(fd),
                poll: None,
            } = self.watched[index]
            else {
                continue;
            };
            self.serial = (self.serial + 1) & ((1 << (62 - INDEX_BITS)) - 1);
            let name = WATCH | self.serial << INDEX_BITS | index as u64;
            let poll = opcode::PollAdd::new(io_uring::types::Fd(fd), POLLIN)
                .multi(true)
                .build();
            self.place(&poll.user_data(name));
            self.watched[index].poll = Some(name);
        }
    }
}
