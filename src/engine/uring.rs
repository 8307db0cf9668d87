//! Operations by io_uring(7): one system call gives a batch and collects what
//! has ended; the same call sleeps.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::CloneBuffersFlags;
use io_uring::{IoUring, opcode, squeue};
use mapping::path::Permit;
use pulse::Doing;

use super::entries::Buffers;
use super::inline::Inline;
use super::manner::Manner;
use super::polled::Polled;
use super::ring::{self, Features};
use super::{Engine, Files, Slot, WITHDRAWN, Work, sync};
use crate::host::switches;

/// Marks the polls of watched eventfds among the operations' tokens; below it
/// are a serial number and the index.
const WATCH: u64 = 1 << 63;
const INDEX_BITS: u32 = 16;
/// What becomes of removing a poll is of no interest.
const REMOVAL: u64 = u64::MAX;
/// `POLLIN`, as io_uring takes it.
const POLLIN: u32 = 1;

/// A ring of one thread.
pub struct Uring {
    ring: IoUring,
    files: Files,
    /// Reads and writes of the device that the kernel does not have yet.
    staged: Vec<(u32, Work)>,
    /// The same as the ring takes them.
    entries: Vec<squeue::Entry>,
    /// What this thread carries out itself.
    inline: Inline,
    /// Operations that were carried out here, or not at all.
    ended: Vec<(u32, i32)>,
    /// Operations that the kernel has and has not ended.
    running: usize,
    watched: Vec<Watched>,
    /// Some watched eventfd has no poll in the ring.
    unwatched: bool,
    /// Tells polls apart that were made for the same index.
    serial: u64,
    buffers: Buffers,
    /// For files that are polled.
    polled: Option<Polled>,
    features: Features,
    /// So many operations are carried out here, as the kernel had no thread for
    /// one that would have waited.
    threadless: u32,
    told_threadless: bool,
}

/// Operations until the kernel is asked again whether it has a thread.
const THREADLESS: u32 = 64;

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
    /// A ring for at most `depth` operations at a time, whose tokens are below
    /// `depth`.
    ///
    /// # Errors
    /// The kernel lacks or forbids io_uring.
    pub(crate) fn new(files: Files, depth: usize) -> io::Result<Self> {
        let (ring, features) = ring::set_up(&files, depth, false)?;
        let polled = if files.are_polled() {
            Polled::new(&files, depth)
                .inspect_err(|error| log::warn!("the device is not polled: {error}"))
                .ok()
        } else {
            None
        };
        Ok(Self {
            ring,
            files,
            staged: Vec::with_capacity(depth),
            entries: Vec::with_capacity(depth),
            inline: Inline::new(depth),
            ended: Vec::with_capacity(depth),
            running: 0,
            watched: Vec::new(),
            unwatched: false,
            serial: 0,
            buffers: Buffers {
                slots: Vec::new(),
                vectored: features.vectored_buffers,
                raw_flags: if switches::left_out("nowait") {
                    0
                } else {
                    libc::RWF_NOWAIT
                },
            },
            polled,
            features,
            threadless: 0,
            told_threadless: false,
        })
    }

    fn rings(&self) -> impl Iterator<Item = &IoUring> {
        std::iter::once(&self.ring).chain(self.polled.as_ref().map(Polled::ring))
    }

    /// What of io_uring the kernel has.
    pub(crate) fn features(&self) -> Features {
        self.features
    }

    fn place(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to is valid until it has ended: the
        // promise of `Engine::push`; a poll points to nothing.
        unsafe { ring::place(&mut self.ring, entry) }
    }

    fn enter(&mut self, want: usize, timeout: Option<Duration>) {
        ring::enter(&mut self.ring, want, timeout);
    }

    /// Puts an operation where it suits: in a ring, or among those that are
    /// carried out here.
    ///
    /// # Safety
    /// As for [`Engine::push`].
    unsafe fn give(&mut self, token: u32, work: Work) {
        match (self.files.manner(&work), &mut self.polled) {
            // SAFETY: the caller's promise.
            (Manner::Inline, _) => unsafe { self.inline.push(token, work) },
            (Manner::Polled, Some(polled)) => {
                // SAFETY: the caller's promise.
                if !unsafe { polled.push(token, work, &self.buffers) } {
                    // SAFETY: likewise.
                    unsafe { self.queue(token, work) };
                }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.queue(token, work) },
        }
    }

    /// Gives what is staged, if `may` allows it, and carries out some of what
    /// is to be done here; whether the ring was entered.
    fn give_staged(&mut self, may: &mut impl FnMut() -> Option<Permit>) -> bool {
        self.inline.run(&self.files, may, &mut self.ended);
        !self.staged.is_empty() && self.enter_staged(may)
    }

    /// Gives what is staged to the rings, and asks `may` when nothing is left
    /// to be done but the call: a process may be stopped anywhere for long,
    /// and what it has been allowed before is not asked for again.
    fn enter_staged(&mut self, may: &mut impl FnMut() -> Option<Permit>) -> bool {
        let mut polled = 0;
        if let Some(ring) = &mut self.polled {
            for index in 0..self.staged.len() {
                let (token, work) = self.staged[index];
                if self.files.manner(&work) == Manner::Polled && ring.takes(token, work) {
                    self.staged.swap(index, polled);
                    polled += 1;
                }
            }
        }
        let count = self.staged.len();
        if polled > 0 && !self.enter_part(0..polled, true, may) {
            self.polled
                .iter_mut()
                .for_each(|ring| ring.take_back(polled));
        }
        let mut entered = false;
        if polled < count {
            entered = self.enter_part(polled..count, false, may);
            if entered {
                self.running += count - polled;
            }
        }
        self.staged.clear();
        entered
    }

    /// Gives a part of what is staged to one of the rings.
    fn enter_part(
        &mut self,
        part: Range<usize>,
        polled: bool,
        may: &mut impl FnMut() -> Option<Permit>,
    ) -> bool {
        let part = &self.staged[part];
        let ring = match self.polled.as_mut().filter(|_| polled) {
            Some(polled) => polled.ring_mut(),
            None => &mut self.ring,
        };
        self.entries.clear();
        for &(token, work) in part {
            // SAFETY: whoever pushed it keeps its vector valid.
            let entry = unsafe { self.buffers.entry(work) };
            self.entries.push(entry.user_data(u64::from(token)));
        }
        // SAFETY: whoever pushed them keeps their vectors valid until their
        // results were given, which is after this call.
        let entered = unsafe { ring::enter_if(ring, &self.entries, may) };
        if !entered {
            let withdrawn = part.iter().map(|&(token, _)| (token, WITHDRAWN));
            self.ended.extend(withdrawn);
        }
        entered
    }

    /// Gives an operation to the ring whose ends the kernel tells.
    ///
    /// # Safety
    /// As for [`Engine::push`].
    unsafe fn queue(&mut self, token: u32, work: Work) {
        if self.threadless > 0 && !work.is_raw() {
            self.threadless -= 1;
            // SAFETY: the caller's promise.
            let result = unsafe { sync::result_of(&self.files, work) };
            self.ended.push((token, result));
            return;
        }
        // SAFETY: the caller's promise.
        let entry = unsafe { self.buffers.entry(work) }.user_data(u64::from(token));
        self.place(&entry);
        self.running += 1;
    }
}

impl Engine for Uring {
    unsafe fn push(&mut self, token: u32, work: Work) {
        if work.is_raw() && self.files.device_manner != Manner::Inline {
            self.staged.push((token, work));
        } else {
            // SAFETY: the caller keeps the promise of `push`.
            unsafe { self.give(token, work) };
        }
    }

    fn submit(&mut self, may: &mut impl FnMut() -> Option<Permit>) {
        let entered = self.give_staged(may);
        if self.running > 0 && !entered {
            self.enter(0, None);
        }
        if let Some(polled) = &mut self.polled {
            polled.look();
        }
    }

    fn has_queued(&self) -> bool {
        !self.staged.is_empty() || !self.inline.is_empty()
    }

    fn completions(&mut self, mut done: impl FnMut(u32, i32)) {
        if self.ring.completion().is_empty() && self.is_owed() {
            self.enter(0, None);
        }
        for (token, result) in self.ended.drain(..) {
            done(token, result);
        }
        self.look_at_polled(&mut done);
        let (mut revoked, mut canceled) = (false, false);
        for entry in self.ring.completion() {
            match u32::try_from(entry.user_data()) {
                Ok(token) => {
                    self.running -= 1;
                    match entry.result() {
                        ring::REVOKED => {
                            self.ended.push((token, WITHDRAWN));
                            revoked = true;
                        }
                        result => {
                            canceled |= result == -libc::ECANCELED;
                            done(token, result);
                        }
                    }
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
        if canceled {
            if !std::mem::replace(&mut self.told_threadless, true) {
                log::warn!(
                    "the kernel has no thread for requests that wait: raise the limit on tasks (TasksMax=, pids.max, ulimit -u); workers wait themselves"
                );
            }
            self.threadless = THREADLESS;
        }
        if revoked && !ring::restore(&self.ring, self.files.device) {
            // They would come back for ever: they go by the file.
            self.ended
                .iter_mut()
                .for_each(|(_, result)| *result = -libc::EAGAIN);
        }
        for (token, result) in self.ended.drain(..) {
            done(token, result);
        }
    }

    fn has_ended(&mut self) -> bool {
        if !self.ended.is_empty() || !self.inline.is_empty() || !self.ring.completion().is_empty() {
            return true;
        }
        if let Some(polled) = &mut self.polled {
            polled.look();
            if polled.has_ended() {
                return true;
            }
        }
        self.is_owed()
    }

    fn polled(&self) -> u64 {
        self.polled.as_ref().map_or(0, Polled::ended)
    }

    fn clone_buffers(&mut self, ring: RawFd, slots: &[Slot]) -> io::Result<()> {
        self.drop_buffers();
        let none = CloneBuffersFlags::empty();
        let cloned = self.rings().try_for_each(|own| {
            let submitter = own.submitter();
            submitter.register_buffers_clone_offset(ring, 0, 0, 0, none)
        });
        match cloned {
            Ok(()) => self.buffers.slots.extend_from_slice(slots),
            Err(_) => self.rings().for_each(|own| {
                // Those that have none say so.
                let _ = own.submitter().unregister_buffers();
            }),
        }
        cloned
    }

    fn drop_buffers(&mut self) {
        if self.buffers.slots.is_empty() {
            return;
        }
        self.buffers.slots.clear();
        for own in self.rings() {
            if let Err(error) = own.submitter().unregister_buffers() {
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

    fn wait(&mut self, timeout: Option<Duration>, may: &mut impl FnMut() -> Option<Permit>) {
        if std::mem::take(&mut self.unwatched) {
            self.poll_watched();
        }
        // Whoever waits rests, but not for what is carried out here.
        pulse::during(Doing::Disk, || self.give_staged(may));
        let nap = self.polled.as_mut().and_then(Polled::nap);
        let timeout = [timeout, nap].into_iter().flatten().min();
        if self.ended.is_empty() && self.inline.is_empty() {
            self.enter(1, timeout);
        } else {
            self.enter(0, None);
        }
    }
}

impl Drop for Uring {
    /// The kernel ends a ring some time after it was closed; the image is free
    /// at once all the same, where nothing is in flight.
    fn drop(&mut self) {
        if self.running > 0 || self.polled.as_ref().is_some_and(Polled::is_running) {
            return;
        }
        for ring in self.rings() {
            if let Err(error) = ring.submitter().unregister_files() {
                log::debug!("the files of a ring stay registered: {error}");
            }
        }
    }
}

impl Uring {
    /// Takes what has ended of the polled operations.
    fn look_at_polled(&mut self, done: &mut impl FnMut(u32, i32)) {
        let Some(mut polled) = self.polled.take() else {
            return;
        };
        if !polled.has_ended() {
            polled.look();
        }
        let again = |token, work| self.staged.push((token, work));
        polled.completions(self.files.device, done, again);
        self.polled = Some(polled);
    }

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
